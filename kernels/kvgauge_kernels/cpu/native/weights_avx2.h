// The weights of a block of tokens as whole numbers, for V of integers. Only for word_values_avx2.h and
// byte_values_avx2.h.
#pragma once

#include "avx2.h"
#include "weight_steps.h"

namespace kvgauge {
namespace {

// Weights times a group's scales, in steps, of H heads: signed words of 16 bits, or unsigned bytes.
template <int H, int Bytes>
struct WeightsAvx2 {
  static constexpr float kLevels = Bytes == 2 ? 32767.0f : 255.0f;

  // Of two tokens, as products take them: their words, or their bytes twice.
  alignas(32) int32_t pairs[H][kMaxGroups][kBlock / 2];
  float step[H][kMaxGroups];

  // Those for a group. What zeros, where there are any, and rounding make of the group's elements is added to `rest`
  // and, `stride` floats on, to that of the next head; `middle` is their middle code.
  template <bool HasZeros>
  KVGAUGE_INLINE void round(int g, const float* weights, const Scales<Avx2>& scales, int tokens, float middle,
                            float* rest, int stride) {
    __m256 by[H], whole[H];
    __m256i taken[H];
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) {
      by[h] = _mm256_set1_ps(steps_to_one(step[h][g]));
      whole[h] = _mm256_setzero_ps();
      taken[h] = _mm256_setzero_si256();
    }
    for (int t = 0; t < tokens; t += 16) {
      __m256 scale[2], center[2];  // what a code is worth, and what the middle one stands for
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        scale[i] = _mm256_load_ps(scales.v[g] + t + 8 * i);
        if constexpr (HasZeros)
          center[i] = _mm256_fmadd_ps(_mm256_set1_ps(middle), scale[i], _mm256_load_ps(scales.v_zero[g] + t + 8 * i));
      }
#pragma GCC unroll 4
      for (int h = 0; h < H; ++h) {
        __m256i rounded[2];
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          const __m256 weight = _mm256_load_ps(weights + h * kBlock + t + 8 * i);
          rounded[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_mul_ps(weight, scale[i]), by[h]));
          if constexpr (!HasZeros) continue;
          whole[h] = _mm256_fmadd_ps(weight, center[i], whole[h]);
          taken[h] = _mm256_add_epi32(taken[h], rounded[i]);
        }
        _mm256_store_si256(reinterpret_cast<__m256i*>(pairs[h][g] + t / 2), in_pairs(rounded));
      }
    }
    if constexpr (!HasZeros) return;
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) {
      const __m256 counted = _mm256_set1_ps(middle * step[h][g]);
      const __m256 all = _mm256_fnmadd_ps(counted, _mm256_cvtepi32_ps(taken[h]), whole[h]);
      _mm256_storeu_ps(rest + h * stride, _mm256_add_ps(_mm256_loadu_ps(rest + h * stride), all));
    }
  }

 private:
  static KVGAUGE_INLINE __m256i in_pairs(const __m256i (&rounded)[2]) {
    __m256i words = _mm256_packs_epi32(rounded[0], rounded[1]);
    if constexpr (Bytes == 1) {
      words = _mm256_packus_epi16(words, words);
      words = _mm256_unpacklo_epi16(words, words);
    }
    return _mm256_permute4x64_epi64(words, 0xd8);
  }
};

}  // namespace
}  // namespace kvgauge

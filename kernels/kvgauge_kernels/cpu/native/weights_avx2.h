// The weights of a block of tokens as whole numbers, for V of integers. Only for word_values_avx2.h.
#pragma once

#include "avx2.h"

namespace kvgauge {
namespace {

// Weights times a group's scales as words, in steps, of H heads.
template <int H>
struct WeightsAvx2 {
  static constexpr float kLevels = 32767.0f;

  alignas(32) int16_t words[H][kMaxGroups][kBlock];
  float step[H][kMaxGroups];

  // From the largest product of a weight and a scale: the largest of each may be of different tokens, far apart. False
  // where a scale is no number.
  KVGAUGE_INLINE bool take_steps(int groups, const float* weights, const Scales<Avx2>& scales, int tokens) {
    __m256 odd = _mm256_setzero_ps();
    for (int g = 0; g < groups; ++g) {
      __m256 most[H] = {};
      for (int t = 0; t < tokens; t += 8) {
        const __m256 scale = _mm256_load_ps(scales.v[g] + t);
        odd = _mm256_add_ps(odd, _mm256_sub_ps(scale, scale));  // NaN where it is no number
        const __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), scale);
#pragma GCC unroll 4
        for (int h = 0; h < H; ++h)
          most[h] = _mm256_max_ps(most[h], _mm256_mul_ps(_mm256_load_ps(weights + h * kBlock + t), size));
      }
#pragma GCC unroll 4
      for (int h = 0; h < H; ++h) step[h][g] = Avx2::max_of(most[h]) * (1.0f / kLevels);
    }
    return _mm256_movemask_ps(_mm256_cmp_ps(odd, odd, _CMP_UNORD_Q)) == 0;
  }

  // A head's words for a group. What zeros, where there are any, and rounding make of the group's elements is added to
  // `rest`; `middle` is their middle code.
  template <bool HasZeros>
  KVGAUGE_INLINE void round(int h, int g, const float* weights, const Scales<Avx2>& scales, int tokens, float middle,
                            float* rest) {
    // Weights so small that their inverse has no float add nothing.
    const __m256 by = _mm256_set1_ps(step[h][g] > 1e-36f ? 1.0f / step[h][g] : 0.0f);
    __m256 zeros = _mm256_setzero_ps(), sum = _mm256_setzero_ps();
    __m256i taken = _mm256_setzero_si256();
    for (int t = 0; t < tokens; t += 16) {
      __m256i rounded[2];
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const __m256 weight = _mm256_load_ps(weights + t + 8 * i);
        const __m256 x = _mm256_mul_ps(weight, _mm256_load_ps(scales.v[g] + t + 8 * i));
        rounded[i] = _mm256_cvtps_epi32(_mm256_mul_ps(x, by));
        if constexpr (!HasZeros) continue;
        sum = _mm256_add_ps(sum, x);
        taken = _mm256_add_epi32(taken, rounded[i]);
        zeros = _mm256_fmadd_ps(weight, _mm256_load_ps(scales.v_zero[g] + t + 8 * i), zeros);
      }
      const __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(rounded[0], rounded[1]), 0xd8);
      _mm256_store_si256(reinterpret_cast<__m256i*>(words[h][g] + t), both);
    }
    if constexpr (!HasZeros) return;
    const __m256 lost = _mm256_fnmadd_ps(_mm256_set1_ps(step[h][g]), _mm256_cvtepi32_ps(taken), sum);
    const __m256 all = _mm256_fmadd_ps(_mm256_set1_ps(middle), lost, zeros);
    _mm256_storeu_ps(rest, _mm256_add_ps(_mm256_loadu_ps(rest), all));
  }
};

}  // namespace
}  // namespace kvgauge

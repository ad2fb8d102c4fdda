// The weights of a block of tokens as whole numbers, for V of integers. Only for word_values_avx2.h.
#pragma once

#include "avx2.h"
#include "weight_steps.h"

namespace kvgauge {
namespace {

// Weights times a group's scales as words, in steps, of H heads.
template <int H>
struct WeightsAvx2 {
  static constexpr float kLevels = 32767.0f;

  alignas(32) int16_t words[H][kMaxGroups][kBlock];
  float step[H][kMaxGroups];

  // A head's words for a group. What zeros, where there are any, and rounding make of the group's elements is added to
  // `rest`; `middle` is their middle code.
  template <bool HasZeros>
  KVGAUGE_INLINE void round(int h, int g, const float* weights, const Scales<Avx2>& scales, int tokens, float middle,
                            float* rest) {
    const __m256 by = _mm256_set1_ps(steps_to_one(step[h][g]));
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

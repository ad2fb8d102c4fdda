// The weights of a block of tokens as whole numbers, for V of int4 and int2. Only for packed_values_avx512.h.
#pragma once

#include "avx512.h"
#include "weight_steps.h"

namespace kvgauge {
namespace {

// Weights times a group's scales in Bytes unsigned bytes, of H heads.
template <int H, int Bytes>
struct PackedWeights {
  static constexpr float kLevels = Bytes == 2 ? 65535.0f : 255.0f;

  // Of a head and group: a byte of each token. Fours of tokens in the order in which packing leaves them.
  alignas(64) uint8_t bytes[Bytes][H][kMaxGroups][kBlock];
  float step[H][kMaxGroups];

  // A head's weights times a group's scales, in steps. What zeros and rounding make of the group's elements goes to
  // its place before `end` of a row.
  KVGAUGE_INLINE void round(const Problem& p, int h, int g, const float* weights, const Scales<Avx512>& scales,
                            int tokens, float middle, float* end) {
    const __m512 by = _mm512_set1_ps(steps_to_one(step[h][g]));
    __m512 zeros = _mm512_setzero_ps(), sum = _mm512_setzero_ps();
    __m512i taken = _mm512_setzero_si512();
    for (int t = 0; t < tokens; t += 64) {
      __m512i rounded[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        rounded[i] = _mm512_setzero_si512();
        if (t + 16 * i >= tokens) continue;
        const __m512 weight = _mm512_load_ps(weights + t + 16 * i);
        const __m512 x = _mm512_mul_ps(weight, _mm512_load_ps(scales.v[g] + t + 16 * i));
        rounded[i] = _mm512_cvtps_epi32(_mm512_mul_ps(x, by));
        sum = _mm512_add_ps(sum, x);
        taken = _mm512_add_epi32(taken, rounded[i]);
        zeros = _mm512_fmadd_ps(weight, _mm512_load_ps(scales.v_zero[g] + t + 16 * i), zeros);
      }
      const __m512i a = _mm512_packus_epi32(rounded[0], rounded[1]), b = _mm512_packus_epi32(rounded[2], rounded[3]);
      if constexpr (Bytes == 2) {
        const __m512i low = _mm512_set1_epi16(255);
        const __m512i high = _mm512_packus_epi16(_mm512_srli_epi16(a, 8), _mm512_srli_epi16(b, 8));
        _mm512_store_si512(bytes[0][h][g] + t, high);
        _mm512_store_si512(bytes[1][h][g] + t, _mm512_packus_epi16(_mm512_and_si512(a, low), _mm512_and_si512(b, low)));
      } else {
        _mm512_store_si512(bytes[0][h][g] + t, _mm512_packus_epi16(a, b));
      }
    }
    const __m512 all = _mm512_fmadd_ps(_mm512_set1_ps(middle), sum, zeros);
    const __m512 rest = _mm512_fnmadd_ps(_mm512_set1_ps(middle * step[h][g]), _mm512_cvtepi32_ps(taken), all);
    add_to(rest_at(p, end, g, false), rest);
    add_to(rest_at(p, end, g, true), all);
  }

 private:
  static KVGAUGE_INLINE void add_to(float* at, __m512 x) {
    _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), x));
  }
};

}  // namespace
}  // namespace kvgauge

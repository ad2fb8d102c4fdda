// int8's K in integer arithmetic of AVX2. Only for attend_avx2.cpp.
#pragma once

#include "avx2.h"
#include "rounding.h"

namespace kvgauge {
namespace {

// By products of words of 16 bits (vpmaddwd), to which the query is rounded and K's bytes are widened. Head dims that
// are known when this is compiled (0: not) are faster.
template <int Dim>
struct WordKeysAvx2 {
  static constexpr float kLevels = 32767.0f;

  alignas(32) int16_t q[kMaxGroup][Dim ? Dim : kMaxHeadDim];
  float q_step[kMaxGroup];

  static KVGAUGE_INLINE int k_dim(const Problem& p) { return Dim ? Dim : p.k_dim; }

  void take_query(const Problem& p, const float* scaled) {
    const int dims = k_dim(p);
    // 512 products of 127 and 32767 fit into 32 bits.
    const float steps = dims > 512 ? kLevels / 2 : kLevels;
    for (int g = 0; g < tiled(p.group); ++g) {
      const float* row = scaled + g * dims;
      const Rounding rounding(row, dims, steps);
      q_step[g] = rounding.step;
      for (int d = 0; d < dims; ++d) q[g][d] = static_cast<int16_t>(rounding.of(row[d]));
    }
  }

  template <int H>
  void scores(const Problem& p, int first, const Block& block, const Block& v_ahead, const Scales<Avx2>& scales,
              int tokens, float* out) const {
    constexpr int T = 8 / H;
    const int dims = k_dim(p), v_bytes = Dim ? Dim : p.v_dim;
    for (int t = 0; t < tokens; t += T) {
      __m256i acc[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) acc[i] = _mm256_setzero_si256();
#pragma GCC unroll 8
      for (int d = 0; d < dims; d += 16) {
        __m256i row[T];
#pragma GCC unroll 8
        for (int i = 0; i < T; ++i) row[i] = _mm256_cvtepi8_epi16(Avx2::sixteen(block.k[t + i] + d));
#pragma GCC unroll 4
        for (int h = 0; h < H; ++h) {
          const __m256i x = _mm256_load_si256(reinterpret_cast<const __m256i*>(q[first + h] + d));
#pragma GCC unroll 8
          for (int i = 0; i < T; ++i) add_words(acc[h * T + i], x, row[i]);
        }
      }
      if (first == 0)
        for (int i = 0; i < T; ++i) prefetch_row(v_ahead.v[t + i], v_bytes);
      alignas(32) float sum[8];
      _mm256_store_ps(sum, _mm256_cvtepi32_ps(sums8(acc)));
#pragma GCC unroll 4
      for (int h = 0; h < H; ++h) std::memcpy(out + h * kBlock + t, sum + h * T, T * sizeof(float));
    }
    for (int h = 0; h < H; ++h)
      for (int t = 0; t < tokens; t += 8) {
        const __m256 by = _mm256_mul_ps(_mm256_load_ps(scales.k[0] + t), _mm256_set1_ps(q_step[first + h]));
        _mm256_storeu_ps(out + h * kBlock + t, _mm256_mul_ps(by, _mm256_loadu_ps(out + h * kBlock + t)));
      }
  }

 private:
  // As Avx2::sums, of integers.
  static KVGAUGE_INLINE __m256i sums8(const __m256i (&a)[8]) {
    const __m256i low = _mm256_hadd_epi32(_mm256_hadd_epi32(a[0], a[1]), _mm256_hadd_epi32(a[2], a[3]));
    const __m256i high = _mm256_hadd_epi32(_mm256_hadd_epi32(a[4], a[5]), _mm256_hadd_epi32(a[6], a[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31));
  }
};

}  // namespace
}  // namespace kvgauge

// int8 caches in integer arithmetic of AVX2. Only for attend_avx2.cpp.
#pragma once

#include "avx2.h"
#include "rounding.h"

namespace kvgauge {
namespace {

// int8 caches by products of words of 16 bits (vpmaddwd), to which the query and the weights are rounded and the
// cache's bytes are widened. Head dims that are known when this is compiled (0: not) are faster.
template <int Dim>
struct WordsAvx2 {
  static constexpr int kRoom = Dim ? Dim : kMaxHeadDim;
  static constexpr float kLevels = 32767.0f;

  alignas(32) int16_t q[kMaxGroup][kRoom];
  float q_step[kMaxGroup];
  // V's rows of a block, by twos: the words of two tokens for one column lie together, eight columns to a vector.
  alignas(32) __m256i turned[kBlock / 2][kRoom / 8];

  static KVGAUGE_INLINE int k_dim(const Problem& p) { return Dim ? Dim : p.k_dim; }
  static KVGAUGE_INLINE int v_dim(const Problem& p) { return Dim ? Dim : p.v_dim; }
  static KVGAUGE_INLINE int row_stride(const Problem& p) { return padded_dim(v_dim(p)); }
  static void settle(const Problem&, float*) {}

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
    const int dims = k_dim(p);
    for (int t = 0; t < tokens; t += T) {
      __m256i acc[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) acc[i] = _mm256_setzero_si256();
#pragma GCC unroll 2
      for (int d = 0; d < dims; d += 16) {
        __m256i row[T];
#pragma GCC unroll 8
        for (int i = 0; i < T; ++i) row[i] = _mm256_cvtepi8_epi16(sixteen(block.k[t + i] + d));
#pragma GCC unroll 4
        for (int h = 0; h < H; ++h) {
          const __m256i x = _mm256_load_si256(reinterpret_cast<const __m256i*>(q[first + h] + d));
#pragma GCC unroll 8
          for (int i = 0; i < T; ++i) acc[h * T + i] = _mm256_add_epi32(acc[h * T + i], _mm256_madd_epi16(x, row[i]));
        }
      }
      if (first == 0)
        for (int i = 0; i < T; ++i) prefetch_row(v_ahead.v[t + i], v_dim(p));
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

  template <int H>
  void add_rows(const Problem& p, float* weights, const Block& block, const Scales<Avx2>& scales, const Block& k_ahead,
                bool is_first, int tokens, float* rows, int stride) {
    if (is_first) turn(p, block, tokens);
    const int columns = v_dim(p) / 8;
    Ahead ahead(k_ahead.k, is_first ? tokens : 0, k_dim(p), H * (columns / 8 + columns % 8 / 2));
    for (int h = 0; h < H; ++h) {
      alignas(32) int16_t w[kBlock];
      float step;
      float* row = rows + h * stride;
      if (!round_weights(weights + h * kBlock, scales, tokens, w, step)) {  // NaN or infinity
        Plain<Avx2, Format::int8, Dim, Dim>::template add_rows<1>(p, weights + h * kBlock, block, scales, k_ahead, false,
                                                                   tokens, row, stride);
        continue;
      }
      int c = 0;
      for (; c + 8 <= columns; c += 8) {
        ahead.ask();
        add_columns<8>(w, c, tokens, step, row);
      }
      for (; c < columns; c += 2) {
        ahead.ask();
        add_columns<2>(w, c, tokens, step, row);
      }
    }
    ahead.ask_for_the_rest();
  }

 private:
  static KVGAUGE_INLINE __m128i sixteen(const char* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  }

  void turn(const Problem& p, const Block& block, int tokens) {
    const int dims = v_dim(p);
    for (int t = 0; t < tokens; t += 2) {
#pragma GCC unroll 4
      for (int d = 0; d < dims; d += 16) {
        const __m128i a = sixteen(block.v[t] + d), b = sixteen(block.v[t + 1] + d);
        __m256i* to = turned[t / 2] + d / 8;
        _mm256_store_si256(to, _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b)));
        _mm256_store_si256(to + 1, _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b)));
      }
    }
  }

  // The weights times V's scales as words, in steps of the largest of them; false where they are no numbers.
  static bool round_weights(const float* weights, const Scales<Avx2>& scales, int tokens, int16_t (&w)[kBlock],
                            float& step) {
    __m256 x[kBlock / 8];
    __m256 largest = _mm256_setzero_ps(), odd = _mm256_setzero_ps();
    const __m256 sign = _mm256_set1_ps(-0.0f);
    for (int i = 0; i < tokens / 8; ++i) {
      x[i] = _mm256_mul_ps(_mm256_loadu_ps(weights + 8 * i), _mm256_load_ps(scales.v[0] + 8 * i));
      odd = _mm256_or_ps(odd, _mm256_cmp_ps(x[i], x[i], _CMP_UNORD_Q));
      largest = _mm256_max_ps(largest, _mm256_andnot_ps(sign, x[i]));
    }
    const float most = Avx2::max_of(largest);
    step = most / kLevels;
    // Weights so small that their inverse has no float add nothing.
    const __m256 by = _mm256_set1_ps(most > 1e-30f ? kLevels / most : 0.0f);
    for (int i = 0; i < tokens / 8; i += 2) {
      const __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(x[i], by));
      const __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(x[i + 1], by));
      const __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
      _mm256_store_si256(reinterpret_cast<__m256i*>(w + 8 * i), both);
    }
    return _mm256_movemask_ps(odd) == 0 && most <= 1e30f;
  }

  // Of C vectors of eight columns each, from the c-th on.
  template <int C>
  KVGAUGE_INLINE void add_columns(const int16_t (&w)[kBlock], int c, int tokens, float step, float* row) const {
    __m256i acc[C];
#pragma GCC unroll 8
    for (int j = 0; j < C; ++j) acc[j] = _mm256_setzero_si256();
#pragma GCC unroll 2
    for (int t = 0; t < tokens; t += 2) {
      int32_t two;
      std::memcpy(&two, w + t, 4);
      const __m256i weight = _mm256_set1_epi32(two);
#pragma GCC unroll 8
      for (int j = 0; j < C; ++j)
        acc[j] = _mm256_add_epi32(acc[j], _mm256_madd_epi16(weight, turned[t / 2][c + j]));
    }
    const __m256 by = _mm256_set1_ps(step);
#pragma GCC unroll 8
    for (int j = 0; j < C; ++j) {
      float* at = row + 8 * (c + j);
      _mm256_storeu_ps(at, _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[j]), by, _mm256_loadu_ps(at)));
    }
  }

  // As Avx2::sums, of integers.
  static KVGAUGE_INLINE __m256i sums8(const __m256i (&a)[8]) {
    const __m256i low = _mm256_hadd_epi32(_mm256_hadd_epi32(a[0], a[1]), _mm256_hadd_epi32(a[2], a[3]));
    const __m256i high = _mm256_hadd_epi32(_mm256_hadd_epi32(a[4], a[5]), _mm256_hadd_epi32(a[6], a[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31));
  }
};

}  // namespace
}  // namespace kvgauge

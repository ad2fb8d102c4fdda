// int4 and int2 caches in integer arithmetic: queries and K. Only for attend_packed_avx512.cpp.
#pragma once

#include "packed_row_avx512.h"

namespace kvgauge {
namespace {

// 16 rows of 16 words of 32 bits each become 16 columns.
KVGAUGE_INLINE void transpose(__m512i (&x)[16]) {
  __m512i y[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const __m512i a = _mm512_unpacklo_epi32(x[i], x[i + 1]), b = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    const __m512i c = _mm512_unpacklo_epi32(x[i + 2], x[i + 3]), d = _mm512_unpackhi_epi32(x[i + 2], x[i + 3]);
    y[i] = _mm512_unpacklo_epi64(a, c);
    y[i + 1] = _mm512_unpackhi_epi64(a, c);
    y[i + 2] = _mm512_unpacklo_epi64(b, d);
    y[i + 3] = _mm512_unpackhi_epi64(b, d);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i a = _mm512_shuffle_i32x4(y[i], y[i + 4], 0x88), b = _mm512_shuffle_i32x4(y[i], y[i + 4], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(y[i + 8], y[i + 12], 0x88);
    const __m512i d = _mm512_shuffle_i32x4(y[i + 8], y[i + 12], 0xdd);
    x[i] = _mm512_shuffle_i32x4(a, c, 0x88);
    x[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
    x[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
    x[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
}
// Sixteen tokens stand in the lanes of a vector. The query is rounded to Bytes bytes, once, or where K's scales are
// per channel (ByChannel), which it takes up, anew for each group of tokens.
template <int Bits, int RowBytes, int Bytes, bool ByChannel>
struct PackedKeys : PackedRow<Bits, RowBytes> {
  using Row = PackedRow<Bits, RowBytes>;
  using Row::kFields, Row::kMaxRow, Row::kChunks, Row::kMiddle, Row::k_dim, Row::k_row, Row::v_row;
  static constexpr int kWordElements = 4 * kFields;
  // Words that usually share scales: those of 64 elements, or by channel all.
  static constexpr int kUsual = RowBytes == 0 ? 0 : ByChannel ? RowBytes / 4 : 64 / kWordElements;
  static constexpr float kSteps = Bytes == 2 ? 127.0f * 256.0f : 127.0f;  // of a query, to either side of 0

  // Of each head, for word after word of a row and field after field of its bytes: four signed bytes.
  alignas(64) int32_t q[Bytes][kMaxGroup][kMaxRow / 4 * kFields];
  float q_step[kMaxGroup];
  // Of a group's elements, in those steps: their sum, and the middle code times what rounding took from it.
  float q_sum[kMaxGroup][kMaxGroups];
  int32_t q_rest[kMaxGroup][kMaxGroups];
  alignas(64) float query[ByChannel ? kMaxGroup * kMaxRow * kFields : 1];

  void take_query(const Problem& p, const float* scaled) {
    const int dims = k_dim(p);
    if constexpr (ByChannel) {
      std::memcpy(query, scaled, sizeof(float) * kMaxGroup * dims);
      return;
    }
    for (int g = 0; g < tiled(p.group); ++g) {
      const float* row = scaled + g * dims;
      const Rounding rounding(row, dims, kSteps);
      __m512 sum[kMaxGroups] = {}, lost[kMaxGroups] = {};
      for (int d = 0; d < dims; d += 16) {
        const __m512 x = _mm512_loadu_ps(row + d);
        const int group = p.group_of[d / kDimStep];
        sum[group] = _mm512_add_ps(sum[group], x);
        lost[group] = _mm512_add_ps(lost[group], take_rounded(g, d, x, rounding.by, rounding.step));
      }
      for (int i = 0; i < p.k_groups; ++i)
        take_sums(g, i, rounding.step, _mm512_reduce_add_ps(sum[i]), _mm512_reduce_add_ps(lost[i]));
    }
  }

  template <int H>
  KVGAUGE_INLINE void scores(const Problem& p, int first, const Block& block, const Block& v_ahead,
                             const Scales<Avx512>& scales, int tokens, float* out) {
    if constexpr (ByChannel) {
      for_token_groups(p, block, tokens, [&](int from, int to, const char* scale, const char* zero) {
        for (int h = first; h < first + H; ++h) take_channels(p, h, scale, zero);
        scores_of<H>(p, first, block, v_ahead, scales, from, to, out);
      });
    } else {
      scores_of<H>(p, first, block, v_ahead, scales, 0, tokens, out);
    }
  }

 private:
  // The query head as it meets codes of K: times their scales, in steps of its own; and its products with the zeros.
  void take_channels(const Problem& p, int head, const char* scale, const char* zero) {
    alignas(64) float scaled[kMaxRow * kFields];
    const float* row = query + head * k_dim(p);
    __m512 largest = _mm512_setzero_ps(), odd = _mm512_setzero_ps(), of_zeros = _mm512_setzero_ps();
    for (int d = 0; d < k_dim(p); d += 16) {
      const __m512 x = _mm512_loadu_ps(row + d), y = _mm512_mul_ps(x, Avx512::read<Format::fp16>(scale + 2 * d));
      of_zeros = _mm512_fmadd_ps(x, Avx512::read<Format::fp16>(zero + 2 * d), of_zeros);
      largest = _mm512_max_ps(largest, _mm512_abs_ps(y));
      odd = _mm512_add_ps(odd, _mm512_sub_ps(y, y));  // NaN where it is no number
      _mm512_store_ps(scaled + d, y);
    }
    odd = _mm512_add_ps(odd, _mm512_sub_ps(of_zeros, of_zeros));
    const float most = _mm512_reduce_max_ps(largest);
    const bool some = most > 1e-30f;  // as in Rounding
    const float step = (some ? most / kSteps : 1.0f) + _mm512_reduce_add_ps(odd);
    const float by = some ? kSteps / most : 0.0f;
    __m512 lost = _mm512_setzero_ps();
    for (int d = 0; d < k_dim(p); d += 16)
      lost = _mm512_add_ps(lost, take_rounded(head, d, _mm512_load_ps(scaled + d), by, step));
    take_sums(head, 0, step, _mm512_reduce_add_ps(of_zeros), _mm512_reduce_add_ps(lost));
  }

  // Sixteen elements of a query head from d on, as bytes; what rounding takes from them.
  KVGAUGE_INLINE __m512 take_rounded(int head, int d, __m512 x, float by, float step) {
    const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(by)));
    put_bytes(q[Bytes - 1][head] + d / 4, rounded);
    if constexpr (Bytes == 2)
      put_bytes(q[0][head] + d / 4, _mm512_srai_epi32(_mm512_add_epi32(rounded, _mm512_set1_epi32(128)), 8));
    return _mm512_fnmadd_ps(_mm512_cvtepi32_ps(rounded), _mm512_set1_ps(step), x);
  }

  // What stands beside the products of a group; a step that is NaN makes all of a head's scores NaN.
  void take_sums(int head, int group, float step, float sum, float lost) {
    q_step[head] = step;
    q_sum[head][group] = sum / step;
    const float rest = kMiddle * lost / step;
    q_rest[head][group] = rest == rest ? static_cast<int>(std::nearbyint(rest)) : 0;
  }

  // The low bytes of sixteen elements in order: word after word, and field after field of its bytes.
  static KVGAUGE_INLINE void put_bytes(int32_t* to, __m512i elements) {
    const __m128i order = Bits == 4 ? _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)
                                    : _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi8(_mm512_cvtepi32_epi8(elements), order));
  }

  // Of tokens [from, to).
  template <int H>
  KVGAUGE_INLINE void scores_of(const Problem& p, int first, const Block& block, const Block& v_ahead,
                                const Scales<Avx512>& scales, int from, int to, float* out) const {
    const int row = k_row(p), group_words = ByChannel ? row / 4 : p.group_elements / kWordElements;
    for (int t = from; t < to; t += 16) {
      __m512i words[16 * kChunks];
#pragma GCC unroll 2
      for (int c = 0; c < (row + 63) / 64; ++c) {
        __m512i x[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) x[i] = Row::load(block.k[t + i] + 64 * c, row - 64 * c);
        transpose(x);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) words[16 * c + i] = x[i];
      }
      if (first == 0)
        for (int i = 0; i < 16; ++i) prefetch_row(v_ahead.v[t + i], v_row(p));
      __m512 score[H];
#pragma GCC unroll 4
      for (int h = 0; h < H; ++h) score[h] = _mm512_setzero_ps();
      for (int g = 0, word = 0; g < p.k_groups; ++g) {
        const int end = word + group_words < row / 4 ? word + group_words : row / 4;
        __m512i sum[H];
        if (kUsual != 0 && group_words == kUsual)
          dot<H, kUsual>(words, word, 0, first, g, sum);
        else
          dot<H, 0>(words, word, end, first, g, sum);
        word = end;
#pragma GCC unroll 4
        for (int h = 0; h < H; ++h) {
          const __m512 of_zero = _mm512_set1_ps(q_sum[first + h][g]);
          if constexpr (ByChannel) {
            score[h] = _mm512_add_ps(_mm512_cvtepi32_ps(sum[h]), of_zero);
          } else {
            score[h] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[h]), _mm512_load_ps(scales.k[g] + t), score[h]);
            score[h] = _mm512_fmadd_ps(_mm512_load_ps(scales.k_zero[g] + t), of_zero, score[h]);
          }
        }
      }
#pragma GCC unroll 4
      for (int h = 0; h < H; ++h) 
        _mm512_store_ps(out + h * kBlock + t, _mm512_mul_ps(score[h], _mm512_set1_ps(q_step[first + h])));
    }
  }

  // Of sixteen tokens, the words of their rows from `from` on times the same of H query heads: Words of them, or (0)
  // those before `to`.
  template <int H, int Words>
  KVGAUGE_INLINE void dot(const __m512i* words, int from, int to, int first, int group, __m512i (&sum)[H]) const {
    __m512i high[H], low[H];  // without low bytes in queries `low` is their only one
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) {
      high[h] = _mm512_setzero_si512();
      low[h] = _mm512_set1_epi32(q_rest[first + h][group]);
    }
    if constexpr (Words != 0) {
#pragma GCC unroll 16
      for (int word = from; word < from + Words; ++word) add_word<H>(words[word], word, first, low, high);
    } else {
      for (int word = from; word < to; ++word) add_word<H>(words[word], word, first, low, high);
    }
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) sum[h] = Bytes == 2 ? _mm512_add_epi32(_mm512_slli_epi32(high[h], 8), low[h]) : low[h];
  }

  template <int H>
  KVGAUGE_INLINE void add_word(__m512i row, int word, int first, __m512i (&low)[H], __m512i (&high)[H]) const {
    const __m512i mask = _mm512_set1_epi8((1 << Bits) - 1);
#pragma GCC unroll 4
    for (int f = 0; f < kFields; ++f) {
      const __m512i codes = _mm512_and_si512(_mm512_srli_epi32(row, Bits * f), mask);
      const int at = word * kFields + f;
#pragma GCC unroll 4
      for (int h = 0; h < H; ++h) {
        add_products(low[h], codes, q[Bytes - 1][first + h][at]);
        if constexpr (Bytes == 2) add_products(high[h], codes, q[0][first + h][at]);
      }
    }
  }
};

}  // namespace
}  // namespace kvgauge

// int4 and int2 caches in integer arithmetic of AVX2: queries and K. Only for attend_avx2.cpp.
#pragma once

#include "avx2.h"
#include "rounding.h"

namespace kvgauge {
namespace {

// Codes of Bits bits by products of bytes (vpmaddubsw), with sums of 16 bits that are widened before they can overflow.
// Eight tokens stand in the lanes of a vector. The query is rounded to Bytes bytes.
// Row bytes that are known when this is compiled (0: not) are faster.
template <int Bits, int RowBytes, int Bytes>
struct PackedKeysAvx2 {
  static constexpr int kFields = 8 / Bits;  // of a byte
  static constexpr int kMaxRow = RowBytes ? RowBytes : kMaxGroupedDim / kFields;
  static constexpr int kWords = 4;  // whose products, -128 * (2^Bits - 1) twice at most, fit into 16 bits together
  static constexpr float kMiddle = 1 << (Bits - 1);
  static constexpr float kSteps = Bytes == 2 ? 127.0f * 256.0f : 127.0f;

  // Of each head, for word after word of a row and field after field of its bytes: four signed bytes.
  alignas(32) int8_t q[Bytes][kMaxGroup][kMaxRow / 4 * kFields][4];
  float q_step[kMaxGroup];
  // Of a group's elements their sum, and the middle code times what rounding took from it.
  float q_sum[kMaxGroup][kMaxGroups], q_rest[kMaxGroup][kMaxGroups];

  static KVGAUGE_INLINE int k_row(const Problem& p) { return RowBytes ? RowBytes : k_row_bytes(p); }
  static KVGAUGE_INLINE int k_dim(const Problem& p) { return k_row(p) * kFields; }

  void take_query(const Problem& p, const float* scaled) {
    std::memset(q_sum, 0, sizeof(q_sum));
    std::memset(q_rest, 0, sizeof(q_rest));
    for (int g = 0; g < tiled(p.group); ++g) {
      const float* row = scaled + g * k_dim(p);
      const Rounding rounding(row, k_dim(p), kSteps);
      q_step[g] = rounding.step;
      const __m256 by = _mm256_set1_ps(rounding.by), step = _mm256_set1_ps(rounding.step);
      for (int d = 0; d < k_dim(p); d += kDimStep) {
        const __m256 x[2] = {_mm256_loadu_ps(row + d), _mm256_loadu_ps(row + d + 8)};
        __m256 lost[2];
        __m256i rounded[2];
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          rounded[i] = _mm256_cvtps_epi32(_mm256_mul_ps(x[i], by));
          lost[i] = _mm256_fnmadd_ps(step, _mm256_cvtepi32_ps(rounded[i]), x[i]);
        }
        const int group = p.group_of[d / kDimStep];
        q_sum[g][group] += Avx2::sum_of(_mm256_add_ps(x[0], x[1]));
        q_rest[g][group] += kMiddle * Avx2::sum_of(_mm256_add_ps(lost[0], lost[1]));
        const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(rounded[0], rounded[1]), 0xd8);
        const __m256i low = _mm256_srai_epi16(_mm256_slli_epi16(words, 8), 8);
        store_in_order(low, q[Bytes - 1][g][d / 4]);
        if (Bytes == 2) store_in_order(_mm256_srai_epi16(_mm256_sub_epi16(words, low), 8), q[0][g][d / 4]);
      }
    }
  }

  template <int H>
  void scores(const Problem& p, int first, const Block& block, const Block& v_ahead, const Scales<Avx2>& scales,
              int tokens, float* out) const {
    const int row = k_row(p), v_bytes = RowBytes ? RowBytes : v_row_bytes(p);
    const int group_words = p.k_groups == 1 ? row / 4 : p.group_elements / kFields / 4;
    for (int t = 0; t < tokens; t += 8) {
      __m256i words[(kMaxRow + 31) / 32 * 8];
#pragma GCC unroll 2
      for (int at = 0; at < row; at += 32) transpose(block.k + t, at, row, words + at / 4);
      if (first == 0)
        for (int i = 0; i < 8; ++i) prefetch_row(v_ahead.v[t + i], v_bytes);
      __m256 score[H], rest[H];
#pragma GCC unroll 4
      for (int h = 0; h < H; ++h) score[h] = rest[h] = _mm256_setzero_ps();
      for (int g = 0, word = 0; g < p.k_groups; ++g) {
        const int end = word + group_words < row / 4 ? word + group_words : row / 4;
        __m256i sum[H];
#pragma GCC unroll 4
        for (int h = 0; h < H; ++h) sum[h] = _mm256_setzero_si256();
#pragma GCC unroll 2
        for (; word < end; word += kWords) add_words<H>(words, word, first, sum);
        const __m256 scale = _mm256_load_ps(scales.k[g] + t), zero = _mm256_load_ps(scales.k_zero[g] + t);
#pragma GCC unroll 4
        for (int h = 0; h < H; ++h) {
          score[h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[h]), scale, score[h]);
          rest[h] = _mm256_fmadd_ps(scale, _mm256_set1_ps(q_rest[first + h][g]), rest[h]);
          rest[h] = _mm256_fmadd_ps(zero, _mm256_set1_ps(q_sum[first + h][g]), rest[h]);
        }
      }
#pragma GCC unroll 4
      for (int h = 0; h < H; ++h) {
        const __m256 step = _mm256_set1_ps(q_step[first + h]);
        _mm256_store_ps(out + h * kBlock + t, _mm256_fmadd_ps(score[h], step, rest[h]));
      }
    }
  }

 private:
  // Sixteen words as bytes: those of the first field of four bytes of a row, then of the next.
  static KVGAUGE_INLINE void store_in_order(__m256i words, int8_t* to) {
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    const __m128i order = Bits == 4 ? _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)
                                    : _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm_store_si128(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi8(bytes, order));
  }

  // 32 bytes of the rows of eight tokens from `at` on (zeros past their end), word by word.
  static KVGAUGE_INLINE void transpose(const char* const* rows, int at, int row, __m256i* to) {
    __m256i x[8], y[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const char* from = rows[i] + at;
      if (row - at >= 32)
        x[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      else
        x[i] = _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      y[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
      y[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      x[i] = _mm256_unpacklo_epi64(y[i], y[i + 2]);
      x[i + 1] = _mm256_unpackhi_epi64(y[i], y[i + 2]);
      x[i + 2] = _mm256_unpacklo_epi64(y[i + 1], y[i + 3]);
      x[i + 3] = _mm256_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      to[i] = _mm256_permute2x128_si256(x[i], x[i + 4], 0x20);
      to[i + 4] = _mm256_permute2x128_si256(x[i], x[i + 4], 0x31);
    }
  }

  // Products of kWords words of eight tokens with the same of H heads.
  template <int H>
  KVGAUGE_INLINE void add_words(const __m256i* words, int word, int first, __m256i (&sum)[H]) const {
    const __m256i mask = _mm256_set1_epi8((1 << Bits) - 1);
    __m256i part[Bytes][H];
#pragma GCC unroll 2
    for (int b = 0; b < Bytes; ++b)
#pragma GCC unroll 4
      for (int h = 0; h < H; ++h) part[b][h] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int i = word; i < word + kWords; ++i)
#pragma GCC unroll 4
      for (int f = 0; f < kFields; ++f) {
        const __m256i codes = _mm256_and_si256(_mm256_srli_epi32(words[i], Bits * f), mask);
#pragma GCC unroll 2
        for (int b = 0; b < Bytes; ++b)
#pragma GCC unroll 4
          for (int h = 0; h < H; ++h) {
            int32_t four;
            std::memcpy(&four, q[b][first + h][i * kFields + f], 4);
            part[b][h] = _mm256_add_epi16(part[b][h], _mm256_maddubs_epi16(codes, _mm256_set1_epi32(four)));
            asm("" : "+x"(part[b][h]));
          }
      }
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) {
      sum[h] = _mm256_add_epi32(sum[h], _mm256_madd_epi16(part[Bytes - 1][h], _mm256_set1_epi16(1)));
      if constexpr (Bytes == 2)
        sum[h] = _mm256_add_epi32(sum[h], _mm256_madd_epi16(part[0][h], _mm256_set1_epi16(256)));
    }
  }
};

}  // namespace
}  // namespace kvgauge

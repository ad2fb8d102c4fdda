// V of integers in integer arithmetic of AVX2. Only for attend_avx2.cpp.
#pragma once

#include "plainly_avx2.h"
#include "weights_avx2.h"

namespace kvgauge {
namespace {

// int8, int4 and int2 by products of words of 16 bits (vpmaddwd), to which the weights are rounded and codes are
// widened: of two tokens and eight columns to a vector. What scales and zeros do is done to sums over a group; of int8
// a row is one group. Row bytes that are known when this is compiled (0: not) are faster.
template <int Bits, int RowBytes>
struct WordValuesAvx2 {
  static constexpr Format kFormat = Bits == 8 ? Format::int8 : Bits == 4 ? Format::int4 : Format::int2;
  static constexpr int kFields = 8 / Bits;  // of a byte
  static constexpr int kMaxDim = RowBytes ? RowBytes * kFields : Bits == 8 ? kMaxHeadDim : kMaxGroupedDim;
  static constexpr int kUnit = Bits == 8 ? 16 : 8;         // bytes of two tokens that are taken together
  static constexpr int kVectors = Bits == 8 ? 2 : kFields;  // that they become
  static constexpr float kMiddle = Bits == 8 ? 0.0f : 1 << (Bits - 1);  // of the codes

  static KVGAUGE_INLINE int row_stride(const Problem& p) { return row_floats(p); }

  template <int H>
  void add_rows(const Problem& p, float* weights, const Block& block, const Scales<Avx2>& scales, const Block& k_ahead,
                bool is_first, int tokens, float* rows, int stride) {
    WeightsAvx2<H, 2> w;
    if (!take_steps<Avx2, H, true>(p.v_groups, weights, scales, tokens, w.kLevels, w.step))  // a scale is no number
      return add_plainly<H, kFormat, kMaxDim>(p, weights, block, scales, tokens, rows, stride,
                                              [](int d) { return place(d); });
    for (int g = 0; g < p.v_groups; ++g) {
      float* rest = Bits == 8 ? nullptr : rest_at(p, rows + stride, g);
      w.template round<Bits != 8>(g, weights, scales, tokens, kMiddle, rest, stride);
    }

    // As many heads, then units, at a time as there are accumulators.
    constexpr int kHeads = H < 8 / kVectors ? H : 8 / kVectors, U = 8 / (kVectors * kHeads);
    const int units = v_row(p) / kUnit;
    const int k_row = RowBytes ? RowBytes : k_row_bytes(p), calls = (units + U - 1) / U * (H / kHeads) * tokens / 16;
    Ahead ahead(k_ahead.k, is_first ? tokens : 0, k_row, calls);
    for (int unit = 0; unit < units;) {
      const bool several = units - unit >= U;
#pragma GCC unroll 2
      for (int h = 0; h < H; h += kHeads)
        if (several)
          add_units<H, kHeads, U>(p, w, block, h, unit, tokens, rows, stride, ahead);
        else
          add_units<H, kHeads, 1>(p, w, block, h, unit, tokens, rows, stride, ahead);
      unit += several ? U : 1;
    }
    ahead.ask_for_the_rest();
  }

  // Rows in order, and what the zeros add put into them.
  static void settle(const Problem& p, float* rows) {
    if constexpr (Bits == 8) return;
    alignas(32) float old[kMaxGroupedDim + 16 * kFields + 32 * kMaxGroups];
    const int stride = row_stride(p);
    std::memcpy(old, rows, sizeof(float) * stride);
    float rest[kMaxGroups];
    for (int g = 0; g < p.v_groups; ++g) rest[g] = Avx2::sum_of(_mm256_loadu_ps(rest_at(p, old + stride, g)));
    for (int byte = 0; byte < v_row(p); byte += 8)
      for (int i = 0; i < 8; ++i)
        for (int f = 0; f < kFields; ++f)
          rows[(byte + i) * kFields + f] = old[byte * kFields + 8 * f + i] + rest[group_of(p, byte * kFields)];
  }

 private:
  static KVGAUGE_INLINE int v_row(const Problem& p) { return RowBytes ? RowBytes : v_row_bytes(p); }
  static KVGAUGE_INLINE int group_of(const Problem& p, int d) { return Bits == 8 ? 0 : p.group_of[d / kDimStep]; }

  // Where the sum of element d lies among the floats of a row.
  static KVGAUGE_INLINE int place(int d) {
    const int byte = d / kFields;
    return (byte / 8 * kFields + d % kFields) * 8 + byte % 8;
  }

  // Of U units of all rows, weights times codes, for kHeads of H heads: eight columns to a vector, of two tokens each.
  template <int H, int kHeads, int U>
  KVGAUGE_INLINE void add_units(const Problem& p, const WeightsAvx2<H, 2>& w, const Block& block, int first, int unit,
                                int tokens, float* rows, int stride, Ahead& ahead) const {
    int groups[U];
    for (int u = 0; u < U; ++u) groups[u] = group_of(p, (unit + u) * kUnit * kFields);
    __m256i acc[kHeads][U][kVectors];
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) acc[h][u][v] = _mm256_setzero_si256();
    for (int from = 0; from < tokens; from += 16) {
      ahead.ask();
#pragma GCC unroll 8
      for (int i = 0; i < 16; i += 2)
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) {
          const int t = from + i;
          __m256i codes[kVectors];
          take_unit(block.v[t] + (unit + u) * kUnit, block.v[t + 1] + (unit + u) * kUnit, codes);
#pragma GCC unroll 4
          for (int h = 0; h < kHeads; ++h) {
            const __m256i weight = _mm256_set1_epi32(w.pairs[first + h][groups[u]][t / 2]);
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v)
              add_words(acc[h][u][v], weight, codes[v]);
          }
        }
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        const __m256 by = _mm256_set1_ps(w.step[first + h][groups[u]]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          float* at = rows + (first + h) * stride + ((unit + u) * kVectors + v) * 8;
          _mm256_storeu_ps(at, _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[h][u][v]), by, _mm256_loadu_ps(at)));
        }
      }
  }

  // Two tokens' bytes, those of a column next to each other, as words.
  static KVGAUGE_INLINE void take_unit(const char* one, const char* other, __m256i (&codes)[kVectors]) {
    if constexpr (Bits == 8) {
      const __m128i a = Avx2::sixteen(one), b = Avx2::sixteen(other);
      codes[0] = _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b));
      codes[1] = _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b));
    } else {
      const auto eight = [](const char* from) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)); };
      const __m256i words = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(eight(one), eight(other)));
#pragma GCC unroll 4
      for (int f = 0; f < kFields; ++f)
        codes[f] = _mm256_and_si256(_mm256_srli_epi16(words, Bits * f), _mm256_set1_epi16((1 << Bits) - 1));
    }
  }
};

}  // namespace
}  // namespace kvgauge

// V of int4 and int2 by weights of a byte. Only for attend_avx2.cpp.
#pragma once

#include "plainly_avx2.h"
#include "weights_avx2.h"

namespace kvgauge {
namespace {

// By products of bytes (vpmaddubsw), two tokens and 16 columns to a vector. Sums of 16 bits, unsigned, hold those of 16
// tokens; then they go on to 32. What scales and zeros do is done to sums over a group. Row bytes that are known when this
// is compiled (0: not) are faster.
template <int Bits, int RowBytes>
struct ByteValuesAvx2 {
  static constexpr Format kFormat = Bits == 4 ? Format::int4 : Format::int2;
  static constexpr int kFields = 8 / Bits;  // of a byte
  static constexpr int kMaxDim = RowBytes ? RowBytes * kFields : kMaxGroupedDim;
  static constexpr float kMiddle = 1 << (Bits - 1);  // of the codes

  static KVGAUGE_INLINE int row_stride(const Problem& p) { return row_floats(p); }

  template <int H>
  void add_rows(const Problem& p, float* weights, const Block& block, const Scales<Avx2>& scales, const Block& k_ahead,
                bool is_first, int tokens, float* rows, int stride) {
    WeightsAvx2<H, 1> w;
    // Unsigned bytes are not for a scale below 0, or no number.
    if (!take_steps<Avx2, H, false>(p.v_groups, weights, scales, tokens, w.kLevels, w.step))
      return add_plainly<H, kFormat, kMaxDim>(p, weights, block, scales, tokens, rows, stride,
                                              [](int d) { return place(d); });
    for (int g = 0; g < p.v_groups; ++g)
      w.template round<true>(g, weights, scales, tokens, kMiddle, rest_at(p, rows + stride, g), stride);

    // As many heads at a time as there are accumulators.
    constexpr int kHeads = H < 8 / kFields ? H : 8 / kFields;
    constexpr bool kOdd = RowBytes % 32 || !RowBytes;  // whether rows may end in 16 bytes
    const int row = v_row(p), k_row = RowBytes ? RowBytes : k_row_bytes(p), group_bytes = p.group_elements / kFields;
    Ahead ahead(k_ahead.k, is_first ? tokens : 0, k_row, (row + 31) / 32 * 2 * (H / kHeads) * tokens / 16);
    for (int at = 0; at < row; at += 32) {
      const bool whole = row - at >= 32, apart = whole && p.v_groups > 1 && group_bytes % 32;
#pragma GCC unroll 2
      for (int h = 0; h < H; h += kHeads)
        if (kOdd && !whole)
          add<H, kHeads, !kOdd, false>(p, w, block, h, at, tokens, rows, stride, ahead);
        else if (apart)
          add<H, kHeads, true, true>(p, w, block, h, at, tokens, rows, stride, ahead);
        else
          add<H, kHeads, true, false>(p, w, block, h, at, tokens, rows, stride, ahead);
    }
    ahead.ask_for_the_rest();
  }

  // Rows in order, and what the zeros add put into them.
  static void settle(const Problem& p, float* rows) {
    alignas(32) float old[kMaxGroupedDim + 32 * kFields + 32 * kMaxGroups];
    const int stride = row_stride(p);
    std::memcpy(old, rows, sizeof(float) * stride);
    float rest[kMaxGroups];
    for (int g = 0; g < p.v_groups; ++g) rest[g] = Avx2::sum_of(_mm256_loadu_ps(rest_at(p, old + stride, g)));
    for (int byte = 0; byte < v_row(p); byte += 8) {
      const float* from = old + place(byte * kFields);
      for (int pair = 0; pair < 4; ++pair)
        for (int odd = 0; odd < 2; ++odd)
          for (int f = 0; f < kFields; ++f)
            rows[(byte + 2 * pair + odd) * kFields + f] =
                from[16 * f + 8 * odd + pair] + rest[p.group_of[byte * kFields / kDimStep]];
    }
  }

 private:
  static KVGAUGE_INLINE int v_row(const Problem& p) { return RowBytes ? RowBytes : v_row_bytes(p); }

  // Where the sum of element d lies among the floats of a row: 32 bytes after 32; of those the first eight of each 16
  // before the last; field by field; even bytes before odd ones.
  static KVGAUGE_INLINE int place(int d) {
    const int byte = d / kFields, vector = (byte / 32 * 2 + byte % 16 / 8) * kFields + d % kFields;
    return vector * 16 + byte % 2 * 8 + byte % 32 / 16 * 4 + byte % 8 / 2;
  }

  // Weights times codes of all rows, for kHeads of H heads: of 32 bytes from `at` on. Whole: not just 16 of them.
  // Apart: the second 16 are of another group.
  template <int H, int kHeads, bool Whole, bool Apart>
  KVGAUGE_INLINE void add(const Problem& p, const WeightsAvx2<H, 1>& w, const Block& block, int first, int at,
                          int tokens, float* rows, int stride, Ahead& ahead) const {
    float* const to = rows + first * stride + at * kFields;
    add_half<H, kHeads, Whole, Apart, false>(p, w, block, first, at, tokens, to, stride, ahead);
    add_half<H, kHeads, Whole, Apart, true>(p, w, block, first, at, tokens, to + 16 * kFields, stride, ahead);
  }

  // Of each 16 of those bytes the first or the last eight.
  template <int H, int kHeads, bool Whole, bool Apart, bool Half>
  KVGAUGE_INLINE void add_half(const Problem& p, const WeightsAvx2<H, 1>& w, const Block& block, int first, int at,
                               int tokens, float* rows, int stride, Ahead& ahead) const {
    const int group = p.group_of[at * kFields / kDimStep];
    const int other = Apart ? p.group_of[(at + 16) * kFields / kDimStep] : group;
    const __m256i mask = _mm256_set1_epi8((1 << Bits) - 1);
    // Of each lane of 32 bits the sum of the whole, and of its upper half. In memory: registers are for `acc`.
    constexpr int kSums = kHeads * kFields;
    __m256i sums[2 * kSums];
    __m256i *const all = sums, *const upper = sums + kSums;
    for (int i = 0; i < 2 * kSums; ++i) sums[i] = _mm256_setzero_si256();
    for (int from = 0; from < tokens; from += 16) {
      ahead.ask();
      const unsigned pair = static_cast<unsigned>(from) / 2;
      __m256i acc[kHeads][kFields];
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
        for (int f = 0; f < kFields; ++f) acc[h][f] = _mm256_setzero_si256();
#pragma GCC unroll 8
      for (int i = 0; i < 16; i += 2) {
        const __m256i a = load<Whole>(block.v[from + i] + at), b = load<Whole>(block.v[from + i + 1] + at);
        const __m256i two = Half ? _mm256_unpackhi_epi8(a, b) : _mm256_unpacklo_epi8(a, b);
        __m256i codes[kFields];
#pragma GCC unroll 4
        for (int f = 0; f < kFields; ++f) codes[f] = _mm256_and_si256(_mm256_srli_epi16(two, Bits * f), mask);
#pragma GCC unroll 4
        for (int h = 0; h < kHeads; ++h) {
          __m256i weight = _mm256_set1_epi32(w.pairs[first + h][group][pair + i / 2]);
          if constexpr (Apart)
            weight = _mm256_blend_epi32(weight, _mm256_set1_epi32(w.pairs[first + h][other][pair + i / 2]), 0xf0);
#pragma GCC unroll 4
          for (int f = 0; f < kFields; ++f) {
            acc[h][f] = _mm256_add_epi16(acc[h][f], _mm256_maddubs_epi16(weight, codes[f]));
            asm("" : "+x"(acc[h][f]));
          }
        }
      }
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
        for (int f = 0; f < kFields; ++f) {
          const int i = h * kFields + f;
          all[i] = _mm256_add_epi32(all[i], acc[h][f]);
          upper[i] = _mm256_add_epi32(upper[i], _mm256_srli_epi32(acc[h][f], 16));
        }
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const __m256 by = steps_of<H, Apart>(w, first + h, group, other);
#pragma GCC unroll 4
      for (int f = 0; f < kFields; ++f) {
        const int i = h * kFields + f;
        const __m256i odd = upper[i], even = _mm256_sub_epi32(all[i], _mm256_slli_epi32(odd, 16));
        float* to = rows + h * stride + f * 16;
        _mm256_storeu_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps(even), by, _mm256_loadu_ps(to)));
        _mm256_storeu_ps(to + 8, _mm256_fmadd_ps(_mm256_cvtepi32_ps(odd), by, _mm256_loadu_ps(to + 8)));
      }
    }
  }

  template <bool Whole>
  static KVGAUGE_INLINE __m256i load(const char* from) {
    if constexpr (Whole) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm256_zextsi128_si256(Avx2::sixteen(from));
  }

  template <int H, bool Apart>
  static KVGAUGE_INLINE __m256 steps_of(const WeightsAvx2<H, 1>& w, int h, int group, int other) {
    const __m256 by = _mm256_set1_ps(w.step[h][group]);
    return Apart ? _mm256_blend_ps(by, _mm256_set1_ps(w.step[h][other]), 0xf0) : by;
  }
};

}  // namespace
}  // namespace kvgauge

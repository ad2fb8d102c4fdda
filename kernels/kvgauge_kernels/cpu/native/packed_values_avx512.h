// int4 and int2 caches in integer arithmetic: weights and V. Only for attend_packed_avx512.cpp.
#pragma once

#include "packed_row_avx512.h"
#include "packed_weights_avx512.h"

namespace kvgauge {
namespace {

// A row is taken in pieces of 16 bytes, one a lane, of four tokens at a time. What a byte holds is not taken apart:
// a vector has its lowest code, the next its lowest two, the last the whole byte as a signed one, and sums over codes
// are differences of the sums over those. Weights are rounded to Bytes unsigned bytes.
template <int Bits, int RowBytes, int Bytes>
struct PackedValues : PackedRow<Bits, RowBytes> {
  using Row = PackedRow<Bits, RowBytes>;
  using Row::kFields, Row::kMaxRow, Row::kMiddle, Row::v_dim, Row::k_row, Row::v_row;
  static constexpr int kPiece = 16;
  static constexpr int kMaxPieces = (kMaxRow + kPiece - 1) / kPiece;

  // V of a block, its bytes signed: of a piece the bytes of four tokens for one byte of a row lie together.
  alignas(64) __m512i turned[kMaxPieces][kBlock / 4];

  static KVGAUGE_INLINE int row_stride(const Problem& p) { return row_floats(p); }

  template <int H>
  KVGAUGE_INLINE void add_rows(const Problem& p, float* weights, const Block& block, const Scales<Avx512>& scales,
                               const Block& k_ahead, bool is_first, int tokens, float* rows, int stride) {
    if (is_first) turn(p, block, tokens);
    PackedWeights<H, Bytes> w;
    // Unsigned bytes are not for a scale below 0, or no number.
    if (!take_steps<Avx512, H, false>(p.v_groups, weights, scales, tokens, w.kLevels, w.step))
      return add_plainly<H>(p, weights, block, scales, tokens, rows, stride);
    for (int g = 0; g < p.v_groups; ++g)
#pragma GCC unroll 4
      for (int h = 0; h < H; ++h)
        w.round(p, h, g, weights + h * kBlock, scales, tokens, kMiddle, rows + (h + 1) * stride);

    // As many heads, then pieces, at a time as there are accumulators.
    constexpr int kFree = 16 / (Bytes * kFields), kHeads = H < kFree ? H : kFree;
    constexpr int K = kFree / kHeads < 4 ? kFree / kHeads : 4;
    const int pieces = (v_row(p) + kPiece - 1) / kPiece;
    // The next K is asked for bit by bit meanwhile: more at once than a core can wait for would hold it up.
    Ahead ahead(k_ahead.k, is_first ? tokens : 0, k_row(p), (pieces + K - 1) / K * (H / kHeads) * tokens / 16);
    for (int piece = 0; piece < pieces;) {
      const int left = pieces - piece;
      if (left >= K)
        add_pieces<H, kHeads, K>(p, w, piece, tokens, rows, stride, ahead), piece += K;
      else
        add_pieces<H, kHeads, 1>(p, w, piece, tokens, rows, stride, ahead), ++piece;
    }
    ahead.ask_for_the_rest();
  }

  // Rows in order, and what the zeros add put into them.
  static void settle(const Problem& p, float* rows) {
    alignas(64) float old[(kMaxGroupedDim / kFields + kPiece) * kFields + 32 * kMaxGroups];
    const int stride = row_stride(p), dims = v_dim(p);
    std::memcpy(old, rows, sizeof(float) * stride);
    float rest[kMaxGroups][2];
    for (int g = 0; g < p.v_groups; ++g)
      for (int last = 0; last < 2; ++last)
        rest[g][last] = _mm512_reduce_add_ps(_mm512_loadu_ps(rest_at(p, old + stride, g, last)));
    for (int d = 0; d < dims; ++d)
      rows[d] = old[place(p, d)] + rest[p.group_of[d / kDimStep]][d % kFields == kFields - 1];
  }

 private:
  // Where the sum of element d lies among the floats of a row.
  static KVGAUGE_INLINE int place(const Problem& p, int d) {
    const int byte = d / kFields;
    if (!in_pairs(p)) return (byte / kPiece * kFields + d % kFields) * kPiece + byte % kPiece;
    const int vector = byte / 32 * 2 + byte % 16 / 8, lane = byte % 8 / 4 * 8 + byte % 32 / 16 * 4 + byte % 4;
    return (vector * kFields + d % kFields) * kPiece + lane;
  }

  // Whether vectors are of two pieces, half of each: it takes fewer steps to make, where their group is the same.
  static KVGAUGE_INLINE bool in_pairs(const Problem& p) {
    return RowBytes == 64 && p.group_elements % (2 * kPiece * kFields) == 0;
  }

  // The first bytes of rows that are short: those of tokens four apart, side by side.
  static KVGAUGE_INLINE __m512i load_side(const char* const* row, int side) {
    const auto at = [&](int s) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row[4 * s])); };
    const auto half = [&](int s) {
      if (side == 4) return _mm256_set_m128i(at(2 * s + 1), at(2 * s));
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row[4 * s]));
    };
    return _mm512_inserti64x4(_mm512_castsi256_si512(half(0)), half(1), 1);
  }

  void turn(const Problem& p, const Block& block, int tokens) {
    const __m512i to_signed = _mm512_set1_epi8(static_cast<char>(128));
    const int row = v_row(p), pieces = (row + kPiece - 1) / kPiece, side = row == 32 ? 2 : row == 16 ? 4 : 1;
    const bool pairs = in_pairs(p);
    for (int t = 0; t < tokens; t += 4 * side)
      for (int c = 0; c * 4 < pieces; ++c) {
        __m512i x[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const char* const* at = block.v + t + i;
          x[i] = side == 1 ? Row::load(*at + 64 * c, row - 64 * c) : load_side(at, side);
          x[i] = _mm512_xor_si512(x[i], to_signed);
        }
        const __m512i a = _mm512_unpacklo_epi8(x[0], x[1]), b = _mm512_unpacklo_epi8(x[2], x[3]);
        const __m512i d = _mm512_unpackhi_epi8(x[0], x[1]), e = _mm512_unpackhi_epi8(x[2], x[3]);
        const __m512i f = _mm512_unpacklo_epi16(a, b), g = _mm512_unpackhi_epi16(a, b);
        const __m512i h = _mm512_unpacklo_epi16(d, e), i = _mm512_unpackhi_epi16(d, e);
        // In each: of two pieces eight bytes.
        __m512i y[4] = {_mm512_shuffle_i32x4(f, g, 0x44), _mm512_shuffle_i32x4(h, i, 0x44),
                        _mm512_shuffle_i32x4(f, g, 0xee), _mm512_shuffle_i32x4(h, i, 0xee)};
        if (!pairs) {
          const __m512i z[4] = {_mm512_shuffle_i32x4(y[0], y[1], 0x88), _mm512_shuffle_i32x4(y[0], y[1], 0xdd),
                                _mm512_shuffle_i32x4(y[2], y[3], 0x88), _mm512_shuffle_i32x4(y[2], y[3], 0xdd)};
          std::memcpy(y, z, sizeof(y));
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          if (side == 1 && 4 * c + j < pieces) turned[4 * c + j][t / 4] = y[j];
          if (side != 1) turned[j % pieces][t / 4 + j / pieces] = y[j];
        }
      }
  }

  // Of K pieces of a row: weights times their codes, of all H heads, kHeads at a time.
  template <int H, int kHeads, int K>
  KVGAUGE_INLINE void add_pieces(const Problem& p, const PackedWeights<H, Bytes>& w, int piece, int tokens,
                                 float* rows, int stride, Ahead& ahead) const {
    // Whether the bytes of a piece are of one group.
    const bool alike = p.group_elements % (kPiece * kFields) == 0;
#pragma GCC unroll 4
    for (int h = 0; h < H; h += kHeads)
      if (alike)
        add_products_of<H, kHeads, K, true>(p, w, h, piece, tokens, rows, stride, ahead);
      else
        add_products_of<H, kHeads, K, false>(p, w, h, piece, tokens, rows, stride, ahead);
  }

  // For each lane of a vector of a piece the value for its group.
  template <bool Alike, class Of>
  static KVGAUGE_INLINE __m512i of_groups(const uint8_t (&groups)[kFields], Of of) {
    __m512i x = _mm512_set1_epi32(of(groups[0]));
    if constexpr (!Alike)
#pragma GCC unroll 4
      for (int i = 1; i < kFields; ++i) {
        constexpr int kLanes = 16 / kFields;
        x = _mm512_mask_set1_epi32(x, static_cast<__mmask16>(((1 << kLanes) - 1) << (i * kLanes)), of(groups[i]));
      }
    return x;
  }

  template <int H, int kHeads, int K, bool Alike>
  KVGAUGE_INLINE void add_products_of(const Problem& p, const PackedWeights<H, Bytes>& w, int first, int piece,
                                      int tokens, float* rows, int stride, Ahead& ahead) const {
    uint8_t groups[K][kFields];
    for (int j = 0; j < K; ++j)
      for (int i = 0; i < kFields; ++i) {
        const int d = ((piece + j) * kFields + i) * kDimStep;
        groups[j][i] = d < v_dim(p) ? p.group_of[d / kDimStep] : 0;
      }
    __m512i acc[Bytes][kHeads][K][kFields];
#pragma GCC unroll 2
    for (int b = 0; b < Bytes; ++b)
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
        for (int j = 0; j < K; ++j)
#pragma GCC unroll 4
          for (int f = 0; f < kFields; ++f) acc[b][h][j][f] = _mm512_setzero_si512();
    for (int t = 0; t < tokens; t += 16) {
      ahead.ask();
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const int at = t / 64 * 64 + 16 * i + t / 16 % 4 * 4;  // of four tokens' bytes, after packing
        __m512i codes[K][kFields];
#pragma GCC unroll 4
        for (int j = 0; j < K; ++j) {
          codes[j][kFields - 1] = turned[piece + j][t / 4 + i];
#pragma GCC unroll 4
          for (int f = 0; f < kFields - 1; ++f)
            codes[j][f] = _mm512_and_si512(codes[j][kFields - 1], _mm512_set1_epi8((1 << (f + 1) * Bits) - 1));
        }
#pragma GCC unroll 4
        for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 2
          for (int b = 0; b < Bytes; ++b)
#pragma GCC unroll 4
            for (int j = 0; j < K; ++j) {
              const __m512i weight = of_groups<Alike>(groups[j], [&](int g) {
                int32_t four;
                std::memcpy(&four, w.bytes[b][first + h][g] + at, 4);
                return four;
              });
#pragma GCC unroll 4
              for (int f = 0; f < kFields; ++f) add_products(acc[b][h][j][f], weight, codes[j][f]);
            }
      }
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
      for (int j = 0; j < K; ++j) {
        const __m512 step = _mm512_castsi512_ps(of_groups<Alike>(groups[j], [&](int g) {
          int32_t bits;
          std::memcpy(&bits, &w.step[first + h][g], 4);
          return bits;
        }));
        __m512i below = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int f = 0; f < kFields; ++f) {
          __m512i sum = acc[Bytes - 1][h][j][f];
          if constexpr (Bytes == 2) sum = _mm512_add_epi32(_mm512_slli_epi32(acc[0][h][j][f], 8), sum);
          const __m512 by = _mm512_mul_ps(step, _mm512_set1_ps(1.0f / (1 << f * Bits)));
          float* at = rows + (first + h) * stride + ((piece + j) * kFields + f) * kPiece;
          const __m512 own = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, below));
          _mm512_storeu_ps(at, _mm512_fmadd_ps(own, by, _mm512_loadu_ps(at)));
          below = sum;
        }
      }
  }

  template <int H>
  static void add_plainly(const Problem& p, float* weights, const Block& block, const Scales<Avx512>& scales,
                          int tokens, float* rows, int stride) {
    alignas(64) float sums[H * kMaxGroupedDim] = {};
    Plain<Avx512, Bits == 4 ? Format::int4 : Format::int2, 0, 0>::template add_rows<H>(
        p, weights, block, scales, block, false, tokens, sums, kMaxGroupedDim);
    for (int h = 0; h < H; ++h)
      for (int d = 0; d < v_dim(p); ++d) rows[h * stride + place(p, d)] += sums[h * kMaxGroupedDim + d];
  }
};

}  // namespace
}  // namespace kvgauge

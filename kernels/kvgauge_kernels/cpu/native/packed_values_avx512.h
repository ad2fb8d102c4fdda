// int4 and int2 caches in integer arithmetic: weights and V. Only for packed_avx512.h.
#pragma once

#include "packed_row_avx512.h"

namespace kvgauge {
namespace {

// Columns stand in the lanes of a vector, a quarter of it holding 16 bytes of a row. Where rows are short it holds
// several tokens side by side (`copies`), whose sums are added at the end. Weights are rounded to Bytes bytes.
template <int Bits, int RowBytes, int Bytes>
struct PackedValues : PackedRow<Bits, RowBytes> {
  using Row = PackedRow<Bits, RowBytes>;
  using Row::kFields, Row::kChunks, Row::kMiddle, Row::v_dim, Row::k_row, Row::v_row;
  static constexpr float kLevels = Bytes == 2 ? 65535.0f : 255.0f;  // of a weight, from 0 on

  // V's rows of a block by fours: the bytes of four tokens for one byte of a row lie together.
  alignas(64) __m512i turned[kBlock / 4][kChunks][4];
  // Of each lane of those vectors: its group, and its weight's place among those of a vector's tokens.
  alignas(64) int32_t lane_group[4 * kChunks][16], lane_weight[4 * kChunks][16];

  static KVGAUGE_INLINE int row_stride(const Problem& p) { return row_floats(p); }
  // Tokens side by side in a vector, in fours.
  static KVGAUGE_INLINE int copies(const Problem& p) {
    const int row = v_row(p);
    return row == 32 ? 2 : row == 16 ? 4 : 1;
  }

  void take_lanes(const Problem& p) {
    const int row = v_row(p), side = copies(p);
    for (int i = 0; i < 4 * kChunks; ++i)
      for (int l = 0; l < 16; ++l) {
        const int byte = i / 4 * 64 + l / 4 * 16 + i % 4 * 4 + l % 4, s = side == 1 ? 0 : byte / row;
        const int in_row = byte - s * row;
        lane_group[i][l] = in_row < row ? p.group_of[in_row * kFields / kDimStep] : 0;
        lane_weight[i][l] = s * p.v_groups + lane_group[i][l];
      }
  }

  template <int H>
  KVGAUGE_INLINE void add_rows(const Problem& p, float* weights, const Block& block, const Scales<Avx512>& scales,
                               const Block& k_ahead, bool is_first, int tokens, float* rows, int stride) {
    Weights<H> w;
    __m512 rest[H][RowBytes ? RowBytes * kFields / kDimStep : kMaxGroups];
    if (is_first) turn(p, block, tokens);
    bool rounded = true;
    for (int h = 0; h < H; ++h) {
      for (int g = 0; g < p.v_groups; ++g)
        rounded &= round_weights(weights + h * kBlock, scales, tokens, g, w.bytes_of_group, w.step[h][g], rest[h][g]);
      w.put(p, h, tokens);
    }
    // A scale below 0, or a NaN: not for unsigned bytes.
    if (!rounded) return add_plainly<H>(p, weights, block, scales, tokens, rows, stride);
    for (int h = 0; h < H; ++h)
      for (int g = 0; g < p.v_groups; ++g) {
        float* at = rows + (h + 1) * stride + (g - p.v_groups) * 16;
        _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), rest[h][g]));
      }

    constexpr int K = 16 / (H * kFields) > 4 ? 4 : 16 / (H * kFields);
    const int passes = (v_row(p) + 63) / 64 * (4 / K);
    // Whether the four vectors of 64 bytes want the same weights.
    const bool alike = p.group_elements % (16 * kFields) == 0;
    // The next K is asked for bit by bit meanwhile: more at once than a core can wait for would hold it up.
    Ahead ahead(k_ahead.k, is_first ? tokens : 0, k_row(p), passes * Bytes * tokens / (4 * copies(p)));
    for (int pass = 0; pass < passes; ++pass)
      if (alike)
        add_vectors<H, K, true>(p, w, pass * K, tokens, rows, stride, ahead);
      else
        add_vectors<H, K, false>(p, w, pass * K, tokens, rows, stride, ahead);
    ahead.ask_for_the_rest();
  }

  // Rows in order, and what the zeros add put into them.
  static void settle(const Problem& p, float* rows) {
    alignas(64) float old[row_room()];
    const int stride = row_stride(p), dims = v_dim(p);
    std::memcpy(old, rows, sizeof(float) * stride);
    float rest[kMaxGroups];
    for (int g = 0; g < p.v_groups; ++g)
      rest[g] = _mm512_reduce_add_ps(_mm512_loadu_ps(old + stride + (g - p.v_groups) * 16));
    for (int d = 0; d < dims; ++d) {
      float sum = rest[p.group_of[d / kDimStep]];
      for (int s = 0; s < copies(p); ++s) sum += old[place(p, d, s)];
      rows[d] = sum;
    }
  }

 private:
  template <int H>
  struct Weights {
    // By four tokens and group: a byte of each of the four. A vector is read at once, which may reach past the end.
    alignas(64) int32_t bytes[Bytes][H][kBlock / 4 * kMaxGroups + 16];
    alignas(64) float step[H][kMaxGroups];
    alignas(64) int32_t bytes_of_group[kMaxGroups][Bytes][kBlock / 4];  // of one head

    // Those of a head, from group by group to four tokens by four.
    KVGAUGE_INLINE void put(const Problem& p, int h, int tokens) {
      for (int b = 0; b < Bytes; ++b)
        for (int i = 0; i < tokens / 4; i += 4) {
          int32_t* to = bytes[b][h] + i * p.v_groups;
          const auto of = [&](int g) { return _mm_load_si128(reinterpret_cast<const __m128i*>(bytes_of_group[g][b] + i)); };
          if (p.v_groups == 1) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to), of(0));
          } else if (p.v_groups == 2) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_unpacklo_epi32(of(0), of(1)));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 4), _mm_unpackhi_epi32(of(0), of(1)));
          } else if (p.v_groups == 4) {
            const __m128i x = _mm_unpacklo_epi32(of(0), of(1)), y = _mm_unpackhi_epi32(of(0), of(1));
            const __m128i z = _mm_unpacklo_epi32(of(2), of(3)), w = _mm_unpackhi_epi32(of(2), of(3));
            const __m128i four[4] = {_mm_unpacklo_epi64(x, z), _mm_unpackhi_epi64(x, z), _mm_unpacklo_epi64(y, w),
                                     _mm_unpackhi_epi64(y, w)};
            for (int n = 0; n < 4; ++n) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 4 * n), four[n]);
          } else {
            for (int n = 0; n < 4; ++n)
              for (int g = 0; g < p.v_groups; ++g) to[n * p.v_groups + g] = bytes_of_group[g][b][i + n];
          }
        }
    }
  };

  static constexpr int row_room() { return (kMaxGroupedDim / kFields + 63) / 64 * 64 * kFields + 16 * kMaxGroups; }

  // Where the sum of element d lies among the floats of a row, in copy s.
  static KVGAUGE_INLINE int place(const Problem& p, int d, int s) {
    const int byte = d / kFields + s * v_row(p), vector = byte / 64 * 4 + byte % 16 / 4;
    return (vector * kFields + d % kFields) * 16 + byte % 64 / 16 * 4 + byte % 4;
  }

  // The first bytes of a row in each of its copies: those of tokens four apart.
  static KVGAUGE_INLINE __m512i load_copies(const char* const* row, int copies) {
    const auto at = [&](int s) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row[4 * s])); };
    if (copies == 2) {
      const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row[0]));
      const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row[4]));
      return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
    }
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set_m128i(at(1), at(0))), _mm256_set_m128i(at(3), at(2)), 1);
  }

  void turn(const Problem& p, const Block& block, int tokens) {
    const int row = v_row(p), side = copies(p);
    for (int t = 0, to = 0; t < tokens; t += 4 * side, ++to)
#pragma GCC unroll 2
      for (int c = 0; c < (row + 63) / 64; ++c) {
        __m512i x[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
          x[i] = side == 1 ? Row::load(block.v[t + i] + 64 * c, row - 64 * c) : load_copies(block.v + t + i, side);
        const __m512i a = _mm512_unpacklo_epi8(x[0], x[1]), b = _mm512_unpacklo_epi8(x[2], x[3]);
        const __m512i d = _mm512_unpackhi_epi8(x[0], x[1]), e = _mm512_unpackhi_epi8(x[2], x[3]);
        turned[to][c][0] = _mm512_unpacklo_epi16(a, b);
        turned[to][c][1] = _mm512_unpackhi_epi16(a, b);
        turned[to][c][2] = _mm512_unpacklo_epi16(d, e);
        turned[to][c][3] = _mm512_unpackhi_epi16(d, e);
      }
  }

  // The weights times a group's scales as bytes, in steps of the largest of them; false where that cannot be.
  // `rest`: what zeros and rounding make of the group's elements.
  static KVGAUGE_INLINE bool round_weights(const float* weights, const Scales<Avx512>& scales, int tokens, int g,
                                           int32_t (&bytes)[kMaxGroups][Bytes][kBlock / 4], float& step, __m512& rest) {
    __m512 x[kBlock / 16];
    __m512 largest = _mm512_setzero_ps();
    __mmask16 sound = 0xffff;
    for (int i = 0; i < tokens / 16; ++i) {
      x[i] = _mm512_mul_ps(_mm512_load_ps(weights + 16 * i), _mm512_load_ps(scales.v[g] + 16 * i));
      sound &= _mm512_cmp_ps_mask(x[i], _mm512_setzero_ps(), _CMP_GE_OQ);
      largest = _mm512_max_ps(largest, x[i]);
    }
    const float most = _mm512_reduce_max_ps(largest);
    step = most / kLevels;
    // Weights so small that their inverse has no float add nothing.
    const __m512 by = _mm512_set1_ps(most > 1e-30f ? kLevels / most : 0.0f), middle = _mm512_set1_ps(kMiddle);
    rest = _mm512_setzero_ps();
    for (int i = 0; i < tokens / 16; ++i) {
      const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(x[i], by));
      const __m512 lost = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(rounded), _mm512_set1_ps(step), x[i]);
      rest = _mm512_fmadd_ps(middle, lost, rest);
      rest = _mm512_fmadd_ps(_mm512_load_ps(weights + 16 * i), _mm512_load_ps(scales.v_zero[g] + 16 * i), rest);
      store_bytes(bytes[g][0] + 4 * i, _mm512_srli_epi32(rounded, 8 * (Bytes - 1)));
      if (Bytes == 2) store_bytes(bytes[g][Bytes - 1] + 4 * i, rounded);
    }
    return sound == 0xffff && most <= 1e30f;
  }

  // Of K of a row's vectors (four in 64 bytes) from the `first` on: weights times their bytes, for H query heads.
  template <int H, int K, bool Alike>
  KVGAUGE_INLINE void add_vectors(const Problem& p, const Weights<H>& w, int first, int tokens, float* rows,
                                  int stride, Ahead& ahead) const {
    __m512i group[K], place[K];
#pragma GCC unroll 4
    for (int j = 0; j < K; ++j) {
      group[j] = _mm512_load_si512(lane_group[first + j]);
      place[j] = _mm512_load_si512(lane_weight[first + j]);
    }
    __m512i acc[H * K * kFields];
#pragma GCC unroll 16
    for (int i = 0; i < H * K * kFields; ++i) acc[i] = _mm512_setzero_si512();
    add_bytes<H, K, Alike>(p, w.bytes[0], first, tokens, place, acc, ahead);
    if constexpr (Bytes == 2) {
#pragma GCC unroll 16
      for (int i = 0; i < H * K * kFields; ++i) acc[i] = _mm512_slli_epi32(acc[i], 8);
      add_bytes<H, K, Alike>(p, w.bytes[1], first, tokens, place, acc, ahead);
    }
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h)
#pragma GCC unroll 4
      for (int j = 0; j < K; ++j) {
        const __m512 by = _mm512_permutexvar_ps(group[j], _mm512_load_ps(w.step[h]));
#pragma GCC unroll 4
        for (int f = 0; f < kFields; ++f) {
          float* at = rows + h * stride + ((first + j) * kFields + f) * 16;
          _mm512_storeu_ps(at, _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[(h * K + j) * kFields + f]), by, _mm512_loadu_ps(at)));
        }
      }
  }

  template <int H, int K, bool Alike>
  KVGAUGE_INLINE void add_bytes(const Problem& p, const int32_t (&w)[H][kBlock / 4 * kMaxGroups + 16], int first,
                                int tokens, const __m512i (&place)[K], __m512i (&acc)[H * K * kFields],
                                Ahead& ahead) const {
    constexpr int N = K * kFields;
    const __m512i mask = _mm512_set1_epi8((1 << Bits) - 1);
    const int side = copies(p), groups = p.v_groups;
    const __m512i* row = &turned[0][first / 4][first % 4];
    int at = 0;
    for (int t = 0; t < tokens; t += 4 * side, row += 4 * kChunks, at += side * groups) {
      ahead.ask();
      __m512i codes[N];
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i)
        codes[i] = _mm512_and_si512(_mm512_srli_epi32(row[i / kFields], Bits * (i % kFields)), mask);
#pragma GCC unroll 4
      for (int h = 0; h < H; ++h) {
        const __m512i all = _mm512_loadu_si512(w[h] + at);
        __m512i weight = _mm512_permutexvar_epi32(place[0], all);
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) {
          if (!Alike && i && i % kFields == 0) weight = _mm512_permutexvar_epi32(place[i / kFields], all);
          add_products(acc[h * N + i], weight, codes[i]);
        }
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
      for (int d = 0; d < v_dim(p); ++d) rows[h * stride + place(p, d, 0)] += sums[h * kMaxGroupedDim + d];
  }
};

}  // namespace
}  // namespace kvgauge

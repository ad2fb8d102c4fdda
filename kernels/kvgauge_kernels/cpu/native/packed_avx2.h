// int4 and int2 caches in integer arithmetic of AVX2. Only for attend_avx2.cpp.
#pragma once

#include "avx2.h"
#include "rounding.h"

namespace kvgauge {
namespace {

// Codes of Bits bits by products of bytes (vpmaddubsw), as in packed_avx512.h, with sums of 16 bits that are widened
// before they can overflow. A row is taken in pieces of 16 bytes: of K a vector holds those of two tokens, of V the
// bytes of eight, a half of it four.
template <int Bits, int Bytes>
struct PackedAvx2 {
  static constexpr int kFields = 8 / Bits;  // of a byte
  static constexpr int kPiece = 16;
  static constexpr int kMaxPieces = kMaxGroupedDim / kFields / kPiece;
  static constexpr int kColumns = 4 * kFields;  // vectors of V's codes to a piece
  static constexpr int kStepTokens = 8;
  // Steps whose products, 255 * (2^Bits - 1) twice at most, fit into 16 bits together.
  static constexpr int kSteps16 = 4;
  static constexpr float kMiddle = 1 << (Bits - 1);
  static constexpr float kLevels = Bytes == 2 ? 65535.0f : 255.0f;
  static constexpr float kSteps = Bytes == 2 ? 127.0f * 256.0f : 127.0f;

  // Of each head, for piece after piece and field after field of its bytes: signed bytes, twice.
  alignas(32) int8_t q[Bytes][kMaxGroup][kMaxPieces][kFields][32];
  float q_step[kMaxGroup];
  float q_sum[kMaxGroup][kMaxGroups];   // of a group's elements
  float q_rest[kMaxGroup][kMaxGroups];  // the middle code times what rounding took from that sum
  // V's codes of a block: in each lane one column, of four tokens.
  alignas(32) __m256i codes[kBlock / kStepTokens][kMaxPieces][kColumns];

  // Whether rows and groups are whole pieces.
  static bool takes(const Problem& p) {
    const int group_bytes = p.group_elements * Bits / 8;
    return k_row_bytes(p) % kPiece == 0 && v_row_bytes(p) % kPiece == 0 &&
           (group_bytes % kPiece == 0 || (p.k_groups == 1 && p.v_groups == 1));
  }

  static KVGAUGE_INLINE int k_dim(const Problem& p) { return p.k_dim; }
  static KVGAUGE_INLINE int row_stride(const Problem& p) { return row_floats(p); }

  void take_query(const Problem& p, const float* scaled) {
    std::memset(q_sum, 0, sizeof(q_sum));
    std::memset(q_rest, 0, sizeof(q_rest));
    for (int g = 0; g < tiled(p.group); ++g) {
      const float* row = scaled + g * p.k_dim;
      const Rounding rounding(row, p.k_dim, kSteps);
      q_step[g] = rounding.step;
      for (int d = 0; d < p.k_dim; ++d) {
        const int rounded = rounding.of(row[d]), group = p.group_of[d / kDimStep], byte = d / kFields;
        q_sum[g][group] += row[d];
        q_rest[g][group] += kMiddle * (row[d] - rounding.step * static_cast<float>(rounded));
        const int low = static_cast<int8_t>(rounded & 255);
        for (int half = 0; half < 32; half += kPiece) {
          const int at = half + byte % kPiece;
          q[Bytes - 1][g][byte / kPiece][d % kFields][at] = static_cast<int8_t>(low);
          if (Bytes == 2) q[0][g][byte / kPiece][d % kFields][at] = static_cast<int8_t>((rounded - low) / 256);
        }
      }
    }
  }

  template <int H>
  void scores(const Problem& p, int first, const Block& block, const Block& v_ahead, const Scales<Avx2>& scales,
              int tokens, float* out) const {
    const int v_bytes = v_row_bytes(p);
    for (int t = 0; t < tokens; t += kStepTokens) {
      __m256 sum[H][4];
      // Tokens four apart are a pair: their sums end in order.
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) pair_sums<H>(p, first, block, scales, t, i, sum);
      if (first == 0)
        for (int i = 0; i < kStepTokens; ++i) prefetch_row(v_ahead.v[t + i], v_bytes);
#pragma GCC unroll 4
      for (int h = 0; h < H; ++h) {
        const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(sum[h][0], sum[h][1]), _mm256_hadd_ps(sum[h][2], sum[h][3]));
        __m256 score = _mm256_mul_ps(all, _mm256_set1_ps(q_step[first + h]));
        for (int g = 0; g < p.k_groups; ++g) {
          score = _mm256_fmadd_ps(_mm256_load_ps(scales.k[g] + t), _mm256_set1_ps(q_rest[first + h][g]), score);
          score = _mm256_fmadd_ps(_mm256_load_ps(scales.k_zero[g] + t), _mm256_set1_ps(q_sum[first + h][g]), score);
        }
        _mm256_storeu_ps(out + h * kBlock + t, score);
      }
    }
  }

  template <int H>
  void add_rows(const Problem& p, float* weights, const Block& block, const Scales<Avx2>& scales, const Block& k_ahead,
                bool is_first, int tokens, float* rows, int stride) {
    if (is_first) turn(p, block, tokens);
    const int pieces = v_row_bytes(p) / kPiece;
    Ahead ahead(k_ahead.k, is_first ? tokens : 0, k_row_bytes(p), H * pieces);
    for (int h = 0; h < H; ++h) {
      alignas(32) uint8_t w[kMaxGroups][Bytes][kBlock];
      float step[kMaxGroups];
      __m256 rest[kMaxGroups];
      bool rounded = true;
      for (int g = 0; g < p.v_groups; ++g)
        rounded &= round_weights(weights + h * kBlock, scales, tokens, g, w[g], step[g], rest[g]);
      float* row = rows + h * stride;
      // A scale below 0, or a NaN: not for unsigned bytes.
      if (!rounded) {
        add_plainly(p, weights + h * kBlock, block, scales, tokens, row);
        continue;
      }
      for (int g = 0; g < p.v_groups; ++g) {
        float* at = row + stride + (g - p.v_groups) * 16;
        _mm256_storeu_ps(at, _mm256_add_ps(_mm256_loadu_ps(at), rest[g]));
      }
      for (int piece = 0; piece < pieces; ++piece) {
        ahead.ask();
        const int g = p.group_of[piece * kPiece * kFields / kDimStep];
        add_piece(w[g], piece, tokens, step[g], row + piece * kColumns * 4);
      }
    }
    ahead.ask_for_the_rest();
  }

  // Rows in order, and what the zeros add put into them.
  static void settle(const Problem& p, float* rows) {
    alignas(32) float old[kMaxGroupedDim + 64 * kFields + 16 * kMaxGroups];
    const int stride = row_stride(p);
    std::memcpy(old, rows, sizeof(float) * stride);
    float rest[kMaxGroups];
    for (int g = 0; g < p.v_groups; ++g) rest[g] = Avx2::sum_of(_mm256_loadu_ps(old + stride + (g - p.v_groups) * 16));
    for (int d = 0; d < p.v_dim; ++d) rows[d] = old[place(d)] + rest[p.group_of[d / kDimStep]];
  }

 private:
  static constexpr int kFlushPieces = 4;  // whose products with a query's bytes fit into 16 bits together

  // Where the sum of element d lies among the floats of a row.
  static KVGAUGE_INLINE int place(int d) {
    const int byte = d / kFields;
    return (byte / 4 * kFields + d % kFields) * 4 + byte % 4;
  }

  static KVGAUGE_INLINE __m256i two(const char* low, const char* high) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low))),
                                   _mm_loadu_si128(reinterpret_cast<const __m128i*>(high)), 1);
  }

  static KVGAUGE_INLINE __m256i field(__m256i bytes, int f) {
    return _mm256_and_si256(_mm256_srli_epi16(bytes, Bits * f), _mm256_set1_epi8((1 << Bits) - 1));
  }

  // Sums of 16 bits each, of high bytes (`of[0]`, where there are two) and low ones, in 32.
  static KVGAUGE_INLINE __m256i widened(const __m256i (&of)[Bytes]) {
    const __m256i low = _mm256_madd_epi16(of[Bytes - 1], _mm256_set1_epi16(1));
    if constexpr (Bytes == 1) return low;
    return _mm256_add_epi32(low, _mm256_madd_epi16(of[0], _mm256_set1_epi16(256)));
  }

  // Of tokens t + i and t + i + 4, in a half each: codes times queries, times the groups' scales.
  template <int H>
  KVGAUGE_INLINE void pair_sums(const Problem& p, int first, const Block& block, const Scales<Avx2>& scales, int t,
                                int i, __m256 (&sum)[H][4]) const {
    const char *low = block.k[t + i], *high = block.k[t + i + 4];
    const int pieces = k_row_bytes(p) / kPiece;
    const int group_pieces = p.k_groups == 1 ? pieces : p.group_elements / kFields / kPiece;
    __m256 total[H];
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) total[h] = _mm256_setzero_ps();
    for (int g = 0, piece = 0; g < p.k_groups; ++g) {
      const __m256 all = _mm256_load_ps(scales.k[g] + t);
      const __m256 scale = _mm256_permutevar_ps(all, _mm256_set1_epi32(i));
      const int group_end = piece + group_pieces < pieces ? piece + group_pieces : pieces;
      while (piece < group_end) {
        const int end = piece + kFlushPieces < group_end ? piece + kFlushPieces : group_end;
        __m256i part[H][Bytes];
#pragma GCC unroll 4
        for (int h = 0; h < H; ++h)
          for (int b = 0; b < Bytes; ++b) part[h][b] = _mm256_setzero_si256();
        for (; piece < end; ++piece) {
          const __m256i bytes = two(low + piece * kPiece, high + piece * kPiece);
#pragma GCC unroll 4
          for (int f = 0; f < kFields; ++f) {
            const __m256i x = field(bytes, f);
#pragma GCC unroll 4
            for (int h = 0; h < H; ++h)
#pragma GCC unroll 2
              for (int b = 0; b < Bytes; ++b) {
                const auto* of = reinterpret_cast<const __m256i*>(q[b][first + h][piece][f]);
                part[h][b] = _mm256_add_epi16(part[h][b], _mm256_maddubs_epi16(x, _mm256_load_si256(of)));
              }
          }
        }
#pragma GCC unroll 4
        for (int h = 0; h < H; ++h)
          total[h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(widened(part[h])), scale, total[h]);
      }
    }
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) sum[h][i] = total[h];
  }

  void turn(const Problem& p, const Block& block, int tokens) {
    const int pieces = v_row_bytes(p) / kPiece;
    for (int t = 0; t < tokens; t += kStepTokens) {
      for (int piece = 0; piece < pieces; ++piece) {
        __m256i y[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) y[i] = two(block.v[t + i] + piece * kPiece, block.v[t + i + 4] + piece * kPiece);
        const __m256i a = _mm256_unpacklo_epi8(y[0], y[1]), b = _mm256_unpackhi_epi8(y[0], y[1]);
        const __m256i c = _mm256_unpacklo_epi8(y[2], y[3]), d = _mm256_unpackhi_epi8(y[2], y[3]);
        const __m256i fours[4] = {_mm256_unpacklo_epi16(a, c), _mm256_unpackhi_epi16(a, c),
                                  _mm256_unpacklo_epi16(b, d), _mm256_unpackhi_epi16(b, d)};
        __m256i* to = codes[t / kStepTokens][piece];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j)
#pragma GCC unroll 4
          for (int f = 0; f < kFields; ++f) _mm256_store_si256(to + j * kFields + f, field(fours[j], f));
      }
    }
  }

  // The weights times a group's scales as bytes, in steps of the largest of them; false where that cannot be.
  // `rest`: what zeros and rounding make of the group's elements.
  static KVGAUGE_INLINE bool round_weights(const float* weights, const Scales<Avx2>& scales, int tokens, int g,
                                           uint8_t (&bytes)[Bytes][kBlock], float& step, __m256& rest) {
    __m256 x[kBlock / 8];
    __m256 largest = _mm256_setzero_ps(), sound = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    for (int i = 0; i < tokens / 8; ++i) {
      x[i] = _mm256_mul_ps(_mm256_loadu_ps(weights + 8 * i), _mm256_load_ps(scales.v[g] + 8 * i));
      sound = _mm256_and_ps(sound, _mm256_cmp_ps(x[i], _mm256_setzero_ps(), _CMP_GE_OQ));
      largest = _mm256_max_ps(largest, x[i]);
    }
    const float most = Avx2::max_of(largest);
    step = most / kLevels;
    // Weights so small that their inverse has no float add nothing.
    const __m256 by = _mm256_set1_ps(most > 1e-30f ? kLevels / most : 0.0f), middle = _mm256_set1_ps(kMiddle);
    rest = _mm256_setzero_ps();
    for (int i = 0; i < tokens / 8; i += 2) {
      __m256i rounded[2];
#pragma GCC unroll 2
      for (int n = 0; n < 2; ++n) {
        rounded[n] = _mm256_cvtps_epi32(_mm256_mul_ps(x[i + n], by));
        const __m256 lost = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(rounded[n]), _mm256_set1_ps(step), x[i + n]);
        const int t = 8 * (i + n);
        rest = _mm256_fmadd_ps(middle, lost, rest);
        rest = _mm256_fmadd_ps(_mm256_loadu_ps(weights + t), _mm256_load_ps(scales.v_zero[g] + t), rest);
      }
      const __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded[0], rounded[1]), 0xd8);
      const auto store = [&](int b, __m256i halves) {
        _mm_store_si128(reinterpret_cast<__m128i*>(bytes[b] + 8 * i),
                        _mm_packus_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1)));
      };
      store(Bytes - 1, _mm256_and_si256(both, _mm256_set1_epi16(255)));
      if constexpr (Bytes == 2) store(0, _mm256_srli_epi16(both, 8));
    }
    return _mm256_movemask_ps(sound) == 255 && most <= 1e30f;
  }

  // Of one piece of every row: weights times codes, in steps, into its place in the row.
  KVGAUGE_INLINE void add_piece(const uint8_t (&w)[Bytes][kBlock], int piece, int tokens, float step,
                                float* row) const {
    __m256i sum[kColumns];
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; ++c) sum[c] = _mm256_setzero_si256();
    const int steps = tokens / kStepTokens;
    int at = 0;
    for (; at + kSteps16 <= steps; at += kSteps16) add_steps<kSteps16>(w, piece, at, sum);
    for (; at + 2 <= steps; at += 2) add_steps<2>(w, piece, at, sum);
    const __m128 by = _mm_set1_ps(step);
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; ++c) {
      const __m128i both = _mm_add_epi32(_mm256_castsi256_si128(sum[c]), _mm256_extracti128_si256(sum[c], 1));
      _mm_storeu_ps(row + 4 * c, _mm_fmadd_ps(_mm_cvtepi32_ps(both), by, _mm_loadu_ps(row + 4 * c)));
    }
  }

  template <int N>
  KVGAUGE_INLINE void add_steps(const uint8_t (&w)[Bytes][kBlock], int piece, int at, __m256i (&sum)[kColumns]) const {
    const __m256i spread = _mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0);
    __m256i weight[Bytes][N];
#pragma GCC unroll 2
    for (int b = 0; b < Bytes; ++b)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        int64_t eight;
        std::memcpy(&eight, w[b] + kStepTokens * (at + n), 8);
        weight[b][n] = _mm256_permutevar8x32_epi32(_mm256_set1_epi64x(eight), spread);
      }
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; ++c) {
      __m256i part[Bytes];
#pragma GCC unroll 2
      for (int b = 0; b < Bytes; ++b) {
        part[b] = _mm256_maddubs_epi16(weight[b][0], codes[at][piece][c]);
#pragma GCC unroll 4
        for (int n = 1; n < N; ++n)
          part[b] = _mm256_add_epi16(part[b], _mm256_maddubs_epi16(weight[b][n], codes[at + n][piece][c]));
      }
      sum[c] = _mm256_add_epi32(sum[c], widened(part));
    }
  }

  static void add_plainly(const Problem& p, float* weights, const Block& block, const Scales<Avx2>& scales, int tokens,
                          float* row) {
    alignas(64) float sums[kMaxGroupedDim] = {};
    Plain<Avx2, Bits == 4 ? Format::int4 : Format::int2, 0, 0>::template add_rows<1>(
        p, weights, block, scales, block, false, tokens, sums, kMaxGroupedDim);
    for (int d = 0; d < p.v_dim; ++d) row[place(d)] += sums[d];
  }
};

}  // namespace
}  // namespace kvgauge

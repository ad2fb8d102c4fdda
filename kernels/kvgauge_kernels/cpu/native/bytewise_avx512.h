// int8 caches in integer arithmetic. Only for attend_avx512.cpp.
#pragma once

#include "avx512.h"
#include "rounding.h"

namespace kvgauge {
namespace {

// int8 caches by integer products of bytes (VNNI: unsigned by signed). The query and the weights are rounded
// to Bytes unsigned bytes each, the high ones first: a sum over high bytes, times 256, is carried on over the
// low ones in the same accumulator. The cache's bytes are taken as they are.
// Head dims that are known when this is compiled (0: not) are faster.
template <int Dim, int Bytes>
struct Bytewise {
  static constexpr int kRoom = Dim ? Dim : kMaxHeadDim;
  static constexpr float kLevels = Bytes == 2 ? 65535.0f : 255.0f;  // of a weight, from 0 on
  static constexpr float kSteps = Bytes == 2 ? 32767.0f : 127.0f;   // of a query, to either side of 0

  alignas(64) uint8_t q[Bytes][kMaxGroup][kRoom];
  float q_step[kMaxGroup];
  // V's rows of a block, by fours: the bytes of four tokens for one column lie together.
  alignas(64) int8_t turned[kBlock / 4][kRoom / 16][64];

  static KVGAUGE_INLINE int k_dim(const Problem& p) { return Dim ? Dim : p.k_dim; }
  static KVGAUGE_INLINE int v_dim(const Problem& p) { return Dim ? Dim : p.v_dim; }
  static KVGAUGE_INLINE int row_stride(const Problem& p) { return padded_dim(v_dim(p)); }
  static void settle(const Problem&, float*) {}

  void take_query(const Problem& p, const float* scaled) {
    const int dims = k_dim(p);
    std::memset(q, Bytes == 2 ? 0 : 128, sizeof(q));
    for (int g = 0; g < tiled(p.group); ++g) {
      const float* row = scaled + g * dims;
      // 512 products of 127 and 32767 fit into 32 bits.
      const Rounding rounding(row, dims, Bytes == 2 && dims > 512 ? kSteps / 2 : kSteps);
      q_step[g] = rounding.step;
      const __m512 by = _mm512_set1_ps(rounding.by);
      for (int d = 0; d < dims; d += 16) {
        const __m512i x = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(row + d), by));
        const __m512i shifted = _mm512_add_epi32(x, _mm512_set1_epi32(Bytes == 2 ? 32768 : 128));
        store_bytes(q[0][g] + d, _mm512_srli_epi32(shifted, 8 * (Bytes - 1)));
        if (Bytes == 2) store_bytes(q[1][g] + d, shifted);
      }
    }
  }

  template <int H>
  void scores(const Problem& p, int first, const Block& block, const Block& v_ahead, const Scales<Avx512>& scales,
              int tokens, float* out) const {
    constexpr int T = 16 / H;
    const __m512i middle = _mm512_set1_epi8(static_cast<char>(128));
    const int dims = k_dim(p), chunks = (dims + 63) / 64;
    for (int t = 0; t < tokens; t += T) {
      __m512i acc[16];
#pragma GCC unroll 16
      for (int i = 0; i < T; ++i) {
        // An unsigned byte of the query is its value and 128: start at what takes those 128 away.
        __m512i start = _mm512_setzero_si512();
        __m512i row[kRoom / 64];
#pragma GCC unroll 2
        for (int c = 0; c < chunks; ++c) {
          row[c] = read(block.k[t + i], c, dims);
          add_products(start, middle, row[c]);
        }
        start = _mm512_sub_epi32(_mm512_setzero_si512(), start);
#pragma GCC unroll 4
        for (int h = 0; h < H; ++h) {
          __m512i sum = start;
#pragma GCC unroll 2
          for (int c = 0; c < chunks; ++c) add_products(sum, query(0, first + h, c), row[c]);
          if constexpr (Bytes == 2) {
            sum = _mm512_slli_epi32(sum, 8);
#pragma GCC unroll 2
            for (int c = 0; c < chunks; ++c) add_products(sum, query(1, first + h, c), row[c]);
          }
          acc[h * T + i] = sum;
        }
      }
      if (first == 0)
        for (int i = 0; i < T; ++i) prefetch_row(v_ahead.v[t + i], v_dim(p));
      alignas(64) float sum[16];
      _mm512_store_ps(sum, _mm512_cvtepi32_ps(sums16(acc)));
#pragma GCC unroll 4
      for (int h = 0; h < H; ++h) std::memcpy(out + h * kBlock + t, sum + h * T, T * sizeof(float));
    }
    for (int t = 0; t < tokens; t += 16) {
      const __m512 scale = _mm512_load_ps(scales.k[0] + t);
      for (int h = 0; h < H; ++h) {
        float* at = out + h * kBlock + t;
        _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), _mm512_mul_ps(scale, _mm512_set1_ps(q_step[first + h]))));
      }
    }
  }

  template <int H>
  void add_rows(const Problem& p, float* weights, const Block& block, const Scales<Avx512>& scales, const Block& k_ahead,
                bool is_first, int tokens, float* rows, int stride) {
    alignas(64) uint8_t w[Bytes][H][kBlock];
    float step[H];
    const int columns = stride / 16, k_bytes = k_dim(p);
    if (is_first) turn(p, block, tokens);
    bool rounded = true;
    for (int h = 0; h < H; ++h) rounded &= round_weights<H>(weights + h * kBlock, scales, tokens, h, w, step[h]);
    // A scale below 0, or a NaN: not for unsigned bytes.
    if (!rounded)
      return Plain<Avx512, Format::int8, Dim, Dim>::template add_rows<H>(p, weights, block, scales, k_ahead, false, tokens,
                                                                          rows, stride);

    constexpr int C = Dim && 16 / H > 4 ? (16 / H < Dim / 16 ? 16 / H : Dim / 16) : 4;
    for (int c = 0; c < columns; c += C) {
      __m512i acc[H * C];
#pragma GCC unroll 16
      for (int i = 0; i < H * C; ++i) acc[i] = _mm512_setzero_si512();
      // The next K is asked for bit by bit meanwhile: more at once than a core can wait for would hold it up.
      const int from = tokens * c / columns, to = tokens * (c + C) / columns;
      const char* const* ahead = is_first ? k_ahead.k + from : nullptr;
      add_bytes<H, C>(w[0], c, tokens, acc, ahead, to - from, k_bytes);
      if constexpr (Bytes == 2) {
#pragma GCC unroll 16
        for (int i = 0; i < H * C; ++i) acc[i] = _mm512_slli_epi32(acc[i], 8);
        add_bytes<H, C>(w[1], c, tokens, acc, nullptr, 0, 0);
      }
#pragma GCC unroll 4
      for (int h = 0; h < H; ++h)
#pragma GCC unroll 2
        for (int j = 0; j < C; j += 4) add_in_order(acc + h * C + j, step[h], rows + h * stride + (c + j) * 16);
    }
  }

 private:
  KVGAUGE_INLINE __m512i query(int byte, int head, int chunk) const {
    return _mm512_load_si512(q[byte][head] + 64 * chunk);
  }

  // The weights times V's scales as bytes, in steps of the largest of them; false where that cannot be.
  template <int H>
  static bool round_weights(const float* weights, const Scales<Avx512>& scales, int tokens, int h,
                            uint8_t (&w)[Bytes][H][kBlock], float& step) {
    __m512 x[kBlock / 16];
    __m512 largest = _mm512_setzero_ps();
    __mmask16 sound = 0xffff;
    for (int i = 0; i < tokens / 16; ++i) {
      x[i] = _mm512_mul_ps(_mm512_loadu_ps(weights + 16 * i), _mm512_load_ps(scales.v[0] + 16 * i));
      sound &= _mm512_cmp_ps_mask(x[i], _mm512_setzero_ps(), _CMP_GE_OQ);
      largest = _mm512_max_ps(largest, x[i]);
    }
    const float most = _mm512_reduce_max_ps(largest);
    // Weights so small that their inverse has no float add nothing.
    const __m512 by = _mm512_set1_ps(most > 1e-30f ? kLevels / most : 0.0f);
    step = most / kLevels;
    for (int i = 0; i < tokens / 16; ++i) {
      const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(x[i], by));
      store_bytes(w[0][h] + 16 * i, _mm512_srli_epi32(rounded, 8 * (Bytes - 1)));
      if (Bytes == 2) store_bytes(w[Bytes - 1][h] + 16 * i, rounded);
    }
    return sound == 0xffff && most <= 1e30f;
  }

  // 64 bytes of a row from the c-th 64 on; zeros past its end.
  static KVGAUGE_INLINE __m512i read(const char* row, int c, int dims) {
    if constexpr (Dim) return _mm512_loadu_si512(row + 64 * c);
    const int left = dims - 64 * c;
    return _mm512_maskz_loadu_epi8(left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1, row + 64 * c);
  }

  void turn(const Problem& p, const Block& block, int tokens) {
    const int dims = v_dim(p), chunks = (dims + 63) / 64;
    for (int t = 0; t < tokens; t += 4) {
#pragma GCC unroll 2
      for (int c = 0; c < chunks; ++c) {
        __m512i row[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) row[i] = read(block.v[t + i], c, dims);
        const __m512i a = _mm512_unpacklo_epi8(row[0], row[1]), b = _mm512_unpacklo_epi8(row[2], row[3]);
        const __m512i d = _mm512_unpackhi_epi8(row[0], row[1]), e = _mm512_unpackhi_epi8(row[2], row[3]);
        int8_t(*to)[64] = turned[t / 4] + 4 * c;
        _mm512_store_si512(to[0], _mm512_unpacklo_epi16(a, b));
        _mm512_store_si512(to[1], _mm512_unpackhi_epi16(a, b));
        _mm512_store_si512(to[2], _mm512_unpacklo_epi16(d, e));
        _mm512_store_si512(to[3], _mm512_unpackhi_epi16(d, e));
      }
    }
  }

  template <int H, int C>
  KVGAUGE_INLINE void add_bytes(const uint8_t (&w)[H][kBlock], int column, int tokens, __m512i* acc,
                                const char* const* ahead, int ahead_count, int row_bytes) const {
    int asked = 0;
#pragma GCC unroll 2
    for (int t = 0; t < tokens; t += 4) {
      if (ahead)
        for (const int until = ahead_count * (t + 4) / tokens; asked < until; ++asked)
          prefetch_row(ahead[asked], row_bytes);
      __m512i v[C];
#pragma GCC unroll 16
      for (int j = 0; j < C; ++j) v[j] = _mm512_load_si512(turned[t / 4][column + j]);
#pragma GCC unroll 4
      for (int h = 0; h < H; ++h) {
        int32_t four;
        std::memcpy(&four, w[h] + t, 4);
        const __m512i weight = _mm512_set1_epi32(four);
#pragma GCC unroll 16
        for (int j = 0; j < C; ++j) add_products(acc[h * C + j], weight, v[j]);
      }
    }
  }

  // Turning left four columns of every sixteen in each vector: put them in order and add them to the rows.
  static KVGAUGE_INLINE void add_in_order(const __m512i* acc, float step, float* rows) {
    const __m512i a = _mm512_shuffle_i32x4(acc[0], acc[1], 0x44), b = _mm512_shuffle_i32x4(acc[2], acc[3], 0x44);
    const __m512i c = _mm512_shuffle_i32x4(acc[0], acc[1], 0xee), d = _mm512_shuffle_i32x4(acc[2], acc[3], 0xee);
    const __m512i ordered[4] = {_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd),
                                _mm512_shuffle_i32x4(c, d, 0x88), _mm512_shuffle_i32x4(c, d, 0xdd)};
    const __m512 by = _mm512_set1_ps(step);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      _mm512_storeu_ps(rows + 16 * i, _mm512_fmadd_ps(_mm512_cvtepi32_ps(ordered[i]), by, _mm512_loadu_ps(rows + 16 * i)));
  }

  // As Avx512::sums, of integers.
  static KVGAUGE_INLINE __m512i sums16(const __m512i (&a)[16]) {
    __m512i b[8], c[4], d[2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const int j = i < 4 ? i : i + 4;
      b[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(a[j], a[j + 4], 0x44), _mm512_shuffle_i32x4(a[j], a[j + 4], 0xee));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      c[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(b[i], b[i + 4], 0x88), _mm512_shuffle_i32x4(b[i], b[i + 4], 0xdd));
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i)
      d[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(c[i], c[i + 2]), _mm512_unpackhi_epi32(c[i], c[i + 2]));
    return _mm512_add_epi32(_mm512_unpacklo_epi32(d[0], d[1]), _mm512_unpackhi_epi32(d[0], d[1]));
  }
};

}  // namespace
}  // namespace kvgauge

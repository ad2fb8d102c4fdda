// Scores and sums over a block in fp32, for every format. Included by attend_impl.h, and like it in an anonymous namespace.
#pragma once

#include <cmath>
#include <cstring>

#include "channels.h"
#include "scales.h"

namespace kvgauge {
namespace {

// Scores are in powers of two: exp2 needs no more multiplication.
inline float score_scale(int k_dim) { return 1.4426950408889634f / std::sqrt(static_cast<float>(k_dim)); }

// Scores of H query heads for tokens [from, to), as many at a time as there are accumulators: `add(t, acc)` adds a
// vector of products of head h and the token t + i to acc[h * T + i]. V is asked for meanwhile, once for all heads.
template <class Isa, int H, class Add>
KVGAUGE_INLINE void score_tokens(bool first, const Block& v_ahead, int v_bytes, int from, int to, float* out, Add add) {
  constexpr int T = Isa::kAccumulators / H;
  for (int t = from; t < to; t += T) {
    typename Isa::V acc[H * T];
#pragma GCC unroll 16
    for (int i = 0; i < H * T; ++i) acc[i] = Isa::zero();
    add(t, acc);
    if (first)
      for (int i = 0; i < T; ++i) prefetch_row(v_ahead.v[t + i], v_bytes);
    alignas(64) float sum[H * T];
    Isa::sums(acc, sum);
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) std::memcpy(out + h * kBlock + t, sum + h * T, T * sizeof(float));
  }
}

// Plain arithmetic in fp32, for every format; codes are converted like other numbers. Of int8 the scales are
// applied to the scores and the weights, of grouped formats to the elements. Head dims that are known when this
// is compiled (0: not) are faster. ByChannel: K's scales are per channel.
template <class Isa, Format F, int KDim, int VDim, bool ByChannel = false>
struct Plain {
  using V = typename Isa::V;
  static constexpr int kBits = bits_of(F);

  alignas(64) float q[kMaxGroup * (KDim ? KDim : kMaxHeadDim)];
  // Of the tokens at hand, where it is by channel.
  alignas(64) float channel_scale[ByChannel ? kMaxGroupedDim : 1], channel_zero[ByChannel ? kMaxGroupedDim : 1];

  static KVGAUGE_INLINE int k_dim(const Problem& p) { return KDim ? KDim : p.k_dim; }
  static KVGAUGE_INLINE int v_dim(const Problem& p) { return VDim ? VDim : p.v_dim; }
  static KVGAUGE_INLINE int row_stride(const Problem& p) {
    return VDim && !is_grouped(F) ? padded_dim(VDim) : row_floats(p);
  }
  static constexpr int bytes(int elements) { return elements * kBits / 8; }

  // `scaled`: kMaxGroup rows of the query, in fp32.
  void take_query(const Problem& p, const float* scaled) {
    std::memcpy(q, scaled, sizeof(float) * kMaxGroup * k_dim(p));
  }

  // Scores of H query heads from `first` on: out[h * kBlock + token].
  template <int H>
  void scores(const Problem& p, int first, const Block& block, const Block& v_ahead, const Scales<Isa>& scales,
              int tokens, float* out) {
    if constexpr (ByChannel) {
      for_token_groups(p, block, tokens, [&](int from, int to, const char* scale, const char* zero) {
        for (int d = 0; d < k_dim(p); d += Isa::kLanes) {
          Isa::store(channel_scale + d, Isa::template read<Format::fp16>(scale + 2 * d));
          Isa::store(channel_zero + d, Isa::template read<Format::fp16>(zero + 2 * d));
        }
        scores_of<H>(p, first, block, v_ahead, scales, from, to, out);
      });
    } else {
      scores_of<H>(p, first, block, v_ahead, scales, 0, tokens, out);
    }
  }

  // rows += weights * V, for H query heads, `stride` floats apart.
  template <int H>
  static void add_rows(const Problem& p, float* weights, const Block& block, const Scales<Isa>& scales,
                       const Block& k_ahead, bool prefetch, int tokens, float* rows, int stride) {
    const int k_bytes = bytes(k_dim(p)), vectors = v_dim(p) / Isa::kLanes, v_bytes = bytes(v_dim(p));
    constexpr int kFree = Isa::kAccumulators / H;
    constexpr int kFixed = VDim ? VDim / Isa::kLanes : kFree;
    constexpr int C = kFree < kFixed ? kFree : kFixed;
    if constexpr (F == Format::int8)
      for (int h = 0; h < H; ++h) multiply(weights + h * kBlock, scales.v[0], tokens);
    // So many tokens at a time that the columns of a row that are not in registers yet are still near. The next
    // K is asked for bit by bit meanwhile: more at once than a core can wait for would hold it up.
    constexpr int kNear = VDim == 0 || bytes(VDim) > 512 ? 8 : 16;
    const char* const* ahead = prefetch ? k_ahead.k : nullptr;
    for (int from = 0; from < tokens; from += kNear) {
      const int to = tokens - from < kNear ? tokens : from + kNear;
      int c = 0;
      for (; c + C <= vectors; c += C) add_columns<H, C>(p, weights, block, scales, ahead, from, to, c, stride, rows);
      if constexpr (VDim == 0)
        for (; c < vectors; ++c) add_columns<H, 1>(p, weights, block, scales, ahead, from, to, c, stride, rows);
      if (prefetch && k_bytes > v_bytes)
        for (int t = from; t < to; ++t) prefetch_row(k_ahead.k[t] + v_bytes, k_bytes - v_bytes);
    }
  }

  // The rows as they are added up are in order already.
  static void settle(const Problem&, float*) {}

 private:
  // Of tokens [from, to).
  template <int H>
  KVGAUGE_INLINE void scores_of(const Problem& p, int first, const Block& block, const Block& v_ahead,
                                const Scales<Isa>& scales, int from, int to, float* out) const {
    constexpr int T = Isa::kAccumulators / H;
    const int dims = k_dim(p);
    score_tokens<Isa, H>(first == 0, v_ahead, bytes(v_dim(p)), from, to, out, [&](int t, V(&acc)[H * T])
                             __attribute__((always_inline)) {
#pragma GCC unroll 2
      for (int d = 0; d < dims; d += Isa::kLanes) {
        V row[T];
#pragma GCC unroll 16
        for (int i = 0; i < T; ++i) row[i] = k_element(p, block.k[t + i], d, scales, t + i);
#pragma GCC unroll 4
        for (int h = 0; h < H; ++h) {
          const V x = Isa::load(q + (first + h) * dims + d);
#pragma GCC unroll 16
          for (int i = 0; i < T; ++i) acc[h * T + i] = Isa::fma(x, row[i], acc[h * T + i]);
        }
      }
    });
    if constexpr (F == Format::int8)
      for (int h = 0; h < H; ++h) multiply(out + h * kBlock, scales.k[0], to);
  }

  // A vector of elements of K from d on, of the t-th token.
  KVGAUGE_INLINE V k_element(const Problem& p, const char* row, int d, const Scales<Isa>& scales, int t) const {
    if constexpr (!ByChannel)
      return element(p, row, d, scales.k, scales.k_zero, t);
    else
      return Isa::fma(Isa::template read<F>(row + bytes(d)), Isa::load(channel_scale + d), Isa::load(channel_zero + d));
  }

  // A vector of elements from d on, of the t-th token.
  static KVGAUGE_INLINE V element(const Problem& p, const char* row, int d, const float (&scale)[kMaxGroups][kBlock],
                                  const float (&zero)[kMaxGroups][kBlock], int t) {
    const V x = Isa::template read<F>(row + bytes(d));
    if constexpr (!is_grouped(F)) return x;
    const int g = p.group_of[d / kDimStep];
    return Isa::fma(x, Isa::set(scale[g][t]), Isa::set(zero[g][t]));
  }

  static KVGAUGE_INLINE void multiply(float* numbers, const float* by, int count) {
    for (int t = 0; t < count; t += Isa::kLanes)
      Isa::store(numbers + t, Isa::mul(Isa::load(numbers + t), Isa::load(by + t)));
  }

  // Of tokens [from, to), C vectors from the c-th on.
  template <int H, int C>
  static KVGAUGE_INLINE void add_columns(const Problem& p, const float* weights, const Block& block,
                                         const Scales<Isa>& scales, const char* const* ahead, int from, int to,
                                         int c, int stride, float* rows) {
    V acc[H * C];
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h)
#pragma GCC unroll 16
      for (int j = 0; j < C; ++j) acc[h * C + j] = Isa::load(rows + h * stride + (c + j) * Isa::kLanes);
#pragma GCC unroll 2
    for (int t = from; t < to; ++t) {
      V row[C];
#pragma GCC unroll 16
      for (int j = 0; j < C; ++j)
        row[j] = element(p, block.v[t], (c + j) * Isa::kLanes, scales.v, scales.v_zero, t);
      if (ahead && VDim == 0) prefetch_row(ahead[t] + bytes(c * Isa::kLanes), bytes(C * Isa::kLanes));
      if constexpr (VDim != 0) {
        // Row after row also where the columns take several passes: memory likes to be read in order.
        constexpr int kPasses = VDim / (C * Isa::kLanes);
        const int taken = c / C * (to - from) + t - from;
        if (ahead && taken % kPasses == 0) prefetch_row(ahead[from + taken / kPasses], bytes(VDim));
      }
#pragma GCC unroll 4
      for (int h = 0; h < H; ++h) {
        const V w = Isa::set(weights[h * kBlock + t]);
#pragma GCC unroll 16
        for (int j = 0; j < C; ++j) acc[h * C + j] = Isa::fma(w, row[j], acc[h * C + j]);
      }
    }
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h)
#pragma GCC unroll 16
      for (int j = 0; j < C; ++j) Isa::store(rows + h * stride + (c + j) * Isa::kLanes, acc[h * C + j]);
  }
};

}  // namespace
}  // namespace kvgauge

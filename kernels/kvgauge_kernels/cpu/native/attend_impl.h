// The algorithm, over a level's instructions. Included by the source of each level, once: everything here is
// in an anonymous namespace, so that no level's code can be linked in place of another's.
//
// A part of a sequence is taken in blocks (Problem::block_tokens): their scores go to a small buffer, their weights
// replace them there, and V's rows are added up by those. K and V are converted in registers. While a block's
// K is read its V is asked for, and while its V is read the K of the next: the CPU's own prefetching alone gives
// half of the bandwidth.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

#include "attend.h"
#include "block.h"
#include "channels.h"
#include "scales.h"

namespace kvgauge {
namespace {

constexpr float kInfinity = __builtin_huge_valf();

// Scores are in powers of two: exp2 needs no more multiplication.
inline float score_scale(int k_dim) { return 1.4426950408889634f / std::sqrt(static_cast<float>(k_dim)); }

// Whether an arithmetic scales its scores itself, and not the query.
template <class Arithmetic>
constexpr bool kQueryAsGiven = false;

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

// The running maximum and sum of H query heads, over one block more: scores become weights, and the rows added up so
// far are made relative to the new maximum. All heads at a time: one after another each would wait for its own.
template <class Isa, int H>
KVGAUGE_INLINE void weigh(float* scores, int tokens, int padded, float* largest, float* sum, float* rows, int stride) {
  using V = typename Isa::V;
  V top[H], shift[H], total[H];
#pragma GCC unroll 4
  for (int h = 0; h < H; ++h) {
    for (int t = tokens; t < padded; ++t) scores[h * kBlock + t] = -kInfinity;
    top[h] = Isa::set(largest[h]);
  }
  for (int t = 0; t < padded; t += Isa::kLanes)
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) top[h] = Isa::max(top[h], Isa::load(scores + h * kBlock + t));
#pragma GCC unroll 4
  for (int h = 0; h < H; ++h) {
    const float now = Isa::max_of(top[h]);
    // Nothing but -inf so far: every weight is 0, and not exp2(-inf + inf).
    const float base = now == -kInfinity ? 0.0f : now;
    if (now != largest[h]) {
      const float factor = largest[h] == -kInfinity ? 0.0f : std::exp2(largest[h] - base);
      const V by = Isa::set(factor);
      float* row = rows + h * stride;
      for (int d = 0; d < stride; d += Isa::kLanes) Isa::store(row + d, Isa::mul(by, Isa::load(row + d)));
      sum[h] *= factor;
      largest[h] = now;
    }
    shift[h] = Isa::set(base);
    total[h] = Isa::zero();
  }
  for (int t = 0; t < padded; t += Isa::kLanes)
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) {
      float* at = scores + h * kBlock + t;
      const V weight = Isa::exp2(Isa::sub(Isa::load(at), shift[h]));
      Isa::store(at, weight);
      total[h] = Isa::add(total[h], weight);
    }
#pragma GCC unroll 4
  for (int h = 0; h < H; ++h) sum[h] += Isa::sum_of(total[h]);
}

template <class Isa>
void load_query(const Problem& p, const char* row, float by, float* out) {
  using V = typename Isa::V;
  const V scale = Isa::set(by);
  for (int d = 0; d < p.k_dim; d += Isa::kLanes) {
    V x;
    if (p.q_dtype == Format::fp32)
      x = Isa::template read<Format::fp32>(row + 4 * d);
    else if (p.q_dtype == Format::fp16)
      x = Isa::template read<Format::fp16>(row + 2 * d);
    else
      x = Isa::template read<Format::bf16>(row + 2 * d);
    Isa::store(out + d, Isa::mul(x, scale));
  }
}

// Query heads in tiles of 4; a rest of 3 is computed as 4, the fourth being zeros.
template <class Do>
KVGAUGE_INLINE void for_tiles(int group, Do each) {
  int first = 0;
  for (; group - first >= 3; first += 4) each(std::integral_constant<int, 4>(), first);
  if (group - first == 2) each(std::integral_constant<int, 2>(), first);
  if (group - first == 1) each(std::integral_constant<int, 1>(), first);
}

// Room for some of them, kept by each thread: more than the stack of some threads holds.
template <class Arithmetic>
Arithmetic* room_for(int64_t count) {
  struct Free {
    void operator()(Arithmetic* at) const { ::operator delete(at, std::align_val_t{alignof(Arithmetic)}); }
  };
  thread_local std::unique_ptr<Arithmetic, Free> memory;
  thread_local int64_t held = 0;
  if (held < count) {
    memory.reset();
    const std::align_val_t alignment{alignof(Arithmetic)};
    memory.reset(static_cast<Arithmetic*>(::operator new(sizeof(Arithmetic) * static_cast<size_t>(count), alignment)));
    held = count;
  }
  return memory.get();
}

template <class Isa, class Arithmetic>
void attend(const Problem& p, const Task& task, Parts parts, int64_t apart) {
  const int k_dim = Arithmetic::k_dim(p), stride = Arithmetic::row_stride(p);
  const int heads_in_tiles = tiled(p.group);
  const float by = kQueryAsGiven<Arithmetic> ? 1.0f : score_scale(k_dim);
  Arithmetic* const arithmetic = room_for<Arithmetic>(task.heads);
  for (int64_t i = 0; i < task.heads; ++i) {
    alignas(64) float query[kMaxGroup * kMaxHeadDim];
    std::memset(query, 0, sizeof(float) * kMaxGroup * k_dim);
    const char* q = p.q + task.sequence * p.q_sequence + (task.head + i) * p.group * p.q_head;
    for (int g = 0; g < p.group; ++g) load_query<Isa>(p, q + g * p.q_head, by, query + g * k_dim);
    arithmetic[i].take_query(p, query);
    Part& part = parts[i * apart];
    for (int g = 0; g < kMaxGroup; ++g) {
      part.largest[g] = -kInfinity;
      part.sum[g] = 0.0f;
    }
    std::memset(part.rows(), 0, sizeof(float) * stride * heads_in_tiles);
  }

  alignas(64) float scores[kMaxGroup * kBlock];
  Scales<Isa> scales;
  // The block at hand and the two after it: head after head, then the next tokens.
  Block blocks[3] = {};
  int64_t to_find = task.first, head_to_find = 0;
  const auto find = [&](Block& block, const Block& before) {
    if (head_to_find == 0)
      block.find(p, task.sequence, task.head, to_find, task.last);
    else
      block.shift(p, before, task.head + head_to_find);
    block.announce(p);
    if (++head_to_find == task.heads) {
      head_to_find = 0;
      to_find += block.tokens;
    }
  };
  find(blocks[0], blocks[2]);
  find(blocks[1], blocks[0]);
  int at = 0;
  for (int64_t token = task.first, taken = 0; token < task.last; token += taken)
    for (int64_t i = 0; i < task.heads; ++i, at = (at + 1) % 3) {
      Block& block = blocks[at];
      taken = block.tokens;
      const Block& next = blocks[(at + 1) % 3];
      Block& second = blocks[(at + 2) % 3];
      find(second, next);
      // Rows are asked for half a block before they are used; where blocks lie apart, a block and a half, as each
      // begins with a look-up of where its pages of memory are.
      const Block &v_ahead = task.heads > 1 ? next : block, &k_ahead = task.heads > 1 ? second : next;
      if (is_scaled(p.format)) scales.read(p, block);
      Part& part = parts[i * apart];
      const int padded = (block.tokens + 15) / 16 * 16;
      for_tiles(p.group, [&](auto heads, int g) {
        arithmetic[i].template scores<heads()>(p, g, block, v_ahead, scales, padded, scores + g * kBlock);
      });
      for_tiles(p.group, [&](auto heads, int g) {
        float *of_tile = scores + g * kBlock, *rows = part.rows() + g * stride;
        weigh<Isa, heads()>(of_tile, block.tokens, padded, part.largest + g, part.sum + g, rows, stride);
        arithmetic[i].template add_rows<heads()>(p, of_tile, block, scales, k_ahead, g == 0, padded, rows, stride);
      });
    }
  for (int64_t i = 0; i < task.heads; ++i)
    for (int g = 0; g < p.group; ++g) Arithmetic::settle(p, parts[i * apart].rows() + g * stride);
}

template <class Isa>
void write_row(Format dtype, const float* row, int count, char* out) {
  if (dtype == Format::fp32) std::memcpy(out, row, sizeof(float) * count);
  if (dtype == Format::fp16) Isa::to_fp16(row, count, reinterpret_cast<uint16_t*>(out));
  if (dtype == Format::bf16) {
    uint16_t* to = reinterpret_cast<uint16_t*>(out);
    for (int d = 0; d < count; ++d) {
      uint32_t bits;
      std::memcpy(&bits, row + d, 4);
      const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
      const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
      to[d] = static_cast<uint16_t>(nan ? 0x7fc0u : rounded);
    }
  }
}

template <class Isa>
void finish(const Problem& p, int64_t sequence, int64_t head, Parts parts, int64_t count) {
  using V = typename Isa::V;
  const int dims = p.v_dim, stride = row_floats(p);
  const int64_t row_bytes = static_cast<int64_t>(dims) * bits_of(p.q_dtype) / 8;
  char* out = p.out + (sequence * p.heads + head) * p.group * row_bytes;
  alignas(64) float row[kMaxHeadDim];
  for (int g = 0; g < p.group; ++g) {
    float largest = -kInfinity;
    for (int64_t i = 0; i < count; ++i) largest = largest > parts[i].largest[g] ? largest : parts[i].largest[g];
    float sum = 0.0f;
    std::memset(row, 0, sizeof(row));
    for (int64_t i = 0; i < count; ++i) {
      const float own = parts[i].largest[g];
      const float share = own == largest ? 1.0f : std::exp2(own - largest);
      sum += share * parts[i].sum[g];
      for (int d = 0; d < dims; d += Isa::kLanes)
        Isa::store(row + d, Isa::fma(Isa::set(share), Isa::load(parts[i].rows() + g * stride + d), Isa::load(row + d)));
    }
    if (p.lse) p.lse[(sequence * p.heads + head) * p.group + g] = (largest + std::log2(sum)) * 0.6931471805599453f;
    const V by = Isa::set(1.0f / sum);
    for (int d = 0; d < dims; d += Isa::kLanes) Isa::store(row + d, Isa::mul(by, Isa::load(row + d)));
    write_row<Isa>(p.q_dtype, row, dims, out + g * row_bytes);
  }
}

template <class Isa, int KDim, int VDim>
Kernels plain_kernels_of(const Problem& p) {
  switch (p.format) {
    case Format::fp32: return {attend<Isa, Plain<Isa, Format::fp32, KDim, VDim>>, finish<Isa>};
    case Format::fp16: return {attend<Isa, Plain<Isa, Format::fp16, KDim, VDim>>, finish<Isa>};
    case Format::bf16: return {attend<Isa, Plain<Isa, Format::bf16, KDim, VDim>>, finish<Isa>};
    case Format::int4: return {attend<Isa, Plain<Isa, Format::int4, KDim, VDim>>, finish<Isa>};
    case Format::int2: return {attend<Isa, Plain<Isa, Format::int2, KDim, VDim>>, finish<Isa>};
    case Format::fp8_e4m3: return {attend<Isa, Plain<Isa, Format::fp8_e4m3, KDim, VDim>>, finish<Isa>};
    case Format::fp8_e5m2: return {attend<Isa, Plain<Isa, Format::fp8_e5m2, KDim, VDim>>, finish<Isa>};
    default: return {attend<Isa, Plain<Isa, Format::int8, KDim, VDim>>, finish<Isa>};
  }
}

// K per channel: int4 and int2.
template <class Isa, int Dim>
Kernels channel_kernels_of(const Problem& p) {
  if (p.format == Format::int4) return {attend<Isa, Plain<Isa, Format::int4, Dim, Dim, true>>, finish<Isa>};
  return {attend<Isa, Plain<Isa, Format::int2, Dim, Dim, true>>, finish<Isa>};
}

template <class Isa>
Kernels plain_kernels(const Problem& p) {
  if (p.k_group_tokens)
    return p.k_dim == 128 && p.v_dim == 128 ? channel_kernels_of<Isa, 128>(p) : channel_kernels_of<Isa, 0>(p);
  if (p.k_dim == 128 && p.v_dim == 128) return plain_kernels_of<Isa, 128, 128>(p);
  if (p.k_dim == 64 && p.v_dim == 64) return plain_kernels_of<Isa, 64, 64>(p);
  return plain_kernels_of<Isa, 0, 0>(p);
}

}  // namespace
}  // namespace kvgauge

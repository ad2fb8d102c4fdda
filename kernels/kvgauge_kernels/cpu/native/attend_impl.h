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
#include "plain.h"

namespace kvgauge {
namespace {

constexpr float kInfinity = __builtin_huge_valf();

// Whether an arithmetic scales its scores itself, and not the query.
template <class Arithmetic>
constexpr bool kQueryAsGiven = false;

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
      // Rows are asked for half a block before they are used, or a block and a half.
      const bool early = Isa::kEarlyWhereApart && task.heads > 1;
      const Block &v_ahead = early ? next : block, &k_ahead = early ? second : next;
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

// Head dims that are known when this is compiled, or 0.
template <class Do>
Kernels for_head_dims(const Problem& p, Do kernels_of) {
  if (p.k_dim == 128 && p.v_dim == 128) return kernels_of(std::integral_constant<int, 128>());
  if (p.k_dim == 64 && p.v_dim == 64) return kernels_of(std::integral_constant<int, 64>());
  return kernels_of(std::integral_constant<int, 0>());
}

template <class Isa, Format F>
Kernels plain_kernels(const Problem& p) {
  return for_head_dims(p, [](auto dim) -> Kernels { return {attend<Isa, Plain<Isa, F, dim(), dim()>>, finish<Isa>}; });
}

// K per channel, or with groups that a level's own arithmetic does not read: int4 and int2.
template <class Isa, bool ByChannel>
Kernels plain_packed_kernels(const Problem& p) {
  const bool usual = p.k_dim == 128 && p.v_dim == 128;
  if (p.format == Format::int4)
    return {usual ? attend<Isa, Plain<Isa, Format::int4, 128, 128, ByChannel>>
                  : attend<Isa, Plain<Isa, Format::int4, 0, 0, ByChannel>>,
            finish<Isa>};
  return {usual ? attend<Isa, Plain<Isa, Format::int2, 128, 128, ByChannel>>
                : attend<Isa, Plain<Isa, Format::int2, 0, 0, ByChannel>>,
          finish<Isa>};
}

// Floating point, for all levels. What a level has for integers it names itself: the rest would only be compiled.
template <class Isa>
Kernels float_kernels(const Problem& p) {
  switch (p.format) {
    case Format::fp32: return plain_kernels<Isa, Format::fp32>(p);
    case Format::fp16: return plain_kernels<Isa, Format::fp16>(p);
    case Format::bf16: return plain_kernels<Isa, Format::bf16>(p);
    case Format::fp8_e4m3: return plain_kernels<Isa, Format::fp8_e4m3>(p);
    default: return plain_kernels<Isa, Format::fp8_e5m2>(p);
  }
}

}  // namespace
}  // namespace kvgauge

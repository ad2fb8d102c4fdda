// The scales and zeros of the block at hand, in fp32. Included by plain.h, and like it in an anonymous
// namespace.
#pragma once

#include <cstdint>
#include <cstring>

#include "block.h"

namespace kvgauge {
namespace {

// Group by group, and of each group token by token; of int8 a row is one group, and of plain formats there is
// nothing. Past the block's tokens everything is 0.
template <class Isa>
struct Scales {
  using Table = float[kMaxGroups][kBlock];
  alignas(64) Table k, v, k_zero, v_zero;

  void read(const Problem& p, const Block& block) {
    const bool of_k = p.k_group_tokens == 0;  // else see channels.h
    if (of_k) read<true>(p, block, p.k_groups, p.k_scale.token, &Block::Stretch::k_scale, k);
    read<false>(p, block, p.v_groups, p.v_scale.token, &Block::Stretch::v_scale, v);
    if (!is_grouped(p.format)) return;
    if (of_k) read<true>(p, block, p.k_groups, p.k_zero.token, &Block::Stretch::k_zero, k_zero);
    read<false>(p, block, p.v_groups, p.v_zero.token, &Block::Stretch::v_zero, v_zero);
  }

 private:
  // K's that are infinite are NaN: times a sum over integers they could be -inf, which a softmax hides.
  template <bool OfK>
  static KVGAUGE_INLINE typename Isa::V number(const char* half) {
    const typename Isa::V x = Isa::template read<Format::fp16>(half);
    return OfK ? Isa::fma(x, Isa::zero(), x) : x;
  }

  template <bool OfK>
  static void read(const Problem& p, const Block& block, int groups, int64_t stride,
                   const char* Block::Stretch::*where, Table& to) {
    const Block::Stretch& whole = block.stretches[0];
    if (groups == 1 && stride == 2 && whole.tokens == p.block_tokens) {  // most blocks of int8
      for (int t = 0; t < p.block_tokens; t += Isa::kLanes)
        Isa::store(to[0] + t, number<OfK>(whole.*where + 2 * t));
      return;
    }
    alignas(64) uint16_t half[kMaxGroups][kBlock];
    int done = 0;
    for (int i = 0; i < block.stretch_count; ++i) {
      split({block.stretches[i].*where, stride, groups}, block.stretches[i].tokens, half, done);
      done += block.stretches[i].tokens;
    }
    for (int g = 0; g < groups; ++g) {
      for (int t = done; t < p.block_tokens; ++t) half[g][t] = 0;
      for (int t = 0; t < p.block_tokens; t += Isa::kLanes)
        Isa::store(to[g] + t, number<OfK>(reinterpret_cast<const char*>(half[g] + t)));
    }
  }

  // From token by token to group by group, from token `at` on.
  static KVGAUGE_INLINE void split(Halves from, int tokens, uint16_t (&to)[kMaxGroups][kBlock], int at) {
    // Of one token the stride may be anything, also that of one scale.
    if (from.groups == 1 && from.stride == 2 && tokens == 16) {  // the page size that is usual
      std::memcpy(to[0] + at, from.first, 2 * 16);
    } else if (from.groups == 1 && from.stride == 2) {
      std::memcpy(to[0] + at, from.first, 2 * static_cast<size_t>(tokens));
    } else if (from.stride == 4 && from.groups == 2) {
      // Told apart, so that the compiler takes many at a time.
      const char* __restrict source = from.first;
      uint16_t *__restrict first = to[0] + at, *__restrict second = to[1] + at;
      for (int t = 0; t < tokens; ++t) {
        uint32_t both;
        std::memcpy(&both, source + 4 * t, 4);
        first[t] = static_cast<uint16_t>(both);
        second[t] = static_cast<uint16_t>(both >> 16);
      }
    } else if (from.stride == 8 && from.groups == 4) {
      const char* __restrict source = from.first;
      uint16_t *__restrict a = to[0] + at, *__restrict b = to[1] + at;
      uint16_t *__restrict c = to[2] + at, *__restrict d = to[3] + at;
      for (int t = 0; t < tokens; ++t) {
        uint64_t all;
        std::memcpy(&all, source + 8 * t, 8);
        a[t] = static_cast<uint16_t>(all);
        b[t] = static_cast<uint16_t>(all >> 16);
        c[t] = static_cast<uint16_t>(all >> 32);
        d[t] = static_cast<uint16_t>(all >> 48);
      }
    } else {
      for (int t = 0; t < tokens; ++t)
        for (int g = 0; g < from.groups; ++g) std::memcpy(&to[g][at + t], from.first + t * from.stride + 2 * g, 2);
    }
  }
};

}  // namespace
}  // namespace kvgauge

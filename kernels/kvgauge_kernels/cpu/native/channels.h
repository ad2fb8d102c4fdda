// Scales and zeros of K per channel (KIVI, arXiv 2402.02750): of each element of a row, for a group of tokens.
// Included by plain.h, and like it in an anonymous namespace.
#pragma once

#include "block.h"

namespace kvgauge {
namespace {

// Call `each(from, to, scale, zero)` for the tokens of the block, up to `padded`, that share scales and zeros of K,
// k_dim fp16 each. Both ends are multiples of 16: groups of tokens are, and pages hold whole groups.
template <class Do>
KVGAUGE_INLINE void for_token_groups(const Problem& p, const Block& block, int padded, Do each) {
  int from = 0;
  for (int i = 0; i < block.stretch_count; ++i) {
    const Block::Stretch& stretch = block.stretches[i];
    const char *scale = stretch.k_scale, *zero = stretch.k_zero;
    for (const int end = from + stretch.tokens; from < end; scale += p.k_scale.token, zero += p.k_zero.token) {
      const int next = end - from > p.k_group_tokens ? from + static_cast<int>(p.k_group_tokens) : end;
      const bool last = next == block.tokens;
      each(from, last ? padded : next, scale, zero);
      from = next;
    }
  }
}

}  // namespace
}  // namespace kvgauge

// How many tokens are taken at a time.
#pragma once

#include <algorithm>

#include "level.h"
#include "view.h"

namespace kvgauge {

// A multiple of 16 up to kMaxBlock. Few stay in the first-level cache from scores to rows; more reach over more pages,
// which the core then waits for together.
static inline int tokens_at_a_time(const Problem& p, Level level) {
  // Rows are short, and much is done once a block.
  if (is_grouped(p.format)) return kMaxBlock;
  // About 4 KiB of K, then as many rows of V: with AVX2 memory gives more to streams that take turns so often.
  if (level == Level::avx2 && bits_of(p.format) >= 16) return std::clamp(4096 / k_row_bytes(p) / 16 * 16, 16, 64);
  return 64;
}

}  // namespace kvgauge

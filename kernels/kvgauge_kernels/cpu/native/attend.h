// What a level offers: the attention of one K/V head over a part of one sequence, and the merge of parts.
#pragma once

#include <cstdint>

#include "view.h"

namespace kvgauge {

// The softmax over a part of a sequence, not yet divided by its sum: per query head the largest score and
// the sum of weights relative to it (in powers of two), and the weighted sum of V's rows.
struct alignas(64) Part {
  float largest[kMaxGroup];
  float sum[kMaxGroup];
  float rows[kMaxGroup * kMaxHeadDim];  // padded_dim(v_dim) floats a query head
};

// K/V heads of one sequence, and tokens [first, last).
struct Task {
  int64_t sequence, head, heads, first, last;
};

constexpr int kMaxTaskHeads = 8;

struct Kernels {
  // One part a head, up to kMaxTaskHeads; that of head i is at parts[i * apart].
  void (*attend)(const Problem&, const Task&, Part* parts, int64_t apart);
  // Write the result of `count` parts, which together are the sequence, to the problem's output.
  void (*finish)(const Problem&, int64_t sequence, int64_t head, const Part* parts, int64_t count);
};

Kernels kernels_portable(const Problem&);
#if defined(__x86_64__)
Kernels kernels_avx2(const Problem&);
Kernels kernels_avx512(const Problem&);
#endif

}  // namespace kvgauge

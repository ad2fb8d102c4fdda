// What a level offers: the attention of one K/V head over a part of one sequence, and the merge of parts.
#pragma once

#include <cstdint>

#include "view.h"

namespace kvgauge {

// The softmax over a part of a sequence, not yet divided by its sum: per query head the largest score and
// the sum of weights relative to it (in powers of two), and behind those the weighted sum of V's rows,
// row_floats(p) a query head, in whole tiles of heads.
struct alignas(64) Part {
  float largest[kMaxGroup];
  float sum[kMaxGroup];

  float* rows() { return reinterpret_cast<float*>(this + 1); }
  const float* rows() const { return reinterpret_cast<const float*>(this + 1); }
};

// Query heads are computed in tiles of so many.
constexpr int kTile = 4;
constexpr int tiled(int group) { return (group + kTile - 1) / kTile * kTile; }

// Parts as they lie one after another.
struct Parts {
  char* first;
  int64_t bytes;  // of one

  static int64_t bytes_of(const Problem& p) {
    return static_cast<int64_t>(sizeof(Part) + sizeof(float) * row_floats(p) * tiled(p.group));
  }
  Part& operator[](int64_t i) const { return *reinterpret_cast<Part*>(first + i * bytes); }
  Parts from(int64_t i) const { return {first + i * bytes, bytes}; }
};

// K/V heads of one sequence, and tokens [first, last).
struct Task {
  int64_t sequence, head, heads, first, last;
};

constexpr int kMaxTaskHeads = 8;

struct Kernels {
  // One part a head, up to kMaxTaskHeads; that of head i is at parts[i * apart].
  void (*attend)(const Problem&, const Task&, Parts parts, int64_t apart);
  // Write the result of `count` parts, which together are the sequence, to the problem's output.
  void (*finish)(const Problem&, int64_t sequence, int64_t head, Parts parts, int64_t count);
};

Kernels kernels_portable(const Problem&);
#if defined(__x86_64__)
Kernels kernels_avx2(const Problem&);
Kernels kernels_avx512(const Problem&);
#endif

}  // namespace kvgauge

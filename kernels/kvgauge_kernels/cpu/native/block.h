// Where the rows of a block of tokens lie. Included by attend_impl.h, and like it in an anonymous namespace.
#pragma once

#include <cstdint>
#include <cstring>

#include "view.h"

#define KVGAUGE_INLINE inline __attribute__((always_inline))

namespace kvgauge {
namespace {

constexpr int kBlock = kMaxBlock;

// Rows past the last token are read as this one: what memory holds there may be NaN, or not be ours.
alignas(64) constexpr char kZeros[kMaxHeadDim * 4] = {};

// Where scales or zeros of tokens lie, a token `stride` bytes from the next, `groups` fp16 to each.
struct Halves {
  const char* first;
  int64_t stride;
  int groups;
};

// The rows of one block of one head.
struct Block {
  const char* k[kBlock];
  const char* v[kBlock];
  int64_t head, token;
  int tokens;
  // Tokens that lie one stride apart: where their scales and zeros begin.
  struct Stretch {
    const char *k_scale, *v_scale, *k_zero, *v_zero;
    int tokens;
  } stretches[kBlock];
  int stretch_count;

  // The block of `of_head` from `first` on, up to `last`; with no tokens where that is at the end.
  void find(const Problem& p, int64_t sequence, int64_t of_head, int64_t first, int64_t last) {
    head = of_head / p.groups;
    token = first;
    tokens = static_cast<int>(last - token < p.block_tokens ? last - token : p.block_tokens);
    // Groups of tokens begin where a vector of scores does: a first one that a window cuts is a block of its own.
    const int64_t into_group = p.k_group_tokens ? token % p.k_group_tokens : 0;
    if (into_group && tokens > p.k_group_tokens - into_group) tokens = static_cast<int>(p.k_group_tokens - into_group);
    stretch_count = 0;
    int done = 0;
    while (done < tokens) {
      const Run run = run_at(p, sequence, token + done, tokens - done);
      const char* k_row = row_at(p.k, head, run);
      const char* v_row = row_at(p.v, head, run);
      for (int i = 0; i < run.tokens; ++i) {
        k[done + i] = k_row + i * p.k.token;
        v[done + i] = v_row + i * p.v.token;
      }
      const Run k_run = p.k_group_tokens ? Run{run.outer, run.inside / p.k_group_tokens, 0} : run;
      stretches[stretch_count++] = {row_at(p.k_scale, head, k_run), row_at(p.v_scale, head, run),
                                    row_at(p.k_zero, head, k_run), row_at(p.v_zero, head, run),
                                    static_cast<int>(run.tokens)};
      done += static_cast<int>(run.tokens);
    }
    for (; done < p.block_tokens; ++done) k[done] = v[done] = kZeros;
  }

  // The same tokens of another head.
  void shift(const Problem& p, const Block& other, int64_t of_head) {
    head = of_head / p.groups;
    token = other.token;
    tokens = other.tokens;
    stretch_count = other.stretch_count;
    const int64_t heads = head - other.head;
    for (int i = 0; i < tokens; ++i) {
      k[i] = other.k[i] + heads * p.k.head;
      v[i] = other.v[i] + heads * p.v.head;
    }
    for (int i = tokens; i < p.block_tokens; ++i) k[i] = v[i] = kZeros;
    for (int i = 0; i < stretch_count; ++i)
      stretches[i] = {other.stretches[i].k_scale + heads * p.k_scale.head,
                      other.stretches[i].v_scale + heads * p.v_scale.head,
                      other.stretches[i].k_zero + heads * p.k_zero.head,
                      other.stretches[i].v_zero + heads * p.v_zero.head, other.stretches[i].tokens};
  }

  // Ask for the start of each stretch: the look-up of its page of memory then keeps the rest waiting no more.
  void announce(const Problem& p) const {
    for (int i = 0, t = 0; i < stretch_count; t += stretches[i++].tokens) {
      if (p.page_size) {
        __builtin_prefetch(k[t]);
        __builtin_prefetch(v[t]);
      }
      const int64_t together = p.k_group_tokens ? p.k_group_tokens : 1;
      const int k_sides = static_cast<int>((stretches[i].tokens + together - 1) / together);
      const int k_halves = p.k_group_tokens ? p.k_dim : p.k_groups;
      if (is_scaled(p.format)) {
        prefetch_halves({stretches[i].k_scale, p.k_scale.token, k_halves}, k_sides);
        prefetch_halves({stretches[i].v_scale, p.v_scale.token, p.v_groups}, stretches[i].tokens);
      }
      if (is_grouped(p.format)) {
        prefetch_halves({stretches[i].k_zero, p.k_zero.token, k_halves}, k_sides);
        prefetch_halves({stretches[i].v_zero, p.v_zero.token, p.v_groups}, stretches[i].tokens);
      }
    }
  }

 private:
  static KVGAUGE_INLINE void prefetch_halves(Halves at, int tokens) {
    const int64_t last = at.stride * (tokens - 1) + 2 * at.groups - 1;
    const int64_t step = last < 1024 ? 64 : last / 4;  // far apart: some of them
    for (int64_t i = 0; i < last; i += step) __builtin_prefetch(at.first + i, 0, 2);
    __builtin_prefetch(at.first + last, 0, 2);
  }
};

// Into the second-level cache, as scales above: it waits for memory on a core's behalf. The first level has room for
// few waits, and once those are taken loads wait too.
KVGAUGE_INLINE void prefetch_row(const char* row, int bytes) {
#pragma GCC unroll 8
  for (int i = 0; i < bytes; i += 64) __builtin_prefetch(row + i, 0, 2);
}

// Rows that are asked for a few at a time: more at once than a core can wait for would hold it up.
class Ahead {
 public:
  // `rows` of them, in `times` calls.
  Ahead(const char* const* first, int rows, int bytes, int times)
      : next_(first), end_(first + rows), bytes_(bytes), at_once_(times < rows ? (rows + times - 1) / times : 1) {}

  KVGAUGE_INLINE void ask() {
    for (int i = 0; i < at_once_ && next_ < end_; ++i) prefetch_row(*next_++, bytes_);
  }
  void ask_for_the_rest() {
    while (next_ < end_) prefetch_row(*next_++, bytes_);
  }

 private:
  const char* const* next_;
  const char* const* end_;
  int bytes_, at_once_;
};

}  // namespace
}  // namespace kvgauge

// Integer arithmetic of two halves. Included by a level's own, and like it in an anonymous namespace.
#pragma once

#include "attend_impl.h"

namespace kvgauge {
namespace {

// An arithmetic for `attend` of what computes scores and of what adds up V.
template <class Isa, class Keys, class Values>
struct Integers {
  Keys keys;
  Values values;

  static KVGAUGE_INLINE int k_dim(const Problem& p) { return Keys::k_dim(p); }
  static KVGAUGE_INLINE int row_stride(const Problem& p) { return Values::row_stride(p); }
  static void settle(const Problem& p, float* rows) { Values::settle(p, rows); }
  void take_query(const Problem& p, const float* scaled) { keys.take_query(p, scaled); }

  template <int H>
  KVGAUGE_INLINE void scores(const Problem& p, int first, const Block& block, const Block& v_ahead,
                             const Scales<Isa>& scales, int tokens, float* out) {
    keys.template scores<H>(p, first, block, v_ahead, scales, tokens, out);
  }

  template <int H>
  KVGAUGE_INLINE void add_rows(const Problem& p, float* weights, const Block& block, const Scales<Isa>& scales,
                               const Block& k_ahead, bool is_first, int tokens, float* rows, int stride) {
    values.template add_rows<H>(p, weights, block, scales, k_ahead, is_first, tokens, rows, stride);
  }
};

}  // namespace
}  // namespace kvgauge

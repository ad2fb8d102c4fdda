// int4 and int2 caches in integer arithmetic. Only for attend_avx512.cpp.
#pragma once

#include "packed_keys_avx512.h"
#include "packed_values_avx512.h"

namespace kvgauge {
namespace {

// Codes of Bits bits by integer products of bytes (VNNI). Codes stay codes, and what scales and zeros do is done to
// sums over a group.
template <int Bits, int RowBytes, int Bytes, bool ByChannel = false>
struct Packed {
  using Keys = PackedKeys<Bits, RowBytes, Bytes, ByChannel>;
  using Values = PackedValues<Bits, RowBytes, Bytes>;
  Keys keys;
  Values values;

  static KVGAUGE_INLINE int k_dim(const Problem& p) { return Keys::k_dim(p); }
  static KVGAUGE_INLINE int row_stride(const Problem& p) { return Values::row_stride(p); }
  static void settle(const Problem& p, float* rows) { Values::settle(p, rows); }

  void take_query(const Problem& p, const float* scaled) {
    keys.take_query(p, scaled);
  }

  template <int H>
  KVGAUGE_INLINE void scores(const Problem& p, int first, const Block& block, const Block& v_ahead,
                             const Scales<Avx512>& scales, int tokens, float* out) {
    keys.template scores<H>(p, first, block, v_ahead, scales, tokens, out);
  }

  template <int H>
  KVGAUGE_INLINE void add_rows(const Problem& p, float* weights, const Block& block, const Scales<Avx512>& scales,
                               const Block& k_ahead, bool is_first, int tokens, float* rows, int stride) {
    values.template add_rows<H>(p, weights, block, scales, k_ahead, is_first, tokens, rows, stride);
  }
};

}  // namespace
}  // namespace kvgauge

// V of a block whose scales integers cannot serve. Only for word_values_avx2.h and byte_values_avx2.h.
#pragma once

#include "avx2.h"

namespace kvgauge {
namespace {

// In fp32, added to rows in an order of the kernel's own: the sum of element d lies at `place(d)`.
template <int H, Format F, int MaxDim, class Place>
void add_plainly(const Problem& p, float* weights, const Block& block, const Scales<Avx2>& scales, int tokens,
                 float* rows, int stride, Place place) {
  constexpr int kWide = (MaxDim + 63) / 64 * 64;
  alignas(64) float sums[H * kWide] = {};
  Plain<Avx2, F, 0, 0>::template add_rows<H>(p, weights, block, scales, block, false, tokens, sums, kWide);
  for (int h = 0; h < H; ++h)
    for (int d = 0; d < p.v_dim; ++d) rows[h * stride + place(d)] += sums[h * kWide + d];
}

}  // namespace
}  // namespace kvgauge

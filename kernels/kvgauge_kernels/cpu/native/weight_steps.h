// The steps in which weights times V's scales are rounded. Included by what rounds them, and like it in an anonymous
// namespace.
#pragma once

#include "scales.h"

namespace kvgauge {
namespace {

// Of H heads and all groups, from the largest product of a weight and a scale: the largest of each may be of different
// tokens, far apart. `levels`: steps to the largest. False where a scale is no number or, unless `Signed`, below 0.
template <class Isa, int H, bool Signed>
KVGAUGE_INLINE bool take_steps(int groups, const float* weights, const Scales<Isa>& scales, int tokens, float levels,
                               float (&step)[H][kMaxGroups]) {
  using V = typename Isa::V;
  V odd = Isa::zero();  // not 0 where a scale is not sound
  for (int g = 0; g < groups; ++g) {
    V most[H];
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) most[h] = Isa::zero();
    for (int t = 0; t < tokens; t += Isa::kLanes) {
      const V scale = Isa::load(scales.v[g] + t), size = Isa::max(scale, Isa::sub(Isa::zero(), scale));
      odd = Isa::add(odd, Signed ? Isa::sub(scale, scale) : Isa::add(Isa::sub(scale, scale), Isa::sub(size, scale)));
#pragma GCC unroll 4
      for (int h = 0; h < H; ++h) most[h] = Isa::max(most[h], Isa::mul(Isa::load(weights + h * kBlock + t), size));
    }
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) step[h][g] = Isa::max_of(most[h]) / levels;
  }
  return Isa::sum_of(odd) == 0.0f;
}

// What a product is multiplied by to be in steps. Products so small that this has no float add nothing.
inline float steps_to_one(float step) { return step > 1e-36f ? 1.0f / step : 0.0f; }

}  // namespace
}  // namespace kvgauge

// A query head as whole numbers. Included by what computes in integers, and like it in an anonymous namespace.
#pragma once

#include <cmath>

namespace kvgauge {
namespace {

// From `-steps` to `steps`, in steps of the head's largest element.
struct Rounding {
  float step, by;

  Rounding(const float* row, int dims, float steps) {
    float largest = 0.0f, finite = 0.0f;
    for (int d = 0; d < dims; ++d) {
      const float size = std::fabs(row[d]);
      largest = size > largest ? size : largest;
      finite += row[d] - row[d];
    }
    // NaN or infinity in a query makes all its scores NaN.
    // A head that is all but 0 is 0, in any steps.
    const bool some = largest > 1e-30f;
    step = (some ? largest / steps : 1.0f) + finite;
    by = some ? steps / largest : 0.0f;
  }

  int of(float x) const { return static_cast<int>(std::nearbyint(x * by)); }
};

}  // namespace
}  // namespace kvgauge

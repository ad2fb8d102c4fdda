// A query head as whole numbers. Included by what computes in integers, and like it in an anonymous namespace.
#pragma once

#include <cmath>

namespace kvgauge {
namespace {

// From `-steps` to `steps`, in steps of the head's largest element.
struct Rounding {
  float step, by;

  Rounding(const float* row, int dims, float steps) {
    // By sixteen, which dims are multiples of: one after another each would wait for the one before.
    float most[16] = {}, odd[16] = {};
    for (int d = 0; d < dims; d += 16)
      for (int i = 0; i < 16; ++i) {
        const float size = std::fabs(row[d + i]);
        most[i] = size > most[i] ? size : most[i];
        odd[i] += row[d + i] - row[d + i];
      }
    float largest = 0.0f, finite = 0.0f;
    for (int i = 0; i < 16; ++i) {
      largest = most[i] > largest ? most[i] : largest;
      finite += odd[i];
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

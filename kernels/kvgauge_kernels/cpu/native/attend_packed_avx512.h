// What attend_packed_avx512.cpp has for attend_avx512.cpp.
#pragma once

#include "attend.h"

namespace kvgauge {

Kernels packed_kernels_avx512(const Problem&);  // of int4 and int2

}  // namespace kvgauge

// Which instructions this CPU has, and which of them are used.
#pragma once

namespace kvgauge {

enum class Level { portable = 0, avx2 = 1, avx512 = 2 };

// The best level that the CPU and the operating system support. avx512 means F, BW, DQ, VL, VNNI and BF16;
// avx2 means AVX2, FMA and F16C.
Level best_level();

// The level in use: the best one, unless a lower one was forced.
Level level();

// Use a level up to the best one; throws std::invalid_argument above it.
void force_level(Level wanted);

const char* level_name(Level level);

}  // namespace kvgauge

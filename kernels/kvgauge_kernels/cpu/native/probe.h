// Loops at the roof, one set a level: what memory and arithmetic units give when nothing else is asked of them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvgauge {

struct Loops {
  // The sum of the 64-bit little-endian words modulo 2^64; the last one is filled up with zeros.
  uint64_t (*read)(const uint8_t* data, size_t bytes);
  // `streaming`: with stores that go around the caches, where the CPU has them.
  void (*copy)(uint8_t* to, const uint8_t* from, size_t bytes, bool streaming);
  // Register-resident multiply-adds of fp32; returns how many operations were done (2 each).
  uint64_t (*multiply_add)();
  // The same for dot products of 8-bit and of 16-bit integers into 32 bits; nullptr where the level has none.
  uint64_t (*dot8)();
  uint64_t (*dot16)();
};

extern const Loops portable_loops;
#if defined(__x86_64__)
extern const Loops avx2_loops;
extern const Loops avx512_loops;
#endif

// One call of an arithmetic loop: some microseconds, so that a clock read between calls costs nothing.
constexpr int kRounds = 1000;
// Beyond the hardware's own prefetchers, which stop at the end of a page; into the second-level cache, as the
// kernels do: the first level has room for too few waits.
constexpr size_t kPrefetchBytes = 2048;
// Read side by side: one stream alone keeps too few channels and banks of the memory at work.
constexpr size_t kStreams = 4;
constexpr size_t kLine = 64;

// Whatever the compiler knows of `value`, it forgets here.
template <class T>
inline void opaque(T& value) {
#if defined(__x86_64__)
  asm volatile("" : "+x"(value));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(value));
#else
  asm volatile("" : "+m"(value));
#endif
}

}  // namespace kvgauge

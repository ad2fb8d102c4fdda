// What every compiler and every CPU has: vectors of 16 bytes in the compiler's own words.
#include "probe_edges.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace kvgauge {
namespace {

using Words = uint64_t __attribute__((vector_size(16)));
using Floats = float __attribute__((vector_size(16)));

uint64_t read(const uint8_t* data, size_t bytes) {
  constexpr size_t kChains = 8, kStep = kChains * sizeof(Words);
  Words sums[kChains] = {};
  const size_t part = bytes / kStreams / kStep * kStep;
  for (size_t i = 0; i < part; i += kStep)
    for (size_t stream = 0; stream < kStreams; ++stream) {
      const uint8_t* at = data + stream * part + i;
      const uintptr_t ahead = reinterpret_cast<uintptr_t>(at) + kPrefetchBytes;
      for (size_t line = 0; line < kStep; line += kLine)
        __builtin_prefetch(reinterpret_cast<const void*>(ahead + line), 0, 2);
      for (size_t chain = 0; chain < kChains; ++chain) {
        Words words;
        std::memcpy(&words, at + chain * sizeof(Words), sizeof(Words));
        sums[chain] += words;
      }
    }
  for (size_t chain = 1; chain < kChains; ++chain) sums[0] += sums[chain];
  return sums[0][0] + sums[0][1] + read_tail(data + kStreams * part, bytes - kStreams * part);
}

void copy(uint8_t* to, const uint8_t* from, size_t bytes, bool streaming) {
#if defined(__x86_64__)
  if (streaming) {
    size_t i = bytes_to_line(to, bytes);
    std::memcpy(to, from, i);
    for (; i + kLine <= bytes; i += kLine)
      for (size_t part = 0; part < kLine; part += 16)
        _mm_stream_si128(reinterpret_cast<__m128i*>(to + i + part),
                         _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i + part)));
    _mm_sfence();
    std::memcpy(to + i, from + i, bytes - i);
    return;
  }
#endif
  (void)streaming;
  for (size_t i = 0; i < bytes; i += 16) std::memcpy(to + i, from + i, std::min<size_t>(16, bytes - i));
}

uint64_t multiply_add() {
  constexpr int kChains = 12;
  Floats sums[kChains], factor = {0.5f, 0.5f, 0.5f, 0.5f}, addend = factor;
  for (int chain = 0; chain < kChains; ++chain) sums[chain] = addend * static_cast<float>(chain);
  opaque(factor);
  opaque(addend);
  for (int round = 0; round < kRounds; ++round)
#pragma GCC unroll 12
    for (int chain = 0; chain < kChains; ++chain) sums[chain] = sums[chain] * factor + addend;
  for (int chain = 0; chain < kChains; ++chain) opaque(sums[chain]);
  return uint64_t{2} * 4 * kChains * kRounds;
}

}  // namespace

const Loops portable_loops = {read, copy, multiply_add, nullptr, nullptr};

}  // namespace kvgauge

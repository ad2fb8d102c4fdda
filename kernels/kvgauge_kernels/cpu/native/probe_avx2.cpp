#if defined(__x86_64__)
#include <immintrin.h>

#include "probe_edges.h"

namespace kvgauge {
namespace {

constexpr size_t kVector = 32;

__m256i load(const uint8_t* data) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data)); }

uint64_t read(const uint8_t* data, size_t bytes) {
  constexpr size_t kChains = 8, kStep = kChains * kVector;
  __m256i sums[kChains];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  const size_t part = bytes / kStreams / kStep * kStep;
  for (size_t i = 0; i < part; i += kStep)
    for (size_t stream = 0; stream < kStreams; ++stream) {
      const uint8_t* at = data + stream * part + i;
      const uintptr_t ahead = reinterpret_cast<uintptr_t>(at) + kPrefetchBytes;
#pragma GCC unroll 4
      for (size_t line = 0; line < kStep; line += kLine)
        _mm_prefetch(reinterpret_cast<const char*>(ahead + line), _MM_HINT_T1);
#pragma GCC unroll 8
      for (size_t chain = 0; chain < kChains; ++chain)
        sums[chain] = _mm256_add_epi64(sums[chain], load(at + chain * kVector));
    }
  for (size_t chain = 1; chain < kChains; ++chain) sums[0] = _mm256_add_epi64(sums[0], sums[chain]);
  uint64_t parts[4];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(parts), sums[0]);
  return parts[0] + parts[1] + parts[2] + parts[3] + read_tail(data + kStreams * part, bytes - kStreams * part);
}

void copy(uint8_t* to, const uint8_t* from, size_t bytes, bool streaming) {
  size_t i = bytes_to_line(to, bytes);
  std::memcpy(to, from, i);
  if (streaming) {
    for (; i + kLine <= bytes; i += kLine) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i), load(from + i));
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i + kVector), load(from + i + kVector));
    }
    _mm_sfence();
  } else {
    for (; i + kVector <= bytes; i += kVector)
      _mm256_store_si256(reinterpret_cast<__m256i*>(to + i), load(from + i));
  }
  std::memcpy(to + i, from + i, bytes - i);
}

uint64_t multiply_add() {
  constexpr int kChains = 12;
  __m256 sums[kChains], factor = _mm256_set1_ps(0.5f), addend = _mm256_set1_ps(0.5f);
  for (int chain = 0; chain < kChains; ++chain) sums[chain] = _mm256_set1_ps(static_cast<float>(chain));
  opaque(factor);
  opaque(addend);
  for (int round = 0; round < kRounds; ++round)
#pragma GCC unroll 12
    for (int chain = 0; chain < kChains; ++chain)
      sums[chain] = _mm256_fmadd_ps(sums[chain], factor, addend);
  for (__m256& sum : sums) opaque(sum);
  return uint64_t{2} * 8 * kChains * kRounds;
}

// Without VNNI a dot product of 8-bit integers is three instructions, one of 16-bit integers is two.
template <bool kEight>
uint64_t dot() {
  constexpr int kChains = 8;
  __m256i sums[kChains], left = _mm256_set1_epi8(1), right = _mm256_set1_epi8(2);
  const __m256i ones = _mm256_set1_epi16(1);
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  for (int round = 0; round < kRounds; ++round)
#pragma GCC unroll 8
    for (int chain = 0; chain < kChains; ++chain) {
      opaque(left);  // else all of the chains would share one product
      const __m256i product = kEight ? _mm256_madd_epi16(_mm256_maddubs_epi16(left, right), ones)
                                     : _mm256_madd_epi16(left, right);
      sums[chain] = _mm256_add_epi32(sums[chain], product);
    }
  for (__m256i& sum : sums) opaque(sum);
  return uint64_t{2} * (kEight ? 32 : 16) * kChains * kRounds;
}

}  // namespace

const Loops avx2_loops = {read, copy, multiply_add, dot<true>, dot<false>};

}  // namespace kvgauge
#endif

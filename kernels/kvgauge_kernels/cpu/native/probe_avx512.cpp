#if defined(__x86_64__)
#include <immintrin.h>

#include "probe_edges.h"

namespace kvgauge {
namespace {

constexpr size_t kVector = 64;

__m512i load(const uint8_t* data) { return _mm512_loadu_si512(data); }

uint64_t read(const uint8_t* data, size_t bytes) {
  constexpr size_t kChains = 8, kStep = kChains * kVector;
  __m512i sums[kChains];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  const size_t part = bytes / kStreams / kStep * kStep;
  for (size_t i = 0; i < part; i += kStep)
    for (size_t stream = 0; stream < kStreams; ++stream) {
      const uint8_t* at = data + stream * part + i;
      const uintptr_t ahead = reinterpret_cast<uintptr_t>(at) + kPrefetchBytes;
#pragma GCC unroll 8
      for (size_t chain = 0; chain < kChains; ++chain) {
        _mm_prefetch(reinterpret_cast<const char*>(ahead + chain * kLine), _MM_HINT_T1);
        sums[chain] = _mm512_add_epi64(sums[chain], load(at + chain * kVector));
      }
    }
  for (size_t chain = 1; chain < kChains; ++chain) sums[0] = _mm512_add_epi64(sums[0], sums[chain]);
  uint64_t sum = read_tail(data + kStreams * part, bytes - kStreams * part), parts[8];
  _mm512_storeu_si512(parts, sums[0]);
  for (uint64_t part : parts) sum += part;
  return sum;
}

void copy(uint8_t* to, const uint8_t* from, size_t bytes, bool streaming) {
  size_t i = bytes_to_line(to, bytes);
  std::memcpy(to, from, i);
  if (streaming) {
    for (; i + kVector <= bytes; i += kVector)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), load(from + i));
    _mm_sfence();
  } else {
    for (; i + kVector <= bytes; i += kVector) _mm512_store_si512(to + i, load(from + i));
  }
  std::memcpy(to + i, from + i, bytes - i);
}

uint64_t multiply_add() {
  constexpr int kChains = 16;
  __m512 sums[kChains], factor = _mm512_set1_ps(0.5f), addend = _mm512_set1_ps(0.5f);
  for (int chain = 0; chain < kChains; ++chain) sums[chain] = _mm512_set1_ps(static_cast<float>(chain));
  opaque(factor);
  opaque(addend);
  for (int round = 0; round < kRounds; ++round)
#pragma GCC unroll 16
    for (int chain = 0; chain < kChains; ++chain)
      sums[chain] = _mm512_fmadd_ps(sums[chain], factor, addend);
  for (__m512& sum : sums) opaque(sum);
  return uint64_t{2} * 16 * kChains * kRounds;
}

template <bool kEight>
uint64_t dot() {
  constexpr int kChains = 16;
  __m512i sums[kChains], left = _mm512_set1_epi8(1), right = _mm512_set1_epi8(2);
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  opaque(left);
  opaque(right);
  for (int round = 0; round < kRounds; ++round)
#pragma GCC unroll 16
    for (int chain = 0; chain < kChains; ++chain)
      sums[chain] = kEight ? _mm512_dpbusd_epi32(sums[chain], left, right)
                           : _mm512_dpwssd_epi32(sums[chain], left, right);
  for (__m512i& sum : sums) opaque(sum);
  return uint64_t{2} * (kEight ? 64 : 32) * kChains * kRounds;
}

}  // namespace

const Loops avx512_loops = {read, copy, multiply_add, dot<true>, dot<false>};

}  // namespace kvgauge
#endif

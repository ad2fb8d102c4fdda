// The instructions of AVX2, FMA and F16C as the kernels name them. Only for attend_avx2.cpp.
#pragma once

#include <immintrin.h>

#include "attend_impl.h"

namespace kvgauge {
namespace {

struct Avx2 {
  using V = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kAccumulators = 8;
  static constexpr bool kEarlyWhereApart = false;  // measured: pages of fp16 3 to 8% slower

  static KVGAUGE_INLINE V zero() { return _mm256_setzero_ps(); }
  static KVGAUGE_INLINE V set(float x) { return _mm256_set1_ps(x); }
  static KVGAUGE_INLINE V load(const float* from) { return _mm256_loadu_ps(from); }
  static KVGAUGE_INLINE void store(float* to, V x) { _mm256_storeu_ps(to, x); }
  static KVGAUGE_INLINE V add(V a, V b) { return _mm256_add_ps(a, b); }
  static KVGAUGE_INLINE V sub(V a, V b) { return _mm256_sub_ps(a, b); }
  static KVGAUGE_INLINE V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  static KVGAUGE_INLINE V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static KVGAUGE_INLINE V max(V a, V b) { return _mm256_max_ps(a, b); }

  template <Format F>
  static KVGAUGE_INLINE V read(const char* from) {
    if constexpr (F == Format::fp32) {
      return _mm256_loadu_ps(reinterpret_cast<const float*>(from));
    } else if constexpr (F == Format::int8) {
      return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
    } else if constexpr (F == Format::int4) {
      int32_t codes;
      std::memcpy(&codes, from, 4);
      const __m256i x = _mm256_srlv_epi32(_mm256_set1_epi32(codes), _mm256_set_epi32(28, 24, 20, 16, 12, 8, 4, 0));
      return _mm256_cvtepi32_ps(_mm256_and_si256(x, _mm256_set1_epi32(15)));
    } else if constexpr (F == Format::int2) {
      uint16_t codes;
      std::memcpy(&codes, from, 2);
      const __m256i x = _mm256_srlv_epi32(_mm256_set1_epi32(codes), _mm256_set_epi32(14, 12, 10, 8, 6, 4, 2, 0));
      return _mm256_cvtepi32_ps(_mm256_and_si256(x, _mm256_set1_epi32(3)));
    } else if constexpr (F == Format::fp8_e4m3 || F == Format::fp8_e5m2) {
      const __m128i x = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
      if constexpr (F == Format::fp8_e5m2) return _mm256_cvtph_ps(_mm_slli_epi16(x, 8));
      // Sign, exponent and mantissa where fp16 has them, whose exponents start 8 lower; all ones are NaN.
      const __m128i half = _mm_and_si128(_mm_slli_epi16(x, 7), _mm_set1_epi16(short(0xbf80)));
      const __m128i nan = _mm_and_si128(_mm_add_epi16(half, _mm_set1_epi16(0x80)), _mm_set1_epi16(0x4000));
      return _mm256_mul_ps(_mm256_cvtph_ps(_mm_or_si128(half, nan)), set(256.0f));
    } else {
      static_assert(F == Format::fp16 || F == Format::bf16);
      const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
      if constexpr (F == Format::fp16) return _mm256_cvtph_ps(x);
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
    }
  }

  static KVGAUGE_INLINE __m128i sixteen(const char* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  }

  static KVGAUGE_INLINE float max_of(V x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
  }
  static KVGAUGE_INLINE float sum_of(V x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
  }

  static KVGAUGE_INLINE void sums(const V (&a)[8], float* out) {
    const V low = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
    const V high = _mm256_hadd_ps(_mm256_hadd_ps(a[4], a[5]), _mm256_hadd_ps(a[6], a[7]));
    _mm256_storeu_ps(out, _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20),
                                        _mm256_permute2f128_ps(low, high, 0x31)));
  }

  // x is at most 0, or NaN, which stays NaN. Below 2^-126 the result is 0.
  static KVGAUGE_INLINE V exp2(V x) {
    const V kept = _mm256_max_ps(set(-126.0f), x);
    const V whole = _mm256_round_ps(kept, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const V f = _mm256_sub_ps(kept, whole);
    V y = set(1.5403530e-4f);
    y = fma(y, f, set(1.3333558e-3f));
    y = fma(y, f, set(9.6181291e-3f));
    y = fma(y, f, set(5.5504109e-2f));
    y = fma(y, f, set(2.4022651e-1f));
    y = fma(y, f, set(6.9314718e-1f));
    y = fma(y, f, set(1.0f));
    const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23);
    // A product and no sum of bits, which would make a number of NaN.
    y = _mm256_mul_ps(y, _mm256_castsi256_ps(exponent));
    return _mm256_and_ps(y, _mm256_cmp_ps(x, set(-126.0f), _CMP_NLT_UQ));
  }

  static void to_fp16(const float* row, int count, uint16_t* out) {
    for (int d = 0; d < count; d += 8)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + d),
                       _mm256_cvtps_ph(_mm256_loadu_ps(row + d), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
};

// acc += the two products of words in each lane. The barrier keeps gcc from adding in an order of its own, for which it
// has too few registers.
KVGAUGE_INLINE void add_words(__m256i& acc, __m256i a, __m256i b) {
  acc = _mm256_add_epi32(acc, _mm256_madd_epi16(a, b));
  asm("" : "+x"(acc));
}

}  // namespace
}  // namespace kvgauge

// The instructions of AVX-512 (F, BW, DQ, VL) as the kernels name them. Only for *_avx512.cpp.
#pragma once

#include <immintrin.h>

// gcc 12 warns of its own header: the operand that a mask of all ones leaves unread.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

#include "attend_impl.h"

namespace kvgauge {
namespace {

struct Avx512 {
  using V = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kAccumulators = 16;
  // Where blocks lie apart each begins with a look-up of where its pages of memory are.
  static constexpr bool kEarlyWhereApart = true;

  static KVGAUGE_INLINE V zero() { return _mm512_setzero_ps(); }
  static KVGAUGE_INLINE V set(float x) { return _mm512_set1_ps(x); }
  static KVGAUGE_INLINE V load(const float* from) { return _mm512_loadu_ps(from); }
  static KVGAUGE_INLINE void store(float* to, V x) { _mm512_storeu_ps(to, x); }
  static KVGAUGE_INLINE V add(V a, V b) { return _mm512_add_ps(a, b); }
  static KVGAUGE_INLINE V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  static KVGAUGE_INLINE V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static KVGAUGE_INLINE V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static KVGAUGE_INLINE V max(V a, V b) { return _mm512_max_ps(a, b); }

  template <Format F>
  static KVGAUGE_INLINE V read(const char* from) {
    if constexpr (F == Format::fp32) {
      return _mm512_loadu_ps(from);
    } else if constexpr (F == Format::fp16) {
      return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    } else if constexpr (F == Format::bf16) {
      const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
    } else if constexpr (F == Format::int4) {
      int64_t codes;
      std::memcpy(&codes, from, 8);
      const __m512i half = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
      const __m512i shift = _mm512_set_epi32(28, 24, 20, 16, 12, 8, 4, 0, 28, 24, 20, 16, 12, 8, 4, 0);
      const __m512i x = _mm512_srlv_epi32(_mm512_permutexvar_epi32(half, _mm512_set1_epi64(codes)), shift);
      return _mm512_cvtepi32_ps(_mm512_and_si512(x, _mm512_set1_epi32(15)));
    } else if constexpr (F == Format::int2) {
      int32_t codes;
      std::memcpy(&codes, from, 4);
      const __m512i shift = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
      const __m512i x = _mm512_srlv_epi32(_mm512_set1_epi32(codes), shift);
      return _mm512_cvtepi32_ps(_mm512_and_si512(x, _mm512_set1_epi32(3)));
    } else if constexpr (F == Format::fp8_e4m3 || F == Format::fp8_e5m2) {
      const __m256i x = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
      if constexpr (F == Format::fp8_e5m2) return _mm512_cvtph_ps(_mm256_slli_epi16(x, 8));
      // Sign, exponent and mantissa where fp16 has them, whose exponents start 8 lower; all ones are NaN.
      const __m256i half = _mm256_and_si256(_mm256_slli_epi16(x, 7), _mm256_set1_epi16(short(0xbf80)));
      const __m256i nan = _mm256_and_si256(_mm256_add_epi16(half, _mm256_set1_epi16(0x80)), _mm256_set1_epi16(0x4000));
      return _mm512_mul_ps(_mm512_cvtph_ps(_mm256_or_si256(half, nan)), set(256.0f));
    } else {
      const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
      return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x));
    }
  }

  static KVGAUGE_INLINE float max_of(V x) { return _mm512_reduce_max_ps(x); }
  static KVGAUGE_INLINE float sum_of(V x) { return _mm512_reduce_add_ps(x); }

  // Four steps of adding two halves of two vectors each, instead of sixteen sums across a vector.
  static KVGAUGE_INLINE void sums(const V (&a)[16], float* out) {
    V b[8], c[4], d[2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const int j = i < 4 ? i : i + 4;
      b[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[j], a[j + 4], 0x44), _mm512_shuffle_f32x4(a[j], a[j + 4], 0xee));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(b[i], b[i + 4], 0x88), _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd));
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i)
      d[i] = _mm512_add_ps(_mm512_unpacklo_ps(c[i], c[i + 2]), _mm512_unpackhi_ps(c[i], c[i + 2]));
    _mm512_storeu_ps(out, _mm512_add_ps(_mm512_unpacklo_ps(d[0], d[1]), _mm512_unpackhi_ps(d[0], d[1])));
  }

  // x is at most 0, or NaN, which stays NaN: max takes its second operand where one is.
  static KVGAUGE_INLINE V exp2(V x) {
    x = _mm512_max_ps(set(-160.0f), x);
    const V whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const V f = _mm512_sub_ps(x, whole);
    V y = set(1.5403530e-4f);
    y = fma(y, f, set(1.3333558e-3f));
    y = fma(y, f, set(9.6181291e-3f));
    y = fma(y, f, set(5.5504109e-2f));
    y = fma(y, f, set(2.4022651e-1f));
    y = fma(y, f, set(6.9314718e-1f));
    y = fma(y, f, set(1.0f));
    return _mm512_scalef_ps(y, whole);
  }

  static void to_fp16(const float* row, int count, uint16_t* out) {
    for (int d = 0; d < count; d += 16)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + d),
                          _mm512_cvtps_ph(_mm512_loadu_ps(row + d), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
};

// acc += the four products of bytes in each lane. In assembler: gcc 12 takes the intrinsic's accumulator out of its
// register and back, and so runs out of registers.
KVGAUGE_INLINE void add_products(__m512i& acc, __m512i of_unsigned, __m512i of_signed) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(of_unsigned), "v"(of_signed));
}
KVGAUGE_INLINE void add_products(__m512i& acc, __m512i of_unsigned, const int32_t& of_signed) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(of_unsigned), "m"(of_signed));
}

KVGAUGE_INLINE void store_bytes(void* to, __m512i x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(x));
}

}  // namespace
}  // namespace kvgauge

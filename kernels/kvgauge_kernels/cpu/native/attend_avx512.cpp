// The level of CPUs with AVX-512 (F, BW, DQ, VL, VNNI, BF16).
#if defined(__x86_64__)
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

template <int D>
Kernels kernels(const Problem& p) {
  return plain_kernels<Avx512, D>(p);
}

}  // namespace

Kernels kernels_avx512(const Problem& p) { return p.head_dim == 64 ? kernels<64>(p) : kernels<128>(p); }

}  // namespace kvgauge
#endif

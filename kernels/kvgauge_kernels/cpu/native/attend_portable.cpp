// The level of any CPU: vectors of four floats in the compiler's own terms.
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "attend_impl.h"

namespace kvgauge {
namespace {

KVGAUGE_INLINE float float_of_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

KVGAUGE_INLINE uint32_t bits_of_float(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// A product by 2^112 moves a half's exponent to where a float has it, and makes denormals normal.
KVGAUGE_INLINE float float_of_half(uint16_t half) {
  const uint32_t magnitude = half & 0x7fffu, sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  if (magnitude >= 0x7c00u) return float_of_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  return float_of_bits(sign | bits_of_float(float_of_bits(magnitude << 13) * 0x1p112f));
}

template <Format F>
KVGAUGE_INLINE float float_of_byte(uint8_t x) {
  if (F == Format::fp8_e5m2) return float_of_half(static_cast<uint16_t>(x << 8));
  // Sign, exponent and mantissa where fp16 has them, whose exponents start 8 lower; all ones are NaN.
  const int nan = (x & 0x7f) == 0x7f ? 0x7c00 : 0;
  return float_of_half(static_cast<uint16_t>((x & 0x80) << 8 | (x & 0x7f) << 7 | nan)) * 256.0f;
}

KVGAUGE_INLINE uint16_t half_of_float(float x) {
  const uint32_t bits = bits_of_float(x), sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {
    // Below the smallest normal half: the sum with 1/2 rounds to a multiple of 2^-24.
    return static_cast<uint16_t>(sign | (bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1)) >> 13));
}

struct Portable {
  typedef float V __attribute__((vector_size(16)));
  typedef int32_t Ints __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  static constexpr int kAccumulators = 8;
  static constexpr bool kEarlyWhereApart = false;

  static KVGAUGE_INLINE V zero() { return V{}; }
  static KVGAUGE_INLINE V set(float x) { return V{x, x, x, x}; }
  static KVGAUGE_INLINE V load(const float* from) {
    V x;
    std::memcpy(&x, from, sizeof(x));
    return x;
  }
  static KVGAUGE_INLINE void store(float* to, V x) { std::memcpy(to, &x, sizeof(x)); }
  static KVGAUGE_INLINE V add(V a, V b) { return a + b; }
  static KVGAUGE_INLINE V sub(V a, V b) { return a - b; }
  static KVGAUGE_INLINE V mul(V a, V b) { return a * b; }
  static KVGAUGE_INLINE V fma(V a, V b, V c) { return a * b + c; }
  static KVGAUGE_INLINE V max(V a, V b) { return a > b ? a : b; }

  template <Format F>
  static KVGAUGE_INLINE V read(const char* from) {
    if constexpr (F == Format::fp32) {
      V x;
      std::memcpy(&x, from, sizeof(x));
      return x;
    } else if constexpr (F == Format::int8) {
      const signed char* x = reinterpret_cast<const signed char*>(from);
      return V{float(x[0]), float(x[1]), float(x[2]), float(x[3])};
    } else if constexpr (is_grouped(F)) {
      constexpr int kBits = bits_of(F);
      uint16_t codes = 0;
      std::memcpy(&codes, from, kBits / 2);
      const auto code = [&](int i) { return float((codes >> (i * kBits)) & ((1 << kBits) - 1)); };
      return V{code(0), code(1), code(2), code(3)};
    } else if constexpr (F == Format::fp8_e4m3 || F == Format::fp8_e5m2) {
      const unsigned char* x = reinterpret_cast<const unsigned char*>(from);
      return V{float_of_byte<F>(x[0]), float_of_byte<F>(x[1]), float_of_byte<F>(x[2]), float_of_byte<F>(x[3])};
    } else {
      uint16_t x[4];
      std::memcpy(x, from, sizeof(x));
      if constexpr (F == Format::fp16)
        return V{float_of_half(x[0]), float_of_half(x[1]), float_of_half(x[2]), float_of_half(x[3])};
      else
        return V{float_of_bits(uint32_t(x[0]) << 16), float_of_bits(uint32_t(x[1]) << 16),
                 float_of_bits(uint32_t(x[2]) << 16), float_of_bits(uint32_t(x[3]) << 16)};
    }
  }

  static KVGAUGE_INLINE float max_of(V x) {
    float best = x[0];
    for (int i = 1; i < 4; ++i) best = best > x[i] ? best : x[i];
    return best;
  }
  static KVGAUGE_INLINE float sum_of(V x) { return (x[0] + x[1]) + (x[2] + x[3]); }

  template <int N>
  static KVGAUGE_INLINE void sums(const V (&a)[N], float* out) {
    for (int i = 0; i < N; ++i) out[i] = sum_of(a[i]);
  }

  // x is at most 0, or NaN. Below 2^-126 the result is 0.
  static KVGAUGE_INLINE V exp2(V x) {
    const V low = set(-126.0f);
    const V kept = x < low ? low : x;
    const V magic = set(12582912.0f);
    const V whole = (kept + magic) - magic;
    const V f = kept - whole;
    V y = set(1.5403530e-4f);
    for (float c : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f}) y = y * f + c;
    const Ints exponent = __builtin_convertvector(whole != whole ? zero() : whole, Ints) << 23;
    Ints bits;
    std::memcpy(&bits, &y, sizeof(y));
    bits += exponent;
    std::memcpy(&y, &bits, sizeof(y));
    return x < low ? zero() : x != x ? x : y;
  }

  static void to_fp16(const float* row, int count, uint16_t* out) {
    for (int d = 0; d < count; ++d) out[d] = half_of_float(row[d]);
  }
};

}  // namespace

Kernels kernels_portable(const Problem& p) {
  if (p.k_group_tokens) return plain_packed_kernels<Portable, true>(p);
  if (is_grouped(p.format)) return plain_packed_kernels<Portable, false>(p);
  if (p.format == Format::int8) return plain_kernels<Portable, Format::int8>(p);
  return float_kernels<Portable>(p);
}

}  // namespace kvgauge

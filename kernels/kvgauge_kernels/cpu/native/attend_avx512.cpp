// The level of CPUs with AVX-512 (F, BW, DQ, VL, VNNI, BF16).
#if defined(__x86_64__)
#include "bf16_avx512.h"
#include "bytewise_avx512.h"
#include "integers.h"
#include "packed_keys_avx512.h"
#include "packed_values_avx512.h"

namespace kvgauge {
namespace {

template <int Dim>
Kernels bytewise_kernels(const Problem& p) {
  if (p.int_bits == 8) return {attend<Avx512, Bytewise<Dim, 1>>, finish<Avx512>};
  return {attend<Avx512, Bytewise<Dim, 2>>, finish<Avx512>};
}

template <int Dim>
Kernels bf16_kernels() {
  return {attend<Avx512, Bf16Pairs<Dim, Dim>>, finish<Avx512>};
}

template <int Bits, int RowBytes, int Bytes, bool ByChannel>
using Packed =
    Integers<Avx512, PackedKeys<Bits, RowBytes, Bytes, ByChannel>, PackedValues<Bits, RowBytes, Bytes>>;

template <int Bits, int RowBytes, bool ByChannel = false>
Kernels packed_kernels_of(const Problem& p) {
  if (p.int_bits == 8) return {attend<Avx512, Packed<Bits, RowBytes, 1, ByChannel>>, finish<Avx512>};
  return {attend<Avx512, Packed<Bits, RowBytes, 2, ByChannel>>, finish<Avx512>};
}

template <int Bits>
Kernels packed_kernels(const Problem& p) {
  if (p.k_group_tokens && p.k_dim == 128 && p.v_dim == 128) return packed_kernels_of<Bits, 128 * Bits / 8, true>(p);
  if (p.k_group_tokens) return packed_kernels_of<Bits, 0, true>(p);
  if (p.k_dim == 64 && p.v_dim == 64) return packed_kernels_of<Bits, 64 * Bits / 8>(p);
  if (p.k_dim == 128 && p.v_dim == 128) return packed_kernels_of<Bits, 128 * Bits / 8>(p);
  return packed_kernels_of<Bits, 0>(p);
}

}  // namespace

Kernels kernels_avx512(const Problem& p) {
  if (p.format == Format::int4) return packed_kernels<4>(p);
  if (p.format == Format::int2) return packed_kernels<2>(p);
  if (p.format == Format::int8) {
    if (p.k_dim == 64 && p.v_dim == 64) return bytewise_kernels<64>(p);
    if (p.k_dim == 128 && p.v_dim == 128) return bytewise_kernels<128>(p);
    return bytewise_kernels<0>(p);
  }
  if (p.format == Format::bf16 && p.q_dtype == Format::bf16) {
    if (p.k_dim == 64 && p.v_dim == 64) return bf16_kernels<64>();
    if (p.k_dim == 128 && p.v_dim == 128) return bf16_kernels<128>();
    return bf16_kernels<0>();
  }
  return plain_kernels<Avx512>(p);
}

}  // namespace kvgauge
#endif

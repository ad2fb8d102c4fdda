// int4 and int2 at the level of CPUs with AVX-512: apart from the other formats, as each takes long to compile.
#if defined(__x86_64__)
#include "attend_packed_avx512.h"

#include "integers.h"
#include "packed_keys_avx512.h"
#include "packed_values_avx512.h"

namespace kvgauge {
namespace {

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

Kernels packed_kernels_avx512(const Problem& p) {
  return p.format == Format::int4 ? packed_kernels<4>(p) : packed_kernels<2>(p);
}

}  // namespace kvgauge
#endif

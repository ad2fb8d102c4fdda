// The level of CPUs with AVX2, FMA and F16C.
#if defined(__x86_64__)
#include "packed_avx2.h"
#include "words_avx2.h"

namespace kvgauge {
namespace {

template <int Bits>
Kernels packed_kernels(const Problem& p) {
  if (p.int_bits == 8) return {attend<Avx2, PackedAvx2<Bits, 1>>, finish<Avx2>};
  return {attend<Avx2, PackedAvx2<Bits, 2>>, finish<Avx2>};
}

}  // namespace

Kernels kernels_avx2(const Problem& p) {
  if (p.k_group_tokens) return plain_kernels<Avx2>(p);
  if (p.format == Format::int4 && PackedAvx2<4, 1>::takes(p)) return packed_kernels<4>(p);
  if (p.format == Format::int2 && PackedAvx2<2, 1>::takes(p)) return packed_kernels<2>(p);
  if (p.format == Format::int8) {
    if (p.k_dim == 64 && p.v_dim == 64) return {attend<Avx2, WordsAvx2<64>>, finish<Avx2>};
    if (p.k_dim == 128 && p.v_dim == 128) return {attend<Avx2, WordsAvx2<128>>, finish<Avx2>};
    return {attend<Avx2, WordsAvx2<0>>, finish<Avx2>};
  }
  return plain_kernels<Avx2>(p);
}

}  // namespace kvgauge
#endif

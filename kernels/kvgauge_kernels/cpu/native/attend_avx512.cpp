// The level of CPUs with AVX-512 (F, BW, DQ, VL, VNNI, BF16).
#if defined(__x86_64__)
#include "attend_packed_avx512.h"
#include "bf16_avx512.h"
#include "bytewise_avx512.h"

namespace kvgauge {

Kernels kernels_avx512(const Problem& p) {
  if (is_grouped(p.format)) return packed_kernels_avx512(p);
  if (p.format == Format::int8)
    return for_head_dims(p, [&](auto dim) -> Kernels {
      if (p.int_bits == 8) return {attend<Avx512, Bytewise<dim(), 1>>, finish<Avx512>};
      return {attend<Avx512, Bytewise<dim(), 2>>, finish<Avx512>};
    });
  if (p.format == Format::bf16 && p.q_dtype == Format::bf16)
    return for_head_dims(
        p, [](auto dim) -> Kernels { return {attend<Avx512, Bf16Pairs<dim(), dim()>>, finish<Avx512>}; });
  return float_kernels<Avx512>(p);
}

}  // namespace kvgauge
#endif

// The level of CPUs with AVX2, FMA and F16C.
#if defined(__x86_64__)
#include "byte_values_avx2.h"
#include "integers.h"
#include "packed_keys_avx2.h"
#include "word_keys_avx2.h"
#include "word_values_avx2.h"

namespace kvgauge {
namespace {

// int4 and int2, with the query and the weights in Bytes bytes.
template <int Bits, int RowBytes, int Bytes>
using PackedAvx2 =
    Integers<Avx2, PackedKeysAvx2<Bits, RowBytes, Bytes>,
             std::conditional_t<Bytes == 2, WordValuesAvx2<Bits, RowBytes>, ByteValuesAvx2<Bits, RowBytes>>>;

template <int Bits, int RowBytes, int Bytes>
Kernels packed_kernels_of() {
  return {attend<Avx2, PackedAvx2<Bits, RowBytes, Bytes>>, finish<Avx2>};
}

template <int Bits>
Kernels packed_kernels(const Problem& p) {
  constexpr int kRow = 128 * Bits / 8;
  const bool usual = p.k_dim == 128 && p.v_dim == 128;
  if (p.int_bits == 8) return usual ? packed_kernels_of<Bits, kRow, 1>() : packed_kernels_of<Bits, 0, 1>();
  return usual ? packed_kernels_of<Bits, kRow, 2>() : packed_kernels_of<Bits, 0, 2>();
}

// Whether rows and groups are whole pieces of 16 bytes.
bool whole_pieces(const Problem& p) {
  const auto whole = [](int bytes) { return bytes % 16 == 0; };
  const bool groups = whole(p.group_elements * bits_of(p.format) / 8) || (p.k_groups == 1 && p.v_groups == 1);
  return whole(k_row_bytes(p)) && whole(v_row_bytes(p)) && groups;
}

}  // namespace

Kernels kernels_avx2(const Problem& p) {
  if (p.k_group_tokens) return plain_packed_kernels<Avx2, true>(p);
  if (is_grouped(p.format) && !whole_pieces(p)) return plain_packed_kernels<Avx2, false>(p);
  if (p.format == Format::int4) return packed_kernels<4>(p);
  if (p.format == Format::int2) return packed_kernels<2>(p);
  if (p.format == Format::int8)
    return for_head_dims(p, [](auto dim) -> Kernels {
      return {attend<Avx2, Integers<Avx2, WordKeysAvx2<dim()>, WordValuesAvx2<8, dim()>>>, finish<Avx2>};
    });
  return float_kernels<Avx2>(p);
}

}  // namespace kvgauge
#endif

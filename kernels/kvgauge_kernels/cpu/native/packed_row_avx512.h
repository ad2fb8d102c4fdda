// A row of codes of Bits bits, as both halves of their arithmetic take it.
#pragma once

#include "avx512.h"
#include "rounding.h"

namespace kvgauge {
namespace {

// Row bytes that are known when this is compiled (0: not) are faster.
template <int Bits, int RowBytes>
struct PackedRow {
  static constexpr int kFields = 8 / Bits;  // of a byte
  static constexpr int kMaxRow = RowBytes ? RowBytes : kMaxGroupedDim / kFields;
  static constexpr int kChunks = (kMaxRow + 63) / 64;
  static constexpr float kMiddle = 1 << (Bits - 1);  // of the codes: numbers are mostly on both sides of 0

  static KVGAUGE_INLINE int k_dim(const Problem& p) { return RowBytes ? RowBytes * kFields : p.k_dim; }
  static KVGAUGE_INLINE int v_dim(const Problem& p) { return RowBytes ? RowBytes * kFields : p.v_dim; }
  static KVGAUGE_INLINE int k_row(const Problem& p) { return k_dim(p) / kFields; }
  static KVGAUGE_INLINE int v_row(const Problem& p) { return v_dim(p) / kFields; }

  // 64 bytes of a row; zeros past its end.
  static KVGAUGE_INLINE __m512i load(const char* from, int left) {
    if constexpr (RowBytes != 0 && RowBytes % 64 == 0) return _mm512_loadu_si512(from);
    return _mm512_maskz_loadu_epi8(left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1, from);
  }
};

}  // namespace
}  // namespace kvgauge

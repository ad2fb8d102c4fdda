// bf16 caches under queries that are bf16 too. Only for attend_avx512.cpp.
#pragma once

#include "avx512.h"

namespace kvgauge {
namespace {

// Scores by dot products of pairs, which fp32 sums up: both sides are taken as they are given, so that nothing is
// rounded and nothing converted. Numbers below the normal ones count as 0 in them (less than 1.2e-38).
template <int KDim, int VDim>
struct Bf16Pairs : Plain<Avx512, Format::bf16, KDim, VDim> {
  using Base = Plain<Avx512, Format::bf16, KDim, VDim>;
  using Base::k_dim, Base::v_dim;
  static constexpr int kRoom = (KDim ? KDim : kMaxHeadDim) + 31;

  alignas(64) uint16_t pairs[kMaxGroup][kRoom / 32 * 32];  // zeros behind the last

  void take_query(const Problem& p, const float* given) {
    std::memset(pairs, 0, sizeof(pairs));
    for (int g = 0; g < tiled(p.group); ++g)
      for (int d = 0; d < k_dim(p); ++d) {
        uint32_t bits;
        std::memcpy(&bits, given + g * k_dim(p) + d, 4);
        pairs[g][d] = static_cast<uint16_t>(bits >> 16);
      }
  }

  template <int H>
  void scores(const Problem& p, int first, const Block& block, const Block& v_ahead, const Scales<Avx512>&, int tokens,
              float* out) const {
    constexpr int T = Avx512::kAccumulators / H;
    const int dims = k_dim(p);
    score_tokens<Avx512, H>(first == 0, v_ahead, 2 * v_dim(p), 0, tokens, out, [&](int t, __m512(&acc)[H * T])
                                __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int d = 0; d < dims; d += 32) {
        __m512bh row[T];
#pragma GCC unroll 16
        for (int i = 0; i < T; ++i) row[i] = load_pairs(block.k[t + i] + 2 * d, dims - d);
#pragma GCC unroll 4
        for (int h = 0; h < H; ++h) {
          const __m512bh x = (__m512bh)_mm512_load_si512(pairs[first + h] + d);
#pragma GCC unroll 16
          for (int i = 0; i < T; ++i) acc[h * T + i] = _mm512_dpbf16_ps(acc[h * T + i], x, row[i]);
        }
      }
    });
    const __m512 by = Avx512::set(score_scale(dims));
    for (int h = 0; h < H; ++h)
      for (int t = 0; t < tokens; t += 16)
        Avx512::store(out + h * kBlock + t, Avx512::mul(by, Avx512::load(out + h * kBlock + t)));
  }

 private:
  static KVGAUGE_INLINE __m512bh load_pairs(const char* from, int left) {
    if (KDim % 32 == 0 && KDim != 0) return (__m512bh)_mm512_loadu_si512(from);
    return (__m512bh)_mm512_maskz_loadu_epi16(left >= 32 ? 0xffffffffu : (1u << left) - 1, from);
  }
};

template <int KDim, int VDim>
constexpr bool kQueryAsGiven<Bf16Pairs<KDim, VDim>> = true;

}  // namespace
}  // namespace kvgauge

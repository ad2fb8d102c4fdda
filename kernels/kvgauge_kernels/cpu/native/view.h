// What a decode step reads and writes: pointers, strides and shapes, and where a row lies.
#pragma once

#include <cstdint>

namespace kvgauge {

enum class Format { fp32 = 0, fp16 = 1, bf16 = 2, int8 = 3, int4 = 4, int2 = 5, fp8_e4m3 = 6, fp8_e5m2 = 7 };
constexpr int kFormats = 8;

constexpr int bits_of(Format format) {
  return format == Format::fp32                              ? 32
         : format == Format::fp16 || format == Format::bf16 ? 16
         : format == Format::int4                            ? 4
         : format == Format::int2                            ? 2
                                                             : 8;
}
// Codes in groups along a row, each with a scale and a zero: an element is code * scale + zero.
constexpr bool is_grouped(Format format) { return format == Format::int4 || format == Format::int2; }
// With a scale for each row or group.
constexpr bool is_scaled(Format format) { return format == Format::int8 || is_grouped(format); }

constexpr int kMaxGroup = 16;
constexpr int kMaxBlock = 128;
constexpr int kMaxHeadDim = 576;  // MLA's latent and rope part
constexpr int kMaxGroupedDim = 256;
// Numbers of a row are taken in whole vectors of the widest kind.
constexpr int kDimStep = 16;
// Groups hold whole vectors too.
constexpr int kMaxGroups = kMaxGroupedDim / kDimStep;
// What is computed on is padded to the bytes of such a vector.
constexpr int padded_dim(int dim) { return (dim + 63) / 64 * 64; }

// K or V. All strides are in bytes. `outer` steps over sequences where the cache is contiguous and over
// pages where it is paged; `token` steps within a sequence or within a page.
struct Rows {
  const char* data;
  int64_t outer, head, token;
};

struct Problem {
  Format format;   // of the cache
  Format q_dtype;  // of q and out: fp32, fp16 or bf16
  int k_dim, v_dim;
  int group;     // query heads that are computed together, at most kMaxGroup
  int64_t groups;  // such groups to one K/V head
  int int_bits;  // of q and p against a cache of integers: 16 or 8
  int64_t batch;
  int64_t heads;  // K/V heads times groups: what follows calls each a head
  const char* q;
  int64_t q_sequence, q_head;  // bytes
  char* out;                   // [batch, q_heads, v_dim], contiguous
  float* lse;                  // [batch, q_heads], contiguous: ln of the sum of e^score; null where not asked for
  Rows k, v;
  // fp16: of int8 one scale a row; of grouped formats `k_groups` and `v_groups` a row, next to each other, and as
  // many zeros. Strides as those of the rows.
  Rows k_scale, v_scale, k_zero, v_zero;
  int k_groups, v_groups;
  uint8_t group_of[kMaxGroups];  // of elements 16 * i and on
  int group_elements;
  // Where K's groups are of so many tokens instead (0: they are not), its scales and zeros are k_dim to a group,
  // next to each other, and `token` steps from group to group.
  int64_t k_group_tokens;
  int64_t page_size;     // 0 where the cache is contiguous
  const int32_t* table;  // [batch, table_row], the pages of each sequence; null where contiguous
  int64_t table_row;
  int block_tokens;  // taken at a time, a multiple of 16 up to kMaxBlock
};

// Tokens of a sequence that lie one `token` stride apart.
struct Run {
  int64_t outer;   // the sequence, or the page
  int64_t inside;  // the first token's place in it
  int64_t tokens;
};

// Static: each level compiles it with its own flags, and the linker must not take one for another.
// The longest run that starts at `token` of a sequence, of at most `wanted` tokens.
static inline Run run_at(const Problem& p, int64_t sequence, int64_t token, int64_t wanted) {
  if (p.page_size == 0) return {sequence, token, wanted};
  const int64_t page = token / p.page_size, inside = token - page * p.page_size;
  const int64_t left = p.page_size - inside;
  return {p.table[sequence * p.table_row + page], inside, left < wanted ? left : wanted};
}

// Bytes of a row of K or V.
static inline int k_row_bytes(const Problem& p) { return p.k_dim * bits_of(p.format) / 8; }
static inline int v_row_bytes(const Problem& p) { return p.v_dim * bits_of(p.format) / 8; }

// Floats that a query head's sum over V takes while it is computed: of grouped formats in an order of the
// kernel's own, in whole pieces of 32 bytes, and for what the zeros of a group add two vectors of 16: of the elements
// that stand last in their bytes, where a kernel tells them apart, the second.
static inline int row_floats(const Problem& p) {
  if (!is_grouped(p.format)) return padded_dim(p.v_dim);
  return (v_row_bytes(p) + 31) / 32 * 32 * (8 / bits_of(p.format)) + 32 * p.v_groups;
}

// Those vectors of a group, in a row of sums that ends at `end`.
static inline float* rest_at(const Problem& p, float* end, int group, bool last = false) {
  return end + (2 * (group - p.v_groups) + last) * 16;
}

static inline const char* row_at(const Rows& rows, int64_t head, const Run& run) {
  return rows.data + run.outer * rows.outer + head * rows.head + run.inside * rows.token;
}

}  // namespace kvgauge

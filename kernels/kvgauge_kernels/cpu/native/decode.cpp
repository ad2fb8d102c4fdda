// One decode step over one layer's cache: checks, the split of the work over the pool, and the binding.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <new>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "attend.h"
#include "block_size.h"
#include "level.h"
#include "pool.h"

namespace kvgauge {
namespace {

// A shorter piece is not worth a hand-over.
constexpr int64_t kLeastPiece = 256;
// Pieces to a thread: with few, one that is late is waited for; with many, streams are short.
constexpr int64_t kPiecesPerThread = 6;

// Bytes of results that are worth keeping from step to step.
constexpr int64_t kKept = 1 << 20;

Kernels kernels_of(const Problem& p) {
#if defined(__x86_64__)
  if (level() == Level::avx512) return kernels_avx512(p);
  if (level() == Level::avx2) return kernels_avx2(p);
#endif
  return kernels_portable(p);
}

// The tokens of a sequence that are seen: those before `sinks_end`, and those from `first` on.
struct Seen {
  int64_t sinks_end, first, length;
  int64_t tokens() const { return sinks_end + length - first; }
};

std::vector<Seen> seen(const std::vector<int64_t>& lengths, int64_t window, int64_t sinks) {
  std::vector<Seen> all;
  for (int64_t length : lengths) {
    const int64_t first = window == 0 || window >= length ? 0 : length - window;
    all.push_back(first <= sinks ? Seen{0, 0, length} : Seen{sinks, first, length});
  }
  return all;
}

// Where a head's tokens are not in one piece, a token's heads are near to each other, and are read one after
// the other: else each page of memory would be looked up once a head.
int64_t heads_together(const Problem& p, const std::vector<Seen>& sequences) {
  int64_t longest = 0;
  for (const Seen& s : sequences) longest = std::max(longest, s.length);
  const bool apart = p.page_size > 0 || p.k.head < longest * p.k.token;
  return apart ? std::min<int64_t>(p.heads, kMaxTaskHeads) : 1;
}

// A task, and where its results wait for those of the rest of the sequence: `count` parts a head, from
// `first_part` on; this one is number `index` of them.
struct Piece {
  Task task;
  int64_t index, count, first_part, counter;
};

struct Plan {
  std::vector<Piece> pieces;
  std::vector<int> left;  // how many of the pieces that belong together are not done yet
  int64_t parts = 0;
  Parts results{nullptr, 0};

  void make(const Problem& p, const std::vector<Seen>& sequences, int threads) {
    pieces.clear();
    left.clear();
    parts = 0;
    if (p.batch == 0 || p.heads == 0) return;
    const int64_t together = heads_together(p, sequences);
    int64_t total = 0;
    for (const Seen& s : sequences) total += s.tokens() * ((p.heads + together - 1) / together);
    const int64_t wanted = threads * kPiecesPerThread;
    const int64_t longest = std::max(kLeastPiece, (total + wanted - 1) / wanted);
    for (int64_t b = 0; b < p.batch; ++b) {
      const Seen& s = sequences[b];
      const int64_t count = threads == 1 ? 1 : (s.length - s.first + longest - 1) / longest;
      const int64_t size = ((s.length - s.first + count - 1) / count + 63) / 64 * 64;
      for (int64_t h = 0; h < p.heads; h += together) add(s, {b, h, std::min(together, p.heads - h), 0, 0}, size);
    }
    results.bytes = Parts::bytes_of(p);
    const int64_t needed = parts * results.bytes;
    // What a far larger step took is given back.
    if (needed > room || room > 16 * std::max(needed, kKept)) {
      memory.reset(static_cast<char*>(::operator new(static_cast<size_t>(needed), std::align_val_t{alignof(Part)})));
      room = needed;
    }
    results.first = memory.get();
  }

 private:
  struct Free {
    void operator()(char* at) const { ::operator delete(at, std::align_val_t{alignof(Part)}); }
  };
  // Not a vector: a Part is written before it is read, and there may be megabytes of them.
  std::unique_ptr<char, Free> memory;
  int64_t room = 0;  // bytes

  void add(const Seen& seen, Task task, int64_t size) {
    const int64_t with_sinks = seen.sinks_end > 0, count = with_sinks + (seen.length - seen.first + size - 1) / size;
    for (int64_t i = 0; i < count; ++i) {
      task.first = i < with_sinks ? 0 : seen.first + (i - with_sinks) * size;
      task.last = i < with_sinks ? seen.sinks_end : std::min(seen.length, task.first + size);
      pieces.push_back({task, i, count, parts, static_cast<int64_t>(left.size())});
    }
    left.push_back(static_cast<int>(count));
    parts += count * task.heads;
  }
};

void run(const Problem& p, const std::vector<Seen>& sequences) {
  thread_local Plan plan;
  Plan& mine = plan;  // the tasks run on other threads
  mine.make(p, sequences, thread_count());
  const Kernels kernels = kernels_of(p);
  run_tasks(static_cast<int64_t>(mine.pieces.size()), [&](int64_t i) {
    const Piece& piece = mine.pieces[i];
    const Parts parts = mine.results.from(piece.first_part);
    kernels.attend(p, piece.task, parts.from(piece.index), piece.count);
    // Whoever is last has all parts before it.
    if (__atomic_sub_fetch(&mine.left[piece.counter], 1, __ATOMIC_ACQ_REL) == 0)
      for (int64_t h = 0; h < piece.task.heads; ++h)
        kernels.finish(p, piece.task.sequence, piece.task.head + h, parts.from(h * piece.count), piece.count);
  });
}

void require(bool holds, const char* otherwise) {
  if (!holds) throw std::invalid_argument(otherwise);
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Address, and the strides in elements of the first three dimensions as the cache has them: sequences or
// pages, heads, tokens.
using Tensor = std::tuple<uintptr_t, int64_t, int64_t, int64_t>;

Rows rows_of(const Tensor& tensor, int element) {
  const auto [address, outer, head, token] = tensor;
  return {pointer<const char>(address), outer * element, head * element, token * element};
}

// batch, kv_heads, group, k_dim, v_dim, elements to a scale (0: a row), and tokens to one of K (0: each has its own)
using Sizes = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;
// K or V: its rows, their scales and zeros.
using Cache = std::tuple<Tensor, Tensor, Tensor>;
// address of q, strides of sequences and heads in elements, addresses of out and (or 0) of the sums
using Queries = std::tuple<uintptr_t, int64_t, int64_t, uintptr_t, uintptr_t>;
// address, entries a sequence, elements from one sequence's to the next, pages, tokens a page
using Pages = std::tuple<uintptr_t, int64_t, int64_t, int64_t, int64_t>;

void check_pages(const Problem& p, int64_t entries, int64_t pages, const std::vector<int64_t>& lengths) {
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t used = (lengths[b] + p.page_size - 1) / p.page_size;
    require(used <= entries, "a sequence is longer than its pages");
    const int32_t* row = p.table + b * p.table_row;
    uint32_t largest = 0;  // a negative number is a large one too
    for (int64_t i = 0; i < used; ++i) largest = std::max(largest, static_cast<uint32_t>(row[i]));
    require(largest < static_cast<uint64_t>(pages), "the block table names a page that is not there");
  }
}

// What is seen of each sequence: the last `window` tokens (0: all) and the first `sinks`.
using Window = std::tuple<int64_t, int64_t>;

void take_groups(Problem& p, int64_t elements, int64_t k_tokens) {
  require(k_tokens == 0 || is_grouped(p.format), "only int4 and int2 have K per channel");
  require(k_tokens >= 0 && k_tokens % 16 == 0, "K per channel needs groups of multiples of 16 tokens");
  require(k_tokens == 0 || p.page_size % k_tokens == 0, "pages must hold whole groups of tokens");
  p.k_group_tokens = k_tokens;
  p.group_elements = static_cast<int>(elements);
  p.k_groups = p.v_groups = 1;
  if (!is_grouped(p.format)) return;
  require(elements >= kDimStep && elements % kDimStep == 0, "groups must be multiples of 16 elements");
  p.group_elements = static_cast<int>(std::min<int64_t>(elements, kMaxHeadDim));
  p.k_groups = (p.k_dim + p.group_elements - 1) / p.group_elements;
  p.v_groups = (p.v_dim + p.group_elements - 1) / p.group_elements;
  if (k_tokens) p.k_groups = 1;
  for (int i = 0; i < kMaxGroups; ++i) p.group_of[i] = static_cast<uint8_t>(i * kDimStep / p.group_elements);
}

void decode(int format, int q_dtype, int int_bits, const Sizes& sizes, const Queries& queries, const Cache& k,
            const Cache& v, const Pages& pages, const std::vector<int64_t>& lengths, const Window& window) {
  require(format >= 0 && format < kFormats, "unknown format");
  require(q_dtype >= 0 && q_dtype <= 2, "queries must be fp32, fp16 or bf16");
  require(int_bits == 16 || int_bits == 8, "int_bits must be 16 or 8");
  Problem p{};
  p.format = static_cast<Format>(format);
  p.q_dtype = static_cast<Format>(q_dtype);
  p.int_bits = int_bits;
  const auto [batch, kv_heads, group, k_dim, v_dim, group_elements, k_group_tokens] = sizes;
  const int64_t most = is_grouped(p.format) ? kMaxGroupedDim : kMaxHeadDim;
  for (int64_t dim : {k_dim, v_dim})
    require(dim >= kDimStep && dim <= most && dim % kDimStep == 0,
            "head dims must be multiples of 16, up to 576, or 256 in groups");
  require(group >= 1 && group <= (1 << 20), "a K/V head must have query heads");
  require(batch >= 0 && kv_heads >= 0, "sizes must not be negative");
  require(static_cast<int64_t>(lengths.size()) == batch, "there must be one length a sequence");
  for (int64_t length : lengths) require(length >= 1, "a sequence has no tokens");
  p.batch = batch;
  p.groups = (group + kMaxGroup - 1) / kMaxGroup;
  while (group % p.groups) ++p.groups;
  p.group = static_cast<int>(group / p.groups);
  p.heads = kv_heads * p.groups;
  p.k_dim = static_cast<int>(k_dim);
  p.v_dim = static_cast<int>(v_dim);
  const int q_bytes = bits_of(p.q_dtype) / 8;
  const auto [q, q_sequence, q_head, out, lse] = queries;
  p.q = pointer<const char>(q);
  p.q_sequence = q_sequence * q_bytes;
  p.q_head = q_head * q_bytes;
  p.out = pointer<char>(out);
  p.lse = pointer<float>(lse);
  const int bytes = std::max(1, bits_of(p.format) / 8);  // of what the tensor counts
  p.k = rows_of(std::get<0>(k), bytes);
  p.v = rows_of(std::get<0>(v), bytes);
  p.k_scale = rows_of(std::get<1>(k), 2);
  p.v_scale = rows_of(std::get<1>(v), 2);
  p.k_zero = rows_of(std::get<2>(k), 2);
  p.v_zero = rows_of(std::get<2>(v), 2);
  require(!is_scaled(p.format) || (p.k_scale.data && p.v_scale.data), "a cache of integers needs scales");
  require(!is_grouped(p.format) || (p.k_zero.data && p.v_zero.data), "a cache in groups needs zeros");
  const auto [table, entries, table_row, page_count, page_size] = pages;
  require(page_size >= 0 && (page_size == 0) == (table == 0), "a block table and a page size belong together");
  p.table = pointer<const int32_t>(table);
  p.table_row = table_row;
  p.page_size = page_size;
  take_groups(p, group_elements, k_group_tokens);
  p.block_tokens = tokens_at_a_time(p, level());
  if (page_size) check_pages(p, entries, page_count, lengths);
  const auto [last, sinks] = window;
  require(last >= 0 && sinks >= 0, "a window must not be negative");
  run(p, seen(lengths, last, sinks));
}

}  // namespace
}  // namespace kvgauge

void register_decode(nanobind::module_& m) {
  namespace nb = nanobind;
  m.def("decode", &kvgauge::decode, nb::arg("format"), nb::arg("q_dtype"), nb::arg("int_bits"), nb::arg("sizes"),
        nb::arg("queries"), nb::arg("k"), nb::arg("v"), nb::arg("pages"), nb::arg("lengths"), nb::arg("window"),
        nb::call_guard<nb::gil_scoped_release>(),
        "Attention of one new token a sequence. The caller vouches for the addresses, strides and lengths: "
        "they are checked for what can be seen from here, which is not the size of the tensors.");
}

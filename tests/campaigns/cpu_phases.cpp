// What each phase of the CPU kernels takes on one core whose second-level cache holds K and V; see cpu_phases.py.
// Compiled with -DLEVEL=512 or 2, on the native code as it is. Prints `case<tab>phase<tab>ns a token of a head`.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "block_size.h"

#if LEVEL == 512
#include "attend_avx512.cpp"
#include "attend_packed_avx512.cpp"
#else
#include "attend_avx2.cpp"
#endif

namespace kvgauge {
namespace {

constexpr int kTokens = 512, kDim = 128, kHeads = 4, kRepeats = 2000;
#if LEVEL == 512
using Isa = Avx512;
template <int Bytes>
using Int8 = Bytewise<kDim, Bytes>;
template <int Bytes>
using Int4 = Packed<4, kDim / 2, Bytes, false>;
#else
using Isa = Avx2;
template <int Bytes>
using Int8 = Integers<Avx2, WordKeysAvx2<kDim>, WordValuesAvx2<8, kDim>>;
template <int Bytes>
using Int4 = PackedAvx2<4, kDim / 2, Bytes>;
#endif

// A cache line's address.
char* aligned(std::vector<char>& memory) {
  return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
}

// The least of many times, in ns a token: what others do to the core makes it longer.
template <class Do>
double least(Do step) {
  using Clock = std::chrono::steady_clock;
  double best = 1e300;
  for (int i = 0; i < kRepeats; ++i) {
    const auto start = Clock::now();
    step();
    best = std::min(best, std::chrono::duration<double, std::nano>(Clock::now() - start).count());
  }
  return best / kTokens;
}

// One head of a cache of random numbers, and its blocks. Each phase is a function of its own, compiled as such: what
// surrounds it must not change it.
template <class Arithmetic>
struct Head {
  std::vector<char> k, v;
  std::vector<uint16_t> steps = std::vector<uint16_t>(2 * kTokens), zeros = std::vector<uint16_t>(2 * kTokens);
  std::vector<uint16_t> q = std::vector<uint16_t>(kHeads * kDim);
  Problem p{};
  Arithmetic arithmetic;
  std::vector<Block> blocks;
  Scales<Isa> scales;
  alignas(64) float scores[kMaxGroup * kBlock], weights[kMaxGroup * kBlock], rows[kMaxGroup * 1024] = {};
  alignas(64) char part[1 << 15];
  float largest[kMaxGroup], sum[kMaxGroup] = {};

  Head(Format format, int int_bits) {
    p.format = format;
    p.q_dtype = Format::fp16;
    p.int_bits = int_bits;
    p.k_dim = p.v_dim = kDim;
    p.group = kHeads;
    p.batch = p.heads = p.groups = 1;
    const int row = k_row_bytes(p), groups = is_grouped(format) ? 2 : 1;
    for (auto* each : {&k, &v}) each->resize(kTokens * row + 64);
    for (auto* each : {&k, &v})
      for (char& byte : *each) byte = static_cast<char>(std::rand());
    // Numbers of fp16 between a quarter and a half; scales and zeros are smaller.
    if (format == Format::fp16)
      for (auto* each : {&k, &v})
        for (int i = 0; i < kTokens * kDim; ++i) reinterpret_cast<uint16_t*>(aligned(*each))[i] = number(0x3400);
    for (uint16_t& x : q) x = number(0x3400);
    for (uint16_t& x : steps) x = number(0x2000) & 0x7fff;
    for (uint16_t& x : zeros) x = number(0xa800) | 0x8000;
    p.q = reinterpret_cast<const char*>(q.data());
    p.q_head = 2 * kDim;
    p.k = {aligned(k), 0, 0, row};
    p.v = {aligned(v), 0, 0, row};
    p.k_scale = p.v_scale = {reinterpret_cast<const char*>(steps.data()), 0, 0, 2 * groups};
    p.k_zero = p.v_zero = {reinterpret_cast<const char*>(zeros.data()), 0, 0, 2 * groups};
    p.k_groups = p.v_groups = groups;
    p.group_elements = kDim / groups;
    for (int i = 0; i < kMaxGroups; ++i) p.group_of[i] = static_cast<uint8_t>(i * kDimStep / p.group_elements % groups);
    p.block_tokens = tokens_at_a_time(p, LEVEL == 512 ? Level::avx512 : Level::avx2);
    blocks.resize(kTokens / p.block_tokens);
    find();
    alignas(64) float query[kMaxGroup * kDim] = {};
    for (int h = 0; h < kHeads; ++h) load_query<Isa>(p, p.q + h * p.q_head, 0.1f, query + h * kDim);
    arithmetic.take_query(p, query);
    for (float& x : largest) x = -kInfinity;
    read();
    keys();
    softmax();
  }

  static uint16_t number(int exponent) {
    return static_cast<uint16_t>(exponent | std::rand() % 1024 | std::rand() % 2 << 15);
  }
  Block& next(size_t i) { return blocks[(i + 1) % blocks.size()]; }
  int stride() const { return Arithmetic::row_stride(p); }

  __attribute__((noinline)) void find() {
    for (size_t i = 0; i < blocks.size(); ++i) {
      blocks[i].find(p, 0, 0, static_cast<int64_t>(i) * p.block_tokens, kTokens);
      blocks[i].announce(p);
    }
  }
  __attribute__((noinline)) void read() {
    for (const Block& block : blocks)
      if (is_scaled(p.format)) scales.read(p, block);
  }
  __attribute__((noinline)) void keys() {
    for (size_t i = 0; i < blocks.size(); ++i)
      arithmetic.template scores<kHeads>(p, 0, blocks[i], next(i), scales, p.block_tokens, scores);
  }
  // The copy of the scores, which become weights in place, counts too.
  __attribute__((noinline)) void softmax() {
    for (size_t i = 0; i < blocks.size(); ++i) {
      for (int h = 0; h < kHeads; ++h)
        std::memcpy(weights + h * kBlock, scores + h * kBlock, sizeof(float) * p.block_tokens);
      weigh<Isa, kHeads>(weights, p.block_tokens, p.block_tokens, largest, sum, rows, stride());
    }
  }
  __attribute__((noinline)) void values() {
    for (size_t i = 0; i < blocks.size(); ++i)
      arithmetic.template add_rows<kHeads>(p, weights, blocks[i], scales, next(i), true, p.block_tokens, rows,
                                           stride());
  }
  __attribute__((noinline)) void whole() {
    attend<Isa, Arithmetic>(p, Task{0, 0, 1, 0, kTokens}, Parts{part, Parts::bytes_of(p)}, 1);
  }
};

template <class Arithmetic>
void measure(const char* name, Format format, int int_bits) {
  auto* const head = new Head<Arithmetic>(format, int_bits);
  const auto say = [&](const char* phase, double ns) { std::printf("%s\t%s\t%.3f\n", name, phase, ns); };
  say("find", least([&] { head->find(); }));
  say("scales", least([&] { head->read(); }));
  say("K", least([&] { head->keys(); }));
  say("softmax", least([&] { head->softmax(); }));
  say("V", least([&] { head->values(); }));
  say("whole", least([&] { head->whole(); }));
}

}  // namespace
}  // namespace kvgauge

int main() {
  using namespace kvgauge;
  measure<Plain<Isa, Format::fp16, kDim, kDim>>("`cpu` fp16", Format::fp16, 16);
  measure<Int8<2>>("`cpu` int8", Format::int8, 16);
  measure<Int4<2>>("`cpu` int4", Format::int4, 16);
  if (LEVEL == 512) measure<Int8<1>>("`cpu-q8` int8", Format::int8, 8);
  measure<Int4<1>>("`cpu-q8` int4", Format::int4, 8);
}

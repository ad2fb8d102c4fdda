// The probe: what the memory, the arithmetic units and the way from core to core give at this moment.
#include "probe.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <optional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "cores.h"
#include "level.h"
#include "pool.h"

namespace nb = nanobind;

namespace kvgauge {
namespace {

using Clock = std::chrono::steady_clock;

// Pieces are taken one by one, so that a core that others use takes fewer of them.
constexpr size_t kLeastPiece = 64 * 1024;
constexpr size_t kLargestPiece = 1024 * 1024;
constexpr int kPiecesAThread = 8;
constexpr std::chrono::microseconds kArithmetic{1000};
constexpr std::chrono::milliseconds kPatience{10};
constexpr int kPasses = 64;
constexpr int kBatches = 8;

double seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

const Loops& loops() {
#if defined(__x86_64__)
  if (level() == Level::avx512) return avx512_loops;
  if (level() == Level::avx2) return avx2_loops;
#endif
  return portable_loops;
}

template <class Work>  // Work(begin, bytes) for pieces that together are all bytes; each begins on a whole word
void in_pieces(size_t bytes, const Work& work) {
  const size_t share = bytes / (static_cast<size_t>(thread_count()) * kPiecesAThread);
  const size_t piece = std::clamp(share / kLeastPiece * kLeastPiece, kLeastPiece, kLargestPiece);
  run_tasks(static_cast<int64_t>((bytes + piece - 1) / piece), [&](int64_t i) {
    const size_t begin = static_cast<size_t>(i) * piece;
    work(begin, std::min(piece, bytes - begin));
  });
}

uint64_t read_sum(uintptr_t address, size_t bytes) {
  const uint8_t* data = reinterpret_cast<const uint8_t*>(address);
  const Loops& use = loops();
  std::atomic<uint64_t> sum{0};
  in_pieces(bytes, [&](size_t begin, size_t count) {
    sum.fetch_add(use.read(data + begin, count), std::memory_order_relaxed);
  });
  return sum.load();
}

void copy_bytes(uintptr_t to, uintptr_t from, size_t bytes, bool streaming) {
  uint8_t* target = reinterpret_cast<uint8_t*>(to);
  const uint8_t* source = reinterpret_cast<const uint8_t*>(from);
  const Loops& use = loops();
  in_pieces(bytes, [&](size_t begin, size_t count) {
    use.copy(target + begin, source + begin, count, streaming);
  });
}

// Operations a second of all threads: each calls `loop` for a millisecond. Where they did not all run at once,
// once more, and at last as it is.
double rate(uint64_t (*loop)()) {
  struct Done {
    Clock::time_point start, end;
    uint64_t operations = 0;
  };
  double best = 0;
  for (int attempt = 0; attempt < 3; ++attempt) {
    std::vector<Done> done(static_cast<size_t>(thread_count()));
    Meeting meeting(static_cast<int>(done.size()));
    std::atomic<bool> met{true};
    run_tasks(static_cast<int64_t>(done.size()), [&](int64_t i) {
      if (!meeting.wait()) met = false;
      Done& mine = done[static_cast<size_t>(i)];
      uint64_t operations = 0;
      mine.start = Clock::now();
      do operations += loop();
      while ((mine.end = Clock::now()) - mine.start < kArithmetic);
      mine.operations = operations;
    });
    uint64_t operations = 0;
    Clock::time_point start = done[0].start, end = done[0].end;
    for (const Done& each : done) {
      operations += each.operations;
      start = std::min(start, each.start);
      end = std::max(end, each.end);
    }
    best = std::max(best, static_cast<double>(operations) / seconds(end - start));
    if (met) break;
  }
  return best;
}

double multiply_add_rate() { return rate(loops().multiply_add); }

std::optional<double> dot_rate(int bits) {
  if (bits != 8 && bits != 16) throw std::invalid_argument("bits must be 8 or 16");
  uint64_t (*const loop)() = bits == 8 ? loops().dot8 : loops().dot16;
  return loop ? std::optional(rate(loop)) : std::nullopt;
}

struct Game {
  alignas(128) std::atomic<int> ball{0};
  alignas(128) std::atomic<bool> given_up{false};
  double best_s = 0;  // of a batch; written by player 0 alone
};

void play(Game& game, int mine) {
  const Clock::time_point patience = Clock::now() + kPatience;
  Clock::time_point start{};
  for (int pass = 0; pass <= kPasses * kBatches; ++pass) {
    for (int spin = 1; game.ball.load(std::memory_order_acquire) != 2 * pass + mine; ++spin)
      if (spin % 16384 == 0 && (game.given_up.load() || Clock::now() > patience))
        return game.given_up.store(true);
    if (mine == 0 && pass % kPasses == 0) {
      const Clock::time_point now = Clock::now();
      const double took_s = seconds(now - start);
      if (pass && (game.best_s == 0 || took_s < game.best_s)) game.best_s = took_s;
      start = now;
    }
    game.ball.store(2 * pass + mine + 1, std::memory_order_release);
  }
}

// Nanoseconds in which a line goes from one core to another, between the first two that this thread may run
// on: the least of some batches, since an interruption only lengthens one. None with one core or one thread,
// and where both cores were not to be had at once.
std::optional<double> ping_pong_ns() {
  const std::vector<int> cores = allowed_cores();
  const bool stay = threads_stay();
  if (thread_count() < 2 || (cores.size() < 2 && !stay)) return std::nullopt;
  Game game;
  Meeting meeting(2);
  run_tasks(2, [&](int64_t i) {
    std::optional<Pinned> seat;
    if (!stay) seat.emplace(cores[static_cast<size_t>(i)]);
    if (seat && !seat->held()) game.given_up.store(true);
    if (!meeting.wait()) return game.given_up.store(true);
    play(game, static_cast<int>(i));
  });
  if (game.given_up.load() || game.best_s == 0) return std::nullopt;
  return game.best_s * 1e9 / (2 * kPasses);
}

}  // namespace
}  // namespace kvgauge

void register_probe(nb::module_& m) {
  using namespace kvgauge;
  const auto free = nb::call_guard<nb::gil_scoped_release>();
  m.def("probe_read", &read_sum, free, nb::arg("address"), nb::arg("bytes"));
  m.def("probe_copy", &copy_bytes, free, nb::arg("to"), nb::arg("source"), nb::arg("bytes"),
        nb::arg("streaming"));
  m.def("probe_multiply_add_rate", &multiply_add_rate, free);
  m.def("probe_dot_rate", &dot_rate, free, nb::arg("bits"));
  m.def("probe_ping_pong_ns", &ping_pong_ns, free);
}

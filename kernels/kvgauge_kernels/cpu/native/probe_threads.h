// On whose threads a loop of the probe runs: those of whatever is measured beside it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>

namespace kvgauge {

// A thread of torch's that has nothing to do goes on looking for work for some milliseconds, one of the
// pool's for a fraction of one: two sets of threads used in turn take the cores away from each other.
enum class Threads { pool, openmp };

// Whether this process has an OpenMP runtime with GNU's interface, as torch brings one.
bool has_openmp();

int count_threads(Threads threads);

// task(0) ... task(count - 1), each on one of the threads, handed out in order.
void run_on(Threads threads, int64_t count, const std::function<void(int64_t)>& task);

// Where as many tasks as there are threads wait for one another: each then has a thread of its own.
class Meeting {
 public:
  explicit Meeting(int count);

  // Whether all came. Where not (the pool shrank, a core was taken away) nobody waits for ever.
  bool wait();

 private:
  std::atomic<int> here_{0};
  const int count_;
  const std::chrono::steady_clock::time_point patience_;
};

}  // namespace kvgauge

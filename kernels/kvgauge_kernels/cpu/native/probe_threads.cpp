#include "probe_threads.h"

#include <dlfcn.h>

#include <algorithm>
#include <thread>

#include "pool.h"

namespace kvgauge {
namespace {

constexpr std::chrono::milliseconds kPatience{10};

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using Count = int (*)();

// Looked up when first used: torch may be imported after this module. What is not there is looked for again.
template <class Function>
Function find(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

}  // namespace

bool has_openmp() { return find<Parallel>("GOMP_parallel") && find<Count>("omp_get_max_threads"); }

int count_threads(Threads threads) {
  if (threads == Threads::pool || !has_openmp()) return thread_count();
  return std::max(1, find<Count>("omp_get_max_threads")());
}

void run_on(Threads threads, int64_t count, const std::function<void(int64_t)>& task) {
  if (threads == Threads::pool || !has_openmp()) return run_tasks(count, task);
  struct Shared {
    std::atomic<int64_t> next{0};
    const int64_t count;
    const std::function<void(int64_t)>& task;
  } shared{{0}, count, task};
  const auto each = [](void* data) {
    Shared& work = *static_cast<Shared*>(data);
    for (int64_t i = work.next.fetch_add(1); i < work.count; i = work.next.fetch_add(1)) work.task(i);
  };
  find<Parallel>("GOMP_parallel")(each, &shared, 0, 0);
}

Meeting::Meeting(int count)
    : count_(count), patience_(std::chrono::steady_clock::now() + kPatience) {}

bool Meeting::wait() {
  here_.fetch_add(1, std::memory_order_acq_rel);
  for (int spin = 1; here_.load(std::memory_order_acquire) < count_; ++spin)
    if (spin % 256 == 0) {
      if (std::chrono::steady_clock::now() > patience_) return false;
      std::this_thread::yield();
    }
  return true;
}

}  // namespace kvgauge

#include "pool.h"

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#include <unistd.h>
#endif

namespace kvgauge {
namespace {

// A step is a fraction of a millisecond: for so long a thread that has nothing to do looks again.
constexpr int kSpins = 20000;

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

std::vector<int> allowed_cores() {
  std::vector<int> cores;
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0)
    for (int core = 0; core < CPU_SETSIZE; ++core)
      if (CPU_ISSET(core, &set)) cores.push_back(core);
#endif
  if (cores.empty())
    for (unsigned core = 0; core < std::max(1u, std::thread::hardware_concurrency()); ++core)
      cores.push_back(static_cast<int>(core));
  return cores;
}

void pin(std::thread& thread, int core) {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  pthread_setaffinity_np(thread.native_handle(), sizeof(set), &set);
#else
  (void)thread;
  (void)core;
#endif
}

// The caller's thread is not ours: it is pinned while it works, and then let go where it was.
class Pinned {
 public:
  explicit Pinned(int core) {
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    held_ = sched_getaffinity(0, sizeof(before_), &before_) == 0 &&
            sched_setaffinity(0, sizeof(set), &set) == 0;
#else
    (void)core;
#endif
  }

  ~Pinned() {
#if defined(__linux__)
    if (held_) sched_setaffinity(0, sizeof(before_), &before_);
#endif
  }

 private:
#if defined(__linux__)
  cpu_set_t before_;
  bool held_ = false;
#endif
};

class Pool {
 public:
  explicit Pool(int threads) : first_core_(allowed_cores().front()) {
    const std::vector<int> cores = allowed_cores();
    for (int i = 1; i < threads; ++i) {
      workers_.emplace_back([this] { work(); });
      pin(workers_.back(), cores[i % cores.size()]);
    }
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> held(mutex_);
      stop_ = true;
      round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  void run(int64_t count, const std::function<void(int64_t)>& task) {
    if (count <= 0) return;
    if (workers_.empty() || count == 1) {
      for (int64_t i = 0; i < count; ++i) task(i);
      return;
    }
    const Pinned pinned(first_core_);
    task_ = &task;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    working_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> held(mutex_);
      round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    take_tasks();
    while (working_.load(std::memory_order_acquire) != 0) pause_cpu();
  }

 private:
  void take_tasks() {
    for (int64_t i = next_.fetch_add(1); i < count_; i = next_.fetch_add(1)) (*task_)(i);
  }

  void work() {
    uint64_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < kSpins && round_.load(std::memory_order_acquire) == seen; ++spin)
        pause_cpu();
      if (round_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> held(mutex_);
        wake_.wait(held, [&] { return round_.load(std::memory_order_acquire) != seen; });
      }
      seen = round_.load(std::memory_order_acquire);
      if (stop_) return;
      take_tasks();
      working_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> round_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<int> working_{0};
  const std::function<void(int64_t)>* task_ = nullptr;
  int64_t count_ = 0;
  bool stop_ = false;
  int first_core_;
};

std::mutex pool_mutex;
std::unique_ptr<Pool> pool;
#if defined(__linux__)
pid_t owner = 0;  // a forked child has the pool but not its threads
#endif

Pool& the_pool(int threads = 0) {
#if defined(__linux__)
  if (pool && owner != getpid()) pool.release();
  owner = getpid();
#endif
  if (!pool || (threads && threads != pool->threads()))
    pool = std::make_unique<Pool>(threads ? threads : static_cast<int>(allowed_cores().size()));
  return *pool;
}

}  // namespace

void run_tasks(int64_t count, const std::function<void(int64_t)>& task) {
  std::lock_guard<std::mutex> held(pool_mutex);
  the_pool().run(count, task);
}

int thread_count() {
  std::lock_guard<std::mutex> held(pool_mutex);
  return the_pool().threads();
}

void set_thread_count(int count) {
  if (count < 1 || count > 1024) throw std::invalid_argument("threads must be between 1 and 1024");
  std::lock_guard<std::mutex> held(pool_mutex);
  the_pool(count);
}

}  // namespace kvgauge

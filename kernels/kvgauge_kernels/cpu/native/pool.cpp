#include "pool.h"

#include <dlfcn.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <unistd.h>
#endif

#include "cores.h"

namespace kvgauge {
namespace {

// A step is a fraction of a millisecond: for so long a thread that has nothing to do looks again.
constexpr int kSpins = 20000;
constexpr std::chrono::milliseconds kPatience{10};

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Pool {
 public:
  Pool(int threads, const std::vector<int>& cores) : cores_(cores) {
    for (int i = 1; i < threads; ++i)
      workers_.emplace_back([this, core = cores[static_cast<size_t>(i) % cores.size()]] { work(core); });
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

  bool has(int threads, const std::vector<int>& cores) const {
    return static_cast<int>(workers_.size()) + 1 == threads && cores_ == cores;
  }

  void run(int64_t count, const std::function<void(int64_t)>& task) {
    const Pinned pinned(cores_.front());
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

  void work(int core) {
    const Pinned pinned(core);
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
  const std::vector<int> cores_;
};

// torch's OpenMP.
struct OpenMp {
  using Count = int (*)();
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  Count max_threads = nullptr, thread_number = nullptr, proc_bind = nullptr;
};

template <class Function>
void find(const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}

// Everything below is guarded by this: one step at a time has the threads.
std::mutex threads_mutex;
std::unique_ptr<Pool> pool;
int wanted_threads = 0;  // 0: the default
bool forced_own = std::getenv("KVGAUGE_OWN_THREADS") != nullptr;
#if defined(__linux__)
const pid_t loaded_by = getpid();
pid_t owner = 0;  // a forked child has the pool but not its threads, and OpenMP hangs there
bool forked() { return getpid() != loaded_by; }
#else
bool forked() { return false; }
#endif

// Null where it is not there, or not to be used. Looked up until it is found: torch may be imported after this module,
// and each look is dozens of libraries' tables.
const OpenMp* openmp() {
  static OpenMp found;
  if (forced_own || forked()) return nullptr;
  if (!found.parallel) {
    find("omp_get_max_threads", found.max_threads);
    find("omp_get_thread_num", found.thread_number);
    find("omp_get_proc_bind", found.proc_bind);
    if (found.max_threads && found.thread_number) find("GOMP_parallel", found.parallel);
  }
  return found.parallel ? &found : nullptr;
}

// Whether it was told (OMP_PROC_BIND) to keep each thread on a place of its own: then it has done so, and the calling
// thread's cores are not the process's.
bool is_bound(const OpenMp* openmp) { return openmp && openmp->proc_bind && openmp->proc_bind() != 0; }

int count_threads(const OpenMp* openmp) {
  if (wanted_threads) return wanted_threads;
  if (openmp) return std::max(1, openmp->max_threads());
  return static_cast<int>(allowed_cores().size());
}

Pool& own_pool() {
#if defined(__linux__)
  if (pool && owner != getpid()) pool.release();
  owner = getpid();
#endif
  const std::vector<int> cores = allowed_cores();
  const int threads = count_threads(nullptr);
  if (!pool || !pool->has(threads, cores)) pool = std::make_unique<Pool>(threads, cores);
  return *pool;
}

struct Team {
  const int64_t count;
  const std::function<void(int64_t)>& task;
  const std::vector<int> cores;  // empty: each thread stays where it is
  const OpenMp& openmp;
  std::atomic<int64_t> next{0};
};

void join_team(void* shared) {
  Team& team = *static_cast<Team*>(shared);
  std::optional<Pinned> pinned;
  if (!team.cores.empty()) pinned.emplace(team.cores[static_cast<size_t>(team.openmp.thread_number()) % team.cores.size()]);
  for (int64_t i = team.next.fetch_add(1); i < team.count; i = team.next.fetch_add(1)) team.task(i);
}

}  // namespace

void run_tasks(int64_t count, const std::function<void(int64_t)>& task) {
  std::lock_guard<std::mutex> held(threads_mutex);
  const OpenMp* const openmp = kvgauge::openmp();
  const int threads = count_threads(openmp);
  if (count <= 1 || threads == 1) {
    for (int64_t i = 0; i < count; ++i) task(i);
  } else if (openmp) {
    Team team{count, task, is_bound(openmp) ? std::vector<int>() : allowed_cores(), *openmp};
    openmp->parallel(join_team, &team, static_cast<unsigned>(threads), 0);
  } else {
    own_pool().run(count, task);
  }
}

int thread_count() {
  std::lock_guard<std::mutex> held(threads_mutex);
  return count_threads(openmp());
}

void set_thread_count(int count) {
  if (count < 0 || count > 1024) throw std::invalid_argument("threads must be between 0 and 1024");
  std::lock_guard<std::mutex> held(threads_mutex);
  wanted_threads = count;
}

const char* thread_source() {
  std::lock_guard<std::mutex> held(threads_mutex);
  return openmp() ? "openmp" : "own";
}

void force_own_threads(bool own) {
  std::lock_guard<std::mutex> held(threads_mutex);
  forced_own = own;
}

bool threads_stay() {
  std::lock_guard<std::mutex> held(threads_mutex);
  return is_bound(openmp());
}

bool Meeting::wait() {
  const auto patience = std::chrono::steady_clock::now() + kPatience;
  here_.fetch_add(1, std::memory_order_acq_rel);
  for (int spin = 1; here_.load(std::memory_order_acquire) < count_; ++spin)
    if (spin % 256 == 0) {
      if (std::chrono::steady_clock::now() > patience) return false;
      std::this_thread::yield();
    }
  return true;
}

}  // namespace kvgauge

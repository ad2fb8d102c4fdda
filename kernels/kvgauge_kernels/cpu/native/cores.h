// Which cores this process may use, and a thread's stay on one of them.
#pragma once

#include <algorithm>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace kvgauge {

inline std::vector<int> allowed_cores() {
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

// The calling thread on one core while this lives, and then where it was: it is not ours, and what it starts
// later would inherit its place.
class Pinned {
 public:
  explicit Pinned(int core) {
#if defined(__linux__)
    cpu_set_t only;
    CPU_ZERO(&only);
    if (core < CPU_SETSIZE) CPU_SET(core, &only);
    held_ = sched_getaffinity(0, sizeof(before_), &before_) == 0 &&
            sched_setaffinity(0, sizeof(only), &only) == 0;
#else
    (void)core;
#endif
  }

  ~Pinned() {
#if defined(__linux__)
    if (held_) sched_setaffinity(0, sizeof(before_), &before_);
#endif
  }

  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

  bool held() const { return held_; }

 private:
#if defined(__linux__)
  cpu_set_t before_;
#endif
  bool held_ = false;
};

}  // namespace kvgauge

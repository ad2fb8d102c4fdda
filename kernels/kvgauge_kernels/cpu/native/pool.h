// Threads that live as long as the process, each on a core of its own while it works.
//
// They are torch's own (GNU OpenMP's) where the process has those: an OpenMP thread that has nothing to do
// goes on looking for work for milliseconds, and a second set of threads would wait for its cores. Elsewhere
// they are a pool of ours, also in a forked child and where the variable KVGAUGE_OWN_THREADS is set when this is loaded.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace kvgauge {

// Run task(0) ... task(count - 1), each on one of the threads, and return when all are done. Tasks are handed
// out in order, one by one. The caller is one of the threads. Not to be called from a task.
void run_tasks(int64_t count, const std::function<void(int64_t)>& task);

// Threads in use, the caller included: as many as OpenMP gives the calling thread (torch sets that when it is
// first asked on a thread), or as the cores that this process may run on.
int thread_count();

// Change it, or with 0 go back to the default; throws std::invalid_argument below 0 or above 1024.
void set_thread_count(int count);

// `openmp` or `own`.
const char* thread_source();

// Use our own pool although OpenMP's threads are there, or no longer.
void force_own_threads(bool own);

// Whether each thread has a place that OpenMP keeps it on (OMP_PROC_BIND), so that nobody moves it.
bool threads_stay();

// Where as many tasks as there are threads wait for one another: each then has a thread of its own.
class Meeting {
 public:
  explicit Meeting(int count) : count_(count) {}

  // Whether all came. Where not (a core was taken away) nobody waits for ever.
  bool wait();

 private:
  std::atomic<int> here_{0};
  const int count_;
};

}  // namespace kvgauge

// Threads that live as long as the process, each pinned to a core of its own.
#pragma once

#include <cstdint>
#include <functional>

namespace kvgauge {

// Run task(0) ... task(count - 1), each on one of the pool's threads, and return when all are done. Tasks
// are handed out in order, one by one. The caller is one of the threads. Not to be called from a task.
void run_tasks(int64_t count, const std::function<void(int64_t)>& task);

// Threads in use, the caller included; at first as many as the cores that this process may run on.
int thread_count();

// Change it; throws std::invalid_argument below 1 or above 1024.
void set_thread_count(int count);

}  // namespace kvgauge

#include "level.h"

#include <atomic>
#include <stdexcept>

namespace kvgauge {

Level best_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (avx512 && avx2) return Level::avx512;
  if (avx2) return Level::avx2;
#endif
  return Level::portable;
}

static std::atomic<int> forced{-1};

Level level() {
  static const Level best = best_level();
  const int wanted = forced.load(std::memory_order_relaxed);
  return wanted < 0 ? best : static_cast<Level>(wanted);
}

void force_level(Level wanted) {
  if (wanted > best_level()) throw std::invalid_argument("this CPU has not the instructions of that level");
  forced.store(static_cast<int>(wanted));
}

const char* level_name(Level level) {
  return level == Level::avx512 ? "avx512" : level == Level::avx2 ? "avx2" : "portable";
}

}  // namespace kvgauge

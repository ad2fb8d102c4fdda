// What all levels do with the bytes before the first and after the last whole vector.
#pragma once

#include <algorithm>
#include <cstring>

#include "probe.h"

namespace kvgauge {

static inline uint64_t read_tail(const uint8_t* data, size_t bytes) {
  uint64_t sum = 0;
  for (size_t i = 0; i < bytes; i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, data + i, std::min<size_t>(8, bytes - i));
    sum += word;
  }
  return sum;
}

// Bytes up to the first line of `to`, at most all.
static inline size_t bytes_to_line(const uint8_t* to, size_t bytes) {
  return std::min(bytes, -reinterpret_cast<uintptr_t>(to) % kLine);
}

}  // namespace kvgauge

// The extension module: what Python sees of the kernels, the pool and the probe.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "level.h"
#include "pool.h"

namespace nb = nanobind;

void register_decode(nb::module_& m);
void register_probe(nb::module_& m);

NB_MODULE(_native, m) {
  using namespace kvgauge;
  m.def("best_level", [] { return std::string(level_name(best_level())); });
  m.def("level", [] { return std::string(level_name(level())); });
  m.def("force_level", [](const std::string& name) {
    for (Level each : {Level::portable, Level::avx2, Level::avx512})
      if (name == level_name(each)) return force_level(each);
    throw std::invalid_argument("unknown level");
  });
  m.def("thread_count", &thread_count);
  m.def("set_thread_count", &set_thread_count);
  m.def("thread_source", [] { return std::string(thread_source()); });
  m.def("force_own_threads", &force_own_threads);
  register_decode(m);
  register_probe(m);
}

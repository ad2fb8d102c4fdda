#include <nanobind/nanobind.h>

void register_decode(nanobind::module_& m) { (void)m; }

#include <nanobind/nanobind.h>

void register_probe(nanobind::module_& m) { (void)m; }

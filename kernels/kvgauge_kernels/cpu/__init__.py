"""Native CPU kernels: C++ in `native/`, built as the module `_native`."""

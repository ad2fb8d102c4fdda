"""GPU kernels compiled ahead of time and their machine code read, on a machine without a GPU."""

"""Decode attention for GPUs in Triton. Nothing here imports triton before a kernel is asked for."""

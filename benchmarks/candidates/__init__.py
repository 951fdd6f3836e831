"""Kernels that may earn a place in `cc_kernels`: correct, compiled ahead of time, not yet measured on a GPU."""

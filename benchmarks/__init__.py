"""Measurements on a GPU: `python -m benchmarks.gpu_check --out DIR`. One file per op holds its cases and baselines."""

"""Measurements: every op beside its baselines, whole steps beside other ways to connect, all of it on a GPU.

`docs/benchmarks.md` has commands and results. One file per op holds its cases; `baselines` holds the other ways.
"""

"""Ahead-of-time proof: compile every kernel for GPUs that are not here, and read what came out.

`python -m cc_kernels.aot` prints the table. `shapes` lists the models, `variants` the launches that their shapes lead
to, `targets` the limits of the GPUs, `compiling` turns a launch into a report of registers, spills and instructions.
"""

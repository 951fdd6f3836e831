"""What `python -m benchmarks.gpu` runs: the list of jobs as data, how one is run, and what is answered already."""

import os

# Jobs are forks, and a fork must not inherit CUDA once it is initialised. With this, torch asks the driver's management
# library whether there is a GPU, also where a library asks while it is imported.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

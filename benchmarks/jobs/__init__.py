"""What `python -m benchmarks.gpu` runs: the list of jobs as data, how one is run, and what is answered already."""

"""pytest-benchmark suites, one per op: `make bench`, or `pytest benchmarks --benchmark-json=FILE`."""

"""What `benchmarks.profile_fusion` measures."""

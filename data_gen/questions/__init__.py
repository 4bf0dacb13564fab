"""Questions from files, the hub and benchmarks by name."""

"""The operator behind `decide` and `connect`."""

"""One file per op, with the op's name: its cases, each beside its baselines."""

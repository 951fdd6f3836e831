"""The demo: `python -m train.demo`."""

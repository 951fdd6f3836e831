"""Every kernel test runs with fresh memory filled with NaN, and the run says which kernels it did not run."""

from __future__ import annotations

import os

import pytest
import torch
from kernel_harness import BACKEND, DEVICE, INTERPRETED, RUNS_TRITON

from cc_kernels.launch import launching

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic matmuls on a GPU ask for


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """`torch.empty` gives NaN, so that an element that no kernel writes shows up."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


@pytest.fixture
def direct(monkeypatch):
    """The CPU counts as a device whose compiled kernels are started directly."""
    monkeypatch.setattr(launching, "DIRECT", frozenset({"cpu"}))
    yield
    launching.forget()


def pytest_terminal_summary(terminalreporter):
    how = "interpreted" if INTERPRETED else "compiled" if RUNS_TRITON else "not run (see test_interpreted.py)"
    terminalreporter.write_line(f"kernels: backend {BACKEND} on {DEVICE}; Triton kernels {how}")

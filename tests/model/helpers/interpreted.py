"""Tests of a model through the kernels: on a GPU, or interpreted in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from cc_kernels.launch import HAS_TRITON, INTERPRETED

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
needs_kernels = pytest.mark.skipif(
    not HAS_TRITON or not (INTERPRETED or DEVICE.type != "cpu"),
    reason="needs Triton kernels; test_interpreted runs it interpreted",
)
in_a_process_of_its_own = pytest.mark.skipif(
    INTERPRETED or not HAS_TRITON or DEVICE.type != "cpu",
    reason="this process interprets the kernels, a GPU runs them compiled, or triton is not installed",
)


def run_interpreted(file: str) -> None:
    """Run the tests of `file`, because Triton reads TRITON_INTERPRET when the kernels are decorated."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", file, "-p", "no:cacheprovider"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:]
    assert "1 skipped" in done.stdout, done.stdout[-500:]

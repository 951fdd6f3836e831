"""The published numbers through the Triton kernels, interpreted on the CPU: training with all gradients, inference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need triton")
CASES = "test_training_step or test_hidden_states or test_edge_positions or p0"


def test_vectors_through_the_kernels():
    """In a process of its own, because Triton reads TRITON_INTERPRET when the kernels are decorated."""
    command = [sys.executable, "-m", "pytest", str(Path(__file__).with_name("test_golden.py")), "-k", CASES]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CC_TEST_BACKEND": "triton"}
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "6 passed" in done.stdout

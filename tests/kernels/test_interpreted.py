"""Triton reads TRITON_INTERPRET when it is imported, so interpreted kernels need a process of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_harness import DEVICE, HAS_TRITON, INTERPRETED

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(INTERPRETED, reason="this process interprets the kernels itself")
@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
@pytest.mark.skipif(DEVICE.type != "cpu", reason="a GPU runs the kernels compiled")
def test_kernels_interpreted(capsys):
    command = [sys.executable, "-m", "pytest", "tests/kernels", "-p", "no:cacheprovider", "-rs"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "Triton kernels interpreted" in done.stdout
    summary = re.search(r"\d+ passed.*", done.stdout)
    assert summary is not None, done.stdout[-2000:]
    with capsys.disabled():
        print(f"\n[interpreted kernels: {summary.group()}]")

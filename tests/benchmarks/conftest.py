"""Fixtures of the GPU command: a program that does as it is told, and a list of jobs to fill."""

from __future__ import annotations

import sys

import pytest
from gpu_programs import PROGRAM

from benchmarks import gpu
from benchmarks.jobs import book, planning, running


@pytest.fixture
def without_device(monkeypatch):
    """Jobs need no device."""
    monkeypatch.setattr(running, "_device_works", lambda: True)


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A module whose `main` does as it is told."""
    (tmp_path / "told.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "told"
    sys.modules.pop("told", None)


@pytest.fixture
def listed(monkeypatch):
    """Puts jobs in the place of the list."""

    def put(*jobs):
        for module in (gpu, book, planning):
            monkeypatch.setattr(module, "JOBS", jobs)
        return jobs

    return put

"""`gate_up_swiglu`, by pytest-benchmark."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.ops.gate_up_swiglu import model_cases
from benchmarks.suites.runner import Entry, entries, run


@pytest.mark.parametrize("entry", entries(model_cases))
def test_gate_up_swiglu(benchmark: Any, entry: Entry) -> None:
    """Right, then timed."""
    run(benchmark, entry)

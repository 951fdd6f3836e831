"""`swiglu`, by pytest-benchmark."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.suites.runner import Entry, entries, run
from benchmarks.swiglu import model_cases


@pytest.mark.parametrize("entry", entries(model_cases))
def test_swiglu(benchmark: Any, entry: Entry) -> None:
    """Right, then timed."""
    run(benchmark, entry)

"""`capture_add_rows_`, by pytest-benchmark."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.ops.capture_add_rows import model_cases
from benchmarks.suites.runner import Entry, entries, run


@pytest.mark.parametrize("entry", entries(model_cases))
def test_capture_add_rows(benchmark: Any, entry: Entry) -> None:
    """Right, then timed."""
    run(benchmark, entry)

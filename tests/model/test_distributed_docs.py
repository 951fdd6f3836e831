"""The snippets of docs/distributed.md run as they stand, in two processes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import snippets
import torch

TEXT = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text(encoding="utf-8")
PRELUDE, *BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def test_every_section_has_a_snippet():
    assert len(BLOCKS) == 7


@pytest.mark.parametrize("number", range(7))
def test_snippet(two_processes, number, tmp_path):
    if snippets.COMPILE_OPTION in BLOCKS[number] and not hasattr(torch._dynamo.config, snippets.COMPILE_OPTION):
        pytest.skip(f"needs a PyTorch with torch._dynamo.config.{snippets.COMPILE_OPTION}")
    two_processes.run(snippets.run, PRELUDE + BLOCKS[number], str(tmp_path))

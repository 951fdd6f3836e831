"""Running a documented snippet in a process of a group."""

from __future__ import annotations

import os

import torch

COMPILE_OPTION = "skip_fwd_side_effects_in_bwd_under_checkpoint"


def run(source: str, folder: str) -> None:
    """Execute `source` in `folder`, and leave the process as it was."""
    before = os.getcwd()
    os.chdir(folder)
    restored = {COMPILE_OPTION: False} if hasattr(torch._dynamo.config, COMPILE_OPTION) else {}
    with torch._dynamo.config.patch(restored):
        try:
            exec(compile(source, "snippet", "exec"), {"__name__": "__main__"})
        finally:
            os.chdir(before)
            torch._dynamo.reset()

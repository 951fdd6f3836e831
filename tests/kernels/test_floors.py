import re
from pathlib import Path

import pytest

from cc_kernels.aot import floors
from cc_kernels.aot.shapes import MODELS

DOCUMENT = Path(__file__).parents[2] / "docs" / "kernels.md"


def test_table_of_the_document_is_the_generated_one():
    assert floors.table() in DOCUMENT.read_text(encoding="utf-8"), "run python -m cc_kernels.aot.floors"


def test_bytes_by_hand():
    # bf16, Llama-3.1-8B: 3 tensors of 4096 x 14336; the bank of connect alone is 32 x 16 x 4096
    assert floors.swiglu_forward(4096, 14336, 2).bytes == 3 * 4096 * 14336 * 2
    assert floors.swiglu_backward(4096, 14336, 2).bytes == 5 * 4096 * 14336 * 2
    bank = 32 * 16 * 4096 * 2
    assert bank < floors.connect_forward(32, 16, 4096, 2).bytes < 1.25 * bank
    without, with_bank = (floors.connect_backward(32, 16, 4096, 2, flag).bytes for flag in (False, True))
    assert with_bank - without == bank


def test_arithmetic_never_bounds():
    # An A100 calculates 19.5 TFLOP/s in fp32 and moves 2.04 TB/s: the memory bounds what needs fewer than 9.5 per byte.
    for cost_of in floors.LINES.values():
        for model in MODELS:
            cost = cost_of(model, 2)
            assert cost.flops < 9 * cost.bytes


def test_time_floor():
    assert floors.Cost(bytes=4_800_000, flops=0).floor(floors.BANDWIDTH["H200"]) == pytest.approx(1e-6)
    assert re.fullmatch(r"(\|[^\n|]*){8}\|", floors.table().splitlines()[2])

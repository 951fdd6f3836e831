import re
from pathlib import Path

import pytest

from cc_kernels.aot import floors
from cc_kernels.aot.shapes import MODELS

DOCUMENT = Path(__file__).parents[2] / "docs" / "kernels.md"


def test_table_of_the_document_is_the_generated_one():
    assert floors.table() in DOCUMENT.read_text(encoding="utf-8"), "run python -m benchmarks.document"


def test_bytes_by_hand():
    # bf16, Llama-3.1-8B: 3 tensors of 4096 x 14336; the bank of connect alone is 32 x 16 x 4096
    assert floors.swiglu_forward(4096, 14336, 2).bytes == 3 * 4096 * 14336 * 2
    assert floors.swiglu_backward(4096, 14336, 2).bytes == 5 * 4096 * 14336 * 2
    bank = 32 * 16 * 4096 * 2
    assert bank < floors.connect_forward(32, 16, 4096, 2).bytes < 1.25 * bank
    without, with_bank = (floors.connect_backward(32, 16, 4096, 2, flag).bytes for flag in (False, True))
    assert with_bank - without == bank


def test_bytes_of_weights_by_hand():
    # bf16, 16 rows: the matrix is 4096 x 4096, the two weights are 14336 x 4096 each
    matrix, weights = 4096 * 4096 * 2, 2 * 14336 * 4096 * 2
    assert matrix < floors.transform_rows_forward(16, 4096, 2).bytes < 1.01 * matrix
    assert weights < floors.gate_up_swiglu_forward(16, 4096, 14336, 2).bytes < 1.01 * weights


def test_arithmetic_never_bounds():
    # An A100 calculates 19.5 TFLOP/s in fp32, 312 on tensor cores in 16 bits, and moves 2.04 TB/s: the memory bounds
    # what needs fewer than 9.5, or 152, per byte.
    on_tensor_cores = ("transform_rows", "gate_up_swiglu")
    assert set(on_tensor_cores) < set(floors.LINES)
    for name, cost_of in floors.LINES.items():
        for model in MODELS:
            cost = cost_of(model, 2)
            assert cost.flops < (152 if name in on_tensor_cores else 9) * cost.bytes


def test_time_floor():
    assert floors.Cost(bytes=4_800_000, flops=0).floor(floors.BANDWIDTH["H200"]) == pytest.approx(1e-6)
    assert re.fullmatch(r"(\|[^\n|]*){8}\|", floors.table().splitlines()[2])

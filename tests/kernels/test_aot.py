"""Kernels compiled for GPUs that are not here. The full report is `python -m cc_kernels.aot`."""

import re

import pytest
import torch
from kernel_harness import HAS_TRITON, INTERPRETED

from cc_kernels.aot.__main__ import main
from cc_kernels.aot.compiling import compile_for, inspect, sass, specialize
from cc_kernels.aot.shapes import LARGEST, MODELS
from cc_kernels.aot.targets import TARGETS
from cc_kernels.aot.variants import DTYPES, OPS, compile_all, variants

pytestmark = [
    pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed"),
    pytest.mark.skipif(INTERPRETED, reason="an interpreted kernel cannot be compiled"),
]
# 28 layers and a width of 3584: neither is a power of two.
FAST = next(model for model in MODELS if model.name == "Qwen2.5-7B")
KERNELS = {
    "swiglu": {"swiglu_fwd_kernel", "swiglu_bwd_kernel"},
    "geglu": {"geglu_fwd_kernel", "geglu_bwd_kernel"},
    "capture_rows": {"capture_rows_fwd_kernel", "capture_rows_bwd_kernel"},
    "add_rows": {"add_rows_fwd_kernel"},
    "capture_add_rows": {"capture_add_rows_fwd_kernel"},
    "transform_rows": {"transform_rows_fwd_kernel"},
    "gate_up_swiglu": {"gate_up_swiglu_fwd_kernel"},
    "connect": {
        "partial_logits_fwd_kernel",
        "partial_logits_per_layer_fwd_kernel",
        "choose_fwd_kernel",
        "mix_bwd_kernel",
        "logits_bwd_kernel",
        "columns_bwd_kernel",
        "bank_rows_bwd_kernel",
    },
}
DOTS = ("transform_rows", "gate_up_swiglu")
NARROW = ("choose_fwd_kernel", "logits_bwd_kernel")  # they read parts of logits, and softmaxes of L numbers


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
@pytest.mark.parametrize("op", OPS)
def test_compiles_without_spills(op, target):
    reports, failures = compile_all(target, "bfloat16", (op,), (FAST,), batches=(16, 128))
    assert failures == []
    assert {report.kernel for report in reports} == KERNELS[op]
    for report in reports:
        assert report.problems == ()
        assert report.occupancy > 0
    if op in ("swiglu", "geglu"):  # every access is 128 bits wide
        for report in reports:
            assert report.wide_loads > 0
            assert report.wide_stores > 0
            assert report.narrow_loads == report.narrow_stores == 0
    elif op in DOTS:  # so are those of weights
        assert all(report.tensor_core > 0 for report in reports)
        assert all(report.wide_loads >= 4 * report.narrow_loads for report in reports)  # narrow: a small tile of rows
    else:  # so are those of activations; indices and single numbers are narrow
        assert all(report.wide_loads > 0 for report in reports if report.kernel not in NARROW)


def test_few_rows_on_sm_100_do_not_spill():
    """Its processors ask for more bytes in flight, which took registers for the addresses of more stages."""
    reports, failures = compile_all("sm_100", "bfloat16", ("gate_up_swiglu",), (FAST,), batches=(16,))
    assert failures == []
    assert reports
    assert all(report.problems == () for report in reports)


def test_the_largest_bank_in_fp32_does_not_spill():
    """Its tile is half of that in 16 bits: of the same bytes it spilled on sm_100."""
    recorded = variants(("connect",), (LARGEST,), (torch.float32,), batches=(16,))
    launches = [launch for _, _, launch in recorded if launch.kernel.fn.__name__ == "_partial_logits_fwd_kernel"]
    assert launches
    assert all(inspect(launch, torch.float32, TARGETS["sm_100"]).problems == () for launch in launches)


def first_variant(op, name):
    return next(launch for _, _, launch in variants((op,), (FAST,), DTYPES[2:]) if launch.kernel.fn.__name__ == name)


def products_by_strides(launch):
    """The lines of the compiled code that multiply by a stride, or by what was a stride before it was widened."""
    ttir = compile_for(launch.kernel, specialize(launch), TARGETS["sm_90"]).asm["ttir"]
    strides = set(re.findall(r"%\w*stride\w*", ttir))
    for _ in range(3):  # a stride stays one when it is widened and spread over a tile
        strides |= {name for name, source in re.findall(r"(%\w+) = \w+\.\w+ (%\w+) :", ttir) if source in strides}
    products = [line for line in ttir.splitlines() if "arith.muli" in line]
    return [line for line in products if strides & set(re.findall(r"%\w+", line))]


@pytest.mark.parametrize(("op", "name"), [(op, f"_{name}") for op, names in KERNELS.items() for name in sorted(names)])
def test_rows_and_layers_are_addressed_in_64_bits(op, name):
    """In the first variant that multiplies by strides: one long row, or an absent tensor, has none."""
    recorded = (launch for _, _, launch in variants((op,), (FAST,), DTYPES[2:]) if launch.kernel.fn.__name__ == name)
    by_stride = next(filter(None, map(products_by_strides, recorded)))
    for line in by_stride:
        assert re.search(r": (i64|tensor<[\dx]+xi64>)", line), f"a stride is multiplied in 32 bits: {line.strip()}"


@pytest.mark.parametrize("op", DOTS)
def test_weights_are_copied_ahead_of_the_products(op):
    """On NVIDIA weights reach shared memory by asynchronous copies, several steps before their product."""
    launch = first_variant(op, f"_{op}_fwd_kernel")
    code = sass(compile_for(launch.kernel, specialize(launch), TARGETS["sm_90"]))
    assert len(re.findall(r"\bLDGSTS\.[\w.]*\.128", code)) > 10
    assert not re.search(r"\bLDG\.", code)


@pytest.mark.parametrize("op", DOTS)
def test_warp_group_products_with_64_rows(op):
    launches = [launch for _, _, launch in variants((op,), (FAST,), DTYPES[2:], batches=(64,))]
    launch = next(launch for launch in launches if launch.arguments["BLOCK_ROWS"] == 64)
    assert "HGMMA" in sass(compile_for(launch.kernel, specialize(launch), TARGETS["sm_90"]))


def test_specialization_follows_alignment_and_size():
    launch = first_variant("swiglu", "_swiglu_fwd_kernel")
    names = [param.name for param in launch.kernel.params]
    whole = dict(specialize(launch).signature)
    assert whole["gate_ptr"] == "*bf16"
    assert whole["columns"] == "i32"
    launch.arguments["columns"] = 2**31
    launch.arguments["gate_ptr"] = torch.empty(9, dtype=torch.bfloat16, device="meta")[1:]
    changed = specialize(launch)
    assert dict(changed.signature)["columns"] == "i64"
    assert names.index("gate_ptr") not in changed.divisible
    assert names.index("up_ptr") in changed.divisible


@pytest.mark.parametrize(
    ("target", "registers", "shared", "num_warps", "expected"),
    [
        ("sm_90", 32, 0, 4, 1.0),
        ("sm_90", 33, 0, 4, 0.75),  # rounded to 40: 12 warps per scheduler
        ("sm_90", 255, 0, 4, 0.125),
        ("sm_90", 16, 0, 1, 0.5),  # 32 blocks of one warp
        ("sm_90", 32, 57 * 1024, 4, 0.25),
        ("gfx942", 64, 0, 4, 1.0),
        ("gfx942", 128, 0, 4, 0.5),
        ("gfx942", 64, 33 * 1024, 4, 0.125),
    ],
)
def test_occupancy(target, registers, shared, num_warps, expected):
    assert TARGETS[target].occupancy(registers, shared, num_warps) == expected


def test_command_line(tmp_path, capsys):
    report = tmp_path / "report.json"
    arguments = ["--targets", "sm_80", "--ops", "add_rows", "--dtypes", "float16", "--jobs", "1", "--json", str(report)]
    assert main(arguments) == 0
    assert "1 kernels compiled, 0 failed, 0 with problems" in capsys.readouterr().out
    assert '"kernel": "add_rows_fwd_kernel"' in report.read_text()
    with pytest.raises(SystemExit):
        main(["--targets", "sm_12"])
    assert "--targets: expected names of sm_80,sm_90,sm_100,gfx942, got 'sm_12'" in capsys.readouterr().err


def test_a_failure_and_a_problem_are_reported(monkeypatch, capsys):
    from cc_kernels.aot import __main__ as command

    report = compile_all("sm_90", "bfloat16", ("add_rows",), (FAST,), (16,))[0][0]
    spilled = type(report)(**{**vars(report), "problems": ("spills 8",)})
    for outcome in ([spilled], []), ([report], ["kernel: CompilationError"]):
        monkeypatch.setattr(command, "compile_all", lambda *_, outcome=outcome: outcome)
        monkeypatch.setattr(command, "ProcessPoolExecutor", ImmediatePool)
        assert main(["--targets", "sm_90", "--ops", "add_rows", "--dtypes", "bfloat16"]) == 1
    assert "PROBLEM: spills 8" in capsys.readouterr().out.replace("FAILED kernel", "")


class ImmediatePool:
    """Runs what is submitted at once, in this process."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        value = function(*arguments)
        return type("Done", (), {"result": lambda self: value})()

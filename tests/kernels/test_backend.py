import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kernel_harness import DEVICE, HAS_TRITON, INTERPRETED, RUNS_TRITON, needs_triton, randn

import cc_kernels
from cc_kernels import backend, launch, swiglu, use_backend

ROOT = Path(__file__).parents[2]
PUBLIC_OPS = [
    "add_rows",
    "capture_add_rows_",
    "capture_rows",
    "connect",
    "decide",
    "gate_up_swiglu",
    "geglu",
    "swiglu",
    "transform_rows",
]


def python(code, **environment):
    """Run `code` in a fresh interpreter and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_public_names():
    assert sorted(cc_kernels.__all__) == sorted([*PUBLIC_OPS, "capture_rows_through", "use_backend"])


def test_choice_comes_back_at_the_end():
    assert backend._requested == "auto"
    with use_backend("torch"):
        assert backend._requested == "torch"
        with use_backend("auto"):
            assert backend._requested == "auto"
        assert backend._requested == "torch"
    assert backend._requested == "auto"


def test_choice_comes_back_after_an_exception():
    with pytest.raises(KeyError), use_backend("torch"):
        raise KeyError
    assert backend._requested == "auto"


def test_unknown_backend():
    with pytest.raises(ValueError, match=r"name: expected one of \('auto', 'torch', 'triton'\), got 'cuda'"):  # noqa: SIM117
        with use_backend("cuda"):
            pass
    assert backend._requested == "auto"


def test_auto_runs_the_reference_on_the_cpu():
    def reference():
        raise AssertionError

    assert backend.choose("swiglu", torch.zeros(1), reference) is reference


@pytest.mark.skipif(INTERPRETED, reason="the kernels are interpreted")
def test_triton_on_the_cpu_raises():
    with use_backend("triton"), pytest.raises(RuntimeError, match=r"use_backend\('triton'\): swiglu"):
        swiglu(torch.zeros(2), torch.zeros(2))


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_interpreting_must_be_asked_before_the_import():
    code = (
        "import os, torch, cc_kernels\n"
        "os.environ['TRITON_INTERPRET'] = '1'\n"
        "with cc_kernels.use_backend('triton'):\n"
        "    try: cc_kernels.swiglu(torch.zeros(2), torch.zeros(2))\n"
        "    except RuntimeError as error: print(error)\n"
    )
    assert "set TRITON_INTERPRET=1 before cc_kernels is imported" in python(code, TRITON_INTERPRET="")


def test_op_without_a_triton_implementation_raises():
    with use_backend("triton"), pytest.raises(RuntimeError, match="nothing has no Triton implementation"):
        backend.choose("nothing", torch.zeros(1), lambda: None)


@needs_triton
def test_triton_runs_when_asked(monkeypatch):
    called = []
    monkeypatch.setitem(backend._triton_implementations, "swiglu", lambda *_: called.append(True))
    with use_backend("triton"):
        swiglu(randn(2), randn(2))
    assert called == [True]


@pytest.mark.skipif(DEVICE.type != "cpu", reason="this machine has a GPU")
def test_import_works_without_triton_and_initialises_no_device():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, cc_kernels, cc_kernels.aot.targets\n"
        "print(cc_kernels.swiglu(torch.zeros(1), torch.ones(1)).item(), torch.cuda.is_initialized())\n"
        "with cc_kernels.use_backend('triton'):\n"
        "    try: cc_kernels.swiglu(torch.zeros(1), torch.ones(1))\n"
        "    except RuntimeError as error: print(error)\n"
    )
    lines = python(code).splitlines()
    assert lines[0] == "0.0 False"
    assert "swiglu has no Triton implementation in this installation" in lines[1]


def test_empty_grid_launches_nothing():
    launch.launch(None, (0,), like=torch.zeros(1))


@pytest.mark.skipif(not RUNS_TRITON or INTERPRETED, reason="needs a GPU")
def test_launches_happen_under_the_device_of_the_tensor():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    gate = torch.randn(100, device="cuda:1")
    torch.testing.assert_close(swiglu(gate, gate), torch.nn.functional.silu(gate) * gate)
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize(("kind", "serves"), [("is_cuda", True), ("is_xpu", True), ("is_cpu", False)])
def test_kernels_serve_tensors_of_gpus(kind, serves, monkeypatch):
    monkeypatch.setitem(backend._triton_implementations, "an op", lambda: None)
    tensor = SimpleNamespace(**{"is_cuda": False, "is_xpu": False, "is_cpu": False, kind: True})
    assert backend.triton_serves("an op", tensor) is serves
    assert not backend.triton_serves("another op", tensor)
    with use_backend("torch"):
        assert not backend.triton_serves("an op", tensor)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_type_of_a_device(device):
    assert backend.device_type(torch.empty(1, device=device)) == device
    assert backend.device_type(SimpleNamespace(is_cuda=True)) == "cuda"

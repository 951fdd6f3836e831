"""What the kernel tests share: where they run, and the comparison of an op with its reference.

The same tests run three ways: on the CPU with the reference backend, on the CPU with interpreted kernels (a process
started with `TRITON_INTERPRET=1`; `test_interpreted.py` starts one), and on a GPU with compiled kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tolerances import ATOL, FACTOR, INTERPRETED_ATOL
from torch import Tensor

import cc_kernels
from cc_kernels.launch import HAS_TRITON, INTERPRETED

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
RUNS_TRITON = HAS_TRITON and (INTERPRETED or DEVICE.type != "cpu")
BACKEND = "triton" if RUNS_TRITON else "torch"
COMPILER = "aot_eager" if DEVICE.type == "cpu" else "inductor"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Of the kernels with matrix products.
DOT_DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(
            INTERPRETED, reason="interpreted, tl.dot multiplies the raw bits of bf16: needs a GPU"
        ),
    ),
)
WHY_NO_TRITON = "needs Triton kernels: no GPU, and the process was started without TRITON_INTERPRET=1"

needs_triton = pytest.mark.skipif(not RUNS_TRITON, reason=WHY_NO_TRITON)


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal values, the same on every device."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values * scale).to(dtype).to(DEVICE)


def index(*rows: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """Row indices on the device of the tests."""
    return torch.tensor(rows, dtype=dtype, device=DEVICE)


def assert_close(name: str, ours: Tensor, plain: Tensor, exact: Tensor) -> None:
    """The rule of `tolerances`: `ours` against `exact`, measured by the error of `plain`."""
    assert ours.dtype == plain.dtype, f"{name}: expected {plain.dtype}, got {ours.dtype}"
    assert ours.shape == plain.shape, f"{name}: expected shape {tuple(plain.shape)}, got {tuple(ours.shape)}"
    if ours.numel() == 0:
        return
    error = (ours.double() - exact.double()).abs().max().item()
    plain_error = (plain.double() - exact.double()).abs().max().item()
    atol = (INTERPRETED_ATOL if INTERPRETED else ATOL)[ours.dtype]
    allowed = FACTOR * plain_error + atol * max(1.0, exact.abs().max().item())
    assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e} (plain PyTorch {plain_error:.3e})"


def _outputs(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


def _leaf(value: Any, dtype: torch.dtype | None) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    detached = value.detach() if dtype is None else value.detach().to(dtype)
    return detached.requires_grad_(value.requires_grad)


def _run(
    op: Callable[..., Any], arguments: Sequence[Any], seeds: Sequence[Tensor], dtype: torch.dtype | None
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Outputs, gradients, and the gradients of a second backward through the same graph."""
    leaves = [_leaf(value, dtype) for value in arguments]
    wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    outputs = _outputs(op(*leaves))
    if not wanted:
        return outputs, [], []
    cotangents = [seed.to(output.dtype) for seed, output in zip(seeds, outputs)]
    first = torch.autograd.grad(outputs, wanted, cotangents, retain_graph=True)
    second = torch.autograd.grad(outputs, wanted, cotangents)
    return outputs, list(first), list(second)


def check_op(
    op: Callable[..., Any],
    arguments: Sequence[Any],
    seeds: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None = None,
    reference: Callable[..., Any] | None = None,
    backend: str = BACKEND,
) -> list[Tensor]:
    """Compare `op` under `backend` (that of this run) with its reference: outputs, gradients, repeated backward.

    Arguments that require a gradient get one compared. `seeds` gives the incoming gradients for the outputs (random by
    default). The reference is `op` on the torch backend unless another is given. Returns the outputs.
    """
    reference = op if reference is None else reference
    with cc_kernels.use_backend("torch"):
        shapes = _outputs(reference(*(_leaf(value, None) for value in arguments)))
        incoming = [randn(*o.shape, dtype=o.dtype, seed=90 + i) for i, o in enumerate(shapes)]
        incoming = incoming if seeds is None else list(seeds(shapes))
        plain, plain_grads, _ = _run(reference, arguments, incoming, None)
        exact, exact_grads, _ = _run(reference, arguments, incoming, torch.float64)
    before = [value.detach().clone() if isinstance(value, Tensor) else value for value in arguments]
    with cc_kernels.use_backend(backend):
        ours, grads, again = _run(op, arguments, incoming, None)
    for position, (a, b, c) in enumerate(zip(ours, plain, exact)):
        assert_close(f"output {position}", a, b, c)
    for position, (a, b, c) in enumerate(zip(grads, plain_grads, exact_grads)):
        assert_close(f"gradient {position}", a, b, c)
    for position, (a, b) in enumerate(zip(grads, again)):
        assert torch.equal(a, b), f"gradient {position}: a second backward gives another result"
    for position, (value, copy) in enumerate(zip(arguments, before)):
        if isinstance(value, Tensor):
            assert torch.equal(value.detach(), copy), f"argument {position} was changed"
    return ours


def check_compiled(op: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """`torch.compile(fullgraph=True)` gives the outputs and gradients of the eager call, without recompiling."""
    torch._dynamo.reset()
    with cc_kernels.use_backend(BACKEND):
        compiled = torch.compile(op, fullgraph=True, backend=COMPILER)
        outputs = _outputs(op(*arguments))
        seeds = [randn(*output.shape, dtype=output.dtype, seed=70) for output in outputs]
        expected = _run(op, arguments, seeds, None)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for _ in range(2):
                got = _run(compiled, arguments, seeds, None)
                for ours, eager in zip((*got[0], *got[1]), (*expected[0], *expected[1])):
                    torch.testing.assert_close(ours, eager)


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same values in other memory layouts: rows apart, columns apart, axes swapped, offset."""
    rows_apart = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"))[..., : x.shape[-1]]
    columns_apart = x.new_full((*x.shape, 2), float("nan"))[..., 0]
    swapped = x.new_empty(x.transpose(0, -1).shape).transpose(0, -1)
    offset = x.new_full((x.numel() + 1,), float("nan"))[1:].view(x.shape)
    variants = {"rows apart": rows_apart, "columns apart": columns_apart, "swapped": swapped, "offset": offset}
    for variant in variants.values():
        variant.copy_(x)
    return variants

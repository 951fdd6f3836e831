"""What a benchmark of an op is: inputs, implementations of the same thing, and the bytes that it must move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure.agreement import allowed
from benchmarks.measure.timing import copies_for, device_time, eager_time, read_bandwidth
from cc_kernels.aot.floors import Cost

COMPILES = True  # off in smoke tests, where compiling would take most of the time


@dataclass(frozen=True)
class Case:
    """One op at one shape, with everything that computes it.

    Args:
        name: says op and shape.
        inputs: the arguments, of a seed.
        reference: gives the values that all implementations must agree with.
        implementations: by name; ours is called `cc_kernels`.
        cost: bytes that must be moved, and operations.
        eager_only: implementations that cannot be part of a CUDA graph, and so have no device time.
        reads: nearly all bytes are read, so that the share is that of a kernel which reads as many and writes none.
    """

    name: str
    inputs: Callable[[int], tuple[Any, ...]]
    reference: Callable[..., Any]
    implementations: dict[str, Callable[..., Any]]
    cost: Cost
    eager_only: dict[str, Callable[..., Any]] = field(default_factory=dict)
    reads: bool = False


def forward_and_backward(op: Callable[..., Any]) -> Callable[..., tuple[Tensor, ...]]:
    """Outputs and gradients of `op` for incoming gradients of one."""

    def run(*arguments: Any) -> tuple[Tensor, ...]:
        outputs = op(*arguments)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        wanted = [x for x in arguments if isinstance(x, Tensor) and x.requires_grad]
        grads = torch.autograd.grad(outputs[0], wanted, torch.ones_like(outputs[0]))
        return (*(output.detach() for output in outputs), *grads)

    return run


def backward_only(op: Callable[..., Any]) -> Callable[..., tuple[Tensor, ...]]:
    """Gradients of `op` for incoming gradients of one; the graph is built in the first call with the same tensors.

    Such a graph cannot be part of a CUDA graph. Incoming gradients are made anew, as in `forward_and_backward`.
    """
    graphs: dict[tuple[int, ...], tuple[Any, Tensor]] = {}

    def run(*arguments: Any) -> tuple[Tensor, ...]:
        key = tuple(id(argument) for argument in arguments)
        if key not in graphs:
            output = op(*arguments)
            graphs[key] = arguments, output[0] if isinstance(output, tuple) else output
        _, output = graphs[key]
        wanted = [x for x in arguments if isinstance(x, Tensor) and x.requires_grad]
        return torch.autograd.grad(output, wanted, torch.ones_like(output), retain_graph=True)

    return run


def compiled(op: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` for fixed shapes; `op` itself where `COMPILES` is off."""
    return torch.compile(op, dynamic=False, fullgraph=True) if COMPILES else op


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def disagreement(result: Any, expected: Any) -> str | None:
    """Why `result` does not count as the same as `expected`, or None."""
    for position, (ours, theirs) in enumerate(zip(_tensors(result), _tensors(expected))):
        scale = max(theirs.abs().max().item(), 1.0) if theirs.numel() else 1.0
        error = (ours.double() - theirs.double()).abs().max().item() if theirs.numel() else 0.0
        if not error <= allowed("op", theirs.dtype) * scale:
            return f"result {position} differs by {error:.3e} where the largest value is {scale:.3e}"
    return None


def measure(case: Case, device: torch.device, bandwidth: float) -> Iterator[dict[str, Any]]:
    """One row per implementation, after its values were found right; `bandwidth` is that of a copy."""
    sets = [case.inputs(seed) for seed in range(copies_for(case.cost.bytes, device))]
    expected = case.reference(*case.inputs(0))
    for name, implementation in {**case.implementations, **case.eager_only}.items():
        row: dict[str, Any] = {"case": case.name, "implementation": name, "copies": len(sets)}
        try:
            problem = disagreement(implementation(*case.inputs(0)), expected)
            if problem is not None:
                yield {**row, "refused": problem}
                continue
            calls = [partial(implementation, *inputs) for inputs in sets]
            eager = eager_time(calls, device)
            on_device = None if name in case.eager_only else device_time(calls, device)
        except Exception as error:  # a baseline that fails is a line of the report, not its end
            yield {**row, "refused": f"{type(error).__name__}: {error}"[:500]}
            continue
        row |= {"eager_us": asdict(eager), "bytes": case.cost.bytes}
        if on_device is None:
            yield row
            continue
        reached = case.cost.bytes / (on_device.median * 1e-6)
        yield {
            **row,
            "device_us": asdict(on_device),
            "gb_per_s": reached / 1e9,
            "share_of_copy": reached / bandwidth,
            **({"share_of_read": reached / read_bandwidth(device, case.cost.bytes)} if case.reads else {}),
        }

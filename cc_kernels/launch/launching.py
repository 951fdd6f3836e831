"""Launches of kernels, and launchers that are prepared once for each kind of arguments.

A launch through Triton works out the specialisation of every argument anew, and a launcher its strides, sizes and
configuration; together they take longer than the kernels that they start. `Prepared` runs a launcher once for each kind
of arguments (shapes, strides, dtypes, device, alignment, and the values of what is no tensor), and writes down what it
allocates and launches. From then on it allocates and starts the compiled kernels, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from cc_kernels.launch.optional import HAS_TRITON, INTERPRETED
from cc_kernels.launch.recording import Launch, Recording, gpu_of, recorded, state

MOST_PLANS = 4096  # of one launcher, about a kilobyte each; batches of varying size make new ones
# Devices whose compiled kernels start without Triton's launcher. Not ROCm, where Triton also looks at allocations.
DIRECT = frozenset({"cuda"} if HAS_TRITON and not INTERPRETED and torch.version.hip is None else ())
_ALIGNMENT = 16  # bytes; Triton compiles pointers that are multiples of it differently


def launch(kernel: Any, grid: tuple[int, ...], **arguments: Any) -> None:
    """Run `kernel` on `grid` on the device of the first tensor among the arguments; an empty grid launches nothing.

    Fused multiply-adds are asked for by name, because the default of Triton changes with 3.10.
    """
    if 0 in grid:
        return
    arguments["enable_fp_fusion"] = True
    if state.recording is not None:
        state.recording.launches.append(Launch(kernel, grid, arguments))
        return
    device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
    with _on(device):
        compiled = through_triton(kernel, grid, arguments)
    if state.compiled is not None:
        state.compiled.append(compiled)


def through_triton(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> Any:
    """Let Triton specialise, compile and launch; returns the compiled kernel, or None where Triton keeps it."""
    return kernel[grid](**arguments)


def _on(device: torch.device) -> Any:
    """A guard that makes `device` the current one, where it is not."""
    if device.type == "cpu":
        return nullcontext()
    backend = getattr(torch, device.type)
    return nullcontext() if device.index == backend.current_device() else backend.device(device)


Kind = tuple[Any, ...]


def kind_of(arguments: tuple[Any, ...]) -> tuple[Kind, list[Tensor], list[int | None], bool]:
    """All that a launcher may look at in its arguments; their tensors, addresses, and whether one requires a gradient.

    Raises whatever a tensor without memory of its own raises, and TypeError for values that cannot be compared.
    """
    kind: list[Any] = []
    tensors: list[Tensor] = []
    addresses: list[int | None] = []
    requires_grad = False
    for x in arguments:
        if type(x) is Tensor or type(x) is Parameter:
            address = x.data_ptr()
            tensors.append(x)
            addresses.append(address)
            kind += (x.shape, x.is_contiguous() or x.stride(), x.dtype, x.get_device(), address % _ALIGNMENT)
            requires_grad = requires_grad or x.requires_grad
        else:
            kind.append(x)
    return tuple(kind), tensors, addresses, requires_grad


_caches: list[dict[Any, Any]] = []  # of all launchers and ops


def cache() -> dict[Any, Any]:
    """A new dictionary for plans, which `forget` empties."""
    _caches.append({})
    return _caches[-1]


def forget() -> None:
    """Forget all plans. They are made again when they are needed."""
    for plans in _caches:
        plans.clear()


def allocation(like: Tensor, device: torch.device) -> Callable[[], Tensor]:
    """What allocates a tensor on `device` of the shape, strides and dtype of another."""
    return partial(torch.empty_strided, tuple(like.shape), like.stride(), dtype=like.dtype, device=device)


@dataclass
class _Step:
    """One launch of a plan: what starts the compiled kernel, which addresses it gets, and its other arguments."""

    start: Callable[..., None]
    operands: tuple[int, ...]
    rest: tuple[Any, ...]


class Plan:
    """What one launcher does for one kind of arguments: allocations, launches, and what it returns.

    Operands are the tensors of the call, then the allocated ones; a pointer that is left out (None) comes last.
    """

    def __init__(self, recording: Recording, stand_ins: list[Tensor], result: Any, compiled: list[Any], device: Any):
        tensors = [*stand_ins, *recording.allocated]
        positions = {id(x): position for position, x in enumerate(tensors)}
        memory = {x.untyped_storage()._cdata: position for position, x in enumerate(tensors)}
        self.allocations = [allocation(x, device) for x in recording.allocated]
        self.steps = [
            _step(launched, kernel, memory, len(tensors)) for launched, kernel in zip(recording.launches, compiled)
        ]
        self.written = [positions[id(x)] for x in recording.written]
        self.several = isinstance(result, tuple)
        results = result if self.several else () if result is None else (result,)
        self.results = [positions[id(x)] for x in results]
        self.index = device.index if device.type == "cuda" and torch.cuda.device_count() > 1 else None
        shape = len(self.allocations), len(self.steps), self.results, self.written, self.index
        if shape == (1, 1, [len(stand_ins)], [], None) and not self.several:
            self.run = _one_result(self.allocations[0], self.steps[0], len(stand_ins))  # type: ignore[method-assign]

    def run(self, tensors: list[Tensor], addresses: list[int | None]) -> Any:
        """Do it again for tensors of the same kind, whose addresses are given."""
        for allocate in self.allocations:
            fresh = allocate()
            tensors.append(fresh)
            addresses.append(fresh.data_ptr())
        addresses.append(None)
        if self.index is None or self.index == torch.cuda.current_device():
            self._start(addresses)
        else:
            with torch.cuda.device(self.index):
                self._start(addresses)
        if self.written:
            torch.autograd.graph.increment_version([tensors[position] for position in self.written])
        results = [tensors[position] for position in self.results]
        return tuple(results) if self.several else results[0] if results else None

    def _start(self, addresses: list[int | None]) -> None:
        for step in self.steps:
            step.start(*[addresses[position] for position in step.operands], *step.rest)


def _one_result(allocate: Callable[[], Tensor], step: _Step, inputs: int) -> Callable[..., Tensor]:
    """`Plan.run` of most plans, which return what one launch fills: short, since Python is slow where it is cold."""
    start, rest = step.start, step.rest
    if step.operands == tuple(range(inputs + 1)):

        def in_order(tensors: list[Tensor], addresses: list[int | None]) -> Tensor:
            result = allocate()
            start(*addresses, result.data_ptr(), *rest)
            return result

        return in_order
    operands = step.operands

    def run(tensors: list[Tensor], addresses: list[int | None]) -> Tensor:
        result = allocate()
        addresses += (result.data_ptr(), None)
        start(*[addresses[position] for position in operands], *rest)
        return result

    return run


def _step(launched: Launch, compiled: Any, memory: dict[int, int], absent: int) -> _Step:
    """Raises KeyError for an operand that is neither an argument nor allocated by the launcher: a copy, for example."""
    values = [launched.arguments[name] for name in launched.kernel.arg_names]
    operands = []
    for value in values:
        if isinstance(value, Tensor) and value.storage_offset() == 0:
            operands.append(memory[value.untyped_storage()._cdata])
        elif value is None:
            operands.append(absent)
        else:
            break
    rest = tuple(values[len(operands) :])
    if any(isinstance(value, Tensor) for value in rest):
        raise KeyError("a pointer after the sizes, or into the middle of a tensor")
    return _Step(compiled[(*launched.grid, 1, 1)[:3]], tuple(operands), rest)


class Prepared:
    """A launcher that is run once for each kind of arguments, and repeated from then on.

    The launcher must decide by shapes, strides, dtypes and values that are no tensors alone. It may allocate with
    `empty`, and `launch`. Where it does more, for example copies a tensor because of its strides, it is run as it is at
    every call; so it is on devices that are not in `DIRECT`, and by a Triton whose launches return nothing.
    """

    def __init__(self, launcher: Callable[..., Any]):
        self.launcher = launcher
        self.plans: dict[Kind, Plan | None] = cache()
        update_wrapper(self, launcher)

    def __call__(self, *arguments: Any) -> Any:
        """What the launcher returns for these arguments."""
        if state.recording is not None or state.compiled is not None:  # a part of another launcher
            return self.launcher(*arguments)
        kind, tensors, addresses, _ = kind_of(arguments)
        plan = self.plans.get(kind)
        return self._run(kind, arguments) if plan is None else plan.run(tensors, addresses)

    def _run(self, kind: Kind, arguments: tuple[Any, ...]) -> Any:
        """Run the launcher itself, and prepare the next call with arguments of this kind, once."""
        device = next(x.device for x in arguments if isinstance(x, Tensor))
        previous, state.gpu = state.gpu, gpu_of(device)
        try:
            if device.type not in DIRECT or kind in self.plans:
                return self.launcher(*arguments)
            state.compiled = []
            output = self.launcher(*arguments)
            if len(self.plans) >= MOST_PLANS:
                self.plans.clear()
            self.plans[kind] = self._plan(arguments, state.compiled, device)
            return output
        finally:
            state.gpu, state.compiled = previous, None

    def _plan(self, arguments: tuple[Any, ...], compiled: list[Any], device: torch.device) -> Plan | None:
        """The plan that a second run, on stand-ins without data, writes down; None where it cannot be repeated."""
        stand_ins = [_stand_in(x) for x in arguments]
        with recorded(gpu_of(device)) as recording:
            result = self.launcher(*stand_ins)
        if any(kernel is None for kernel in compiled) or len(compiled) != len(recording.launches):
            return None
        try:
            return Plan(recording, [x for x in stand_ins if isinstance(x, Tensor)], result, compiled, device)
        except KeyError:
            return None


def _stand_in(value: Any) -> Any:
    """A tensor of the same kind on `meta`, with memory of its own: two arguments may be the same tensor this time."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def prepared(launcher: Callable[..., Any]) -> Prepared:
    """Decorate a launcher, so that its Python runs once for each kind of arguments. See `Prepared`."""
    return Prepared(launcher)


def warmup(call: Callable[[], Any], device: torch.device | None = None) -> None:
    """Run `call` as PyTorch asks before a CUDA graph is captured: three times, on a stream of its own.

    The kernels are then compiled and loaded, and their launches prepared; a capture allows neither. Without a GPU the
    call is run once.

    Args:
        call: what shall be captured, with arguments of the same shapes, strides and dtypes.
        device: the GPU; the current one by default.

    Example:
        >>> import torch
        >>> from cc_kernels import swiglu
        >>> x = torch.ones(2, 8)
        >>> warmup(lambda: swiglu(x, x))
    """
    if not torch.cuda.is_available():
        call()
        return
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()

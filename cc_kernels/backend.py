"""Which implementation of an op runs: the dispatch point of `cc_kernels`.

`auto` runs the Triton kernel of an op for tensors on a GPU and the plain-PyTorch reference for everything else.
`torch` and `triton` ask for one of them, and a request that cannot be served raises instead of running the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cc_kernels.launch import INTERPRETED

BACKENDS = ("auto", "torch", "triton")

Implementation = Callable[..., Any]
_triton_implementations: dict[str, Implementation] = {}
_requested = "auto"


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose the implementation of every op inside the `with` block; the previous choice comes back at its end.

    The choice holds for the whole process, not for one thread.

    Args:
        name: `"auto"` (Triton on GPU tensors, reference otherwise), `"torch"` (reference everywhere) or `"triton"`
            (on CPU tensors only where `TRITON_INTERPRET=1` was set before the import of `cc_kernels`).

    Raises:
        ValueError: `name` is none of the three.

    Example:
        >>> import torch
        >>> from cc_kernels import swiglu, use_backend
        >>> with use_backend("torch"):
        ...     swiglu(torch.zeros(2, 3), torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """
    global _requested
    if name not in BACKENDS:
        raise ValueError(f"name: expected one of {BACKENDS}, got {name!r}")
    previous, _requested = _requested, name
    try:
        yield
    finally:
        _requested = previous


def requested() -> str:
    """The backend that `use_backend` chose: `auto`, `torch` or `triton`."""
    return _requested


def register_triton(op: str, implementation: Implementation) -> None:
    """Make `implementation` the Triton implementation of the op called `op` (same arguments as the reference)."""
    _triton_implementations[op] = implementation


def registered(op: str) -> Implementation | None:
    """The Triton implementation of the op called `op`; None without Triton."""
    return _triton_implementations.get(op)


def choose(op: str, tensor: torch.Tensor, reference: Implementation, pays: bool = True) -> Implementation:
    """The implementation of `op` for data like `tensor`: `reference`, or the registered Triton one.

    Args:
        op: name of the op.
        tensor: one of its arguments.
        reference: its plain-PyTorch definition.
        pays: whether the kernel is meant for a call of this size; `auto` runs the reference where it is not.

    Raises:
        RuntimeError: the Triton backend was requested and cannot serve this call.
    """
    if _requested == "triton":
        if op not in _triton_implementations:
            raise RuntimeError(f"use_backend('triton'): {op} has no Triton implementation in this installation")
        if not triton_serves(op, tensor):
            raise RuntimeError(
                f"use_backend('triton'): {op} expected a GPU tensor, got one on {tensor.device}; "
                "set TRITON_INTERPRET=1 before cc_kernels is imported to run the kernel interpreted on the CPU"
            )
        return _triton_implementations[op]
    return _triton_implementations[op] if pays and triton_serves(op, tensor) else reference


def device_type(tensor: torch.Tensor) -> str:
    """`tensor.device.type`, whose string PyTorch makes anew: 5 µs in the middle of a forward on one CPU."""
    return "cuda" if tensor.is_cuda else "cpu" if tensor.is_cpu else tensor.device.type


def triton_serves(op: str, tensor: torch.Tensor) -> bool:
    """Whether the chosen backend runs the Triton kernel of `op` for tensors where `tensor` is, where it pays.

    ROCm devices call themselves CUDA.
    """
    if _requested == "torch" or op not in _triton_implementations:
        return False
    return tensor.is_cuda or tensor.is_xpu or (_requested == "triton" and INTERPRETED)

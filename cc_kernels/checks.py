"""Argument checks shared by the public ops. They read shapes and dtypes only: no data, no synchronisation."""

from __future__ import annotations

import math

import torch

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_float(name: str, tensor: object, ndim: int | None = None) -> torch.Tensor:
    """`tensor` as a dense tensor of 16, 32 or 64-bit floats of `ndim` dimensions (any when None), or an error."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in _FLOATS:
        bits = " of 16, 32 or 64 bits" if tensor.is_floating_point() else ""
        raise TypeError(f"{name}: expected a floating-point dtype{bits}, got {tensor.dtype}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got the layout {tensor.layout}")
    if ndim is not None and tensor.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} dimensions, got shape {tuple(tensor.shape)}")
    return tensor


def check_shape(name: str, tensor: torch.Tensor, expected: tuple[int, ...], meaning: str) -> None:
    """Raise unless `tensor` has the shape `expected`; `meaning` names its axes in the message."""
    if tensor.shape != expected:
        raise ValueError(f"{name}: expected shape {meaning} = {tuple(expected)}, got {tuple(tensor.shape)}")


def check_same(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Raise unless the two tensors have the same dtype and lie on the same device."""
    if tensor.dtype != other.dtype:
        raise TypeError(f"{name}: expected the dtype of {other_name}, {other.dtype}, got {tensor.dtype}")
    check_device(name, tensor, other_name, other)


def check_device(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Raise unless the two tensors lie on the same device."""
    if tensor.device != other.device:
        raise ValueError(f"{name}: expected the device of {other_name}, {other.device}, got {tensor.device}")


def check_rows(
    name: str, rows: object, like: torch.Tensor, count: int | None = None, like_name: str = "x"
) -> torch.Tensor:
    """`rows` as a 1-d integer tensor of indices on the device of `like`, or an error that names it."""
    if not isinstance(rows, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(rows).__name__}")
    if rows.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: expected int64 or int32 indices, got {rows.dtype}")
    if rows.ndim != 1:
        raise ValueError(f"{name}: expected 1 dimension, got shape {tuple(rows.shape)}")
    if count is not None and rows.shape[0] != count:
        raise ValueError(f"{name}: expected {count} indices, got {rows.shape[0]}")
    check_device(name, rows, like_name, like)
    return rows


def check_own_memory(name: str, tensor: torch.Tensor, when: str = "") -> None:
    """Raise when elements of the matrix `tensor`, which is written to, share memory; `when` ends the message."""
    (count, width), (step, stride) = tensor.shape, tensor.stride()
    if count < 2 or tensor.is_contiguous():
        return
    # (i, j) and (i + a, j − b) share memory where a · step = b · stride; the smallest such a and b are these.
    shared = step == 0
    if not (shared or torch.compiler.is_compiling()):
        common = math.gcd(step, stride)
        shared = stride // common < count and step // common < width
    if shared:
        raise ValueError(f"{name}: expected rows of their own memory{when}, got strides {tensor.stride()}")


def check_inference(op: str, **tensors: torch.Tensor) -> None:
    """Raise when a gradient would be needed through the inference-only op `op`."""
    if not torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if tensor.requires_grad:
            raise RuntimeError(f"{op} is inference only: {name} requires a gradient; call it under torch.no_grad()")

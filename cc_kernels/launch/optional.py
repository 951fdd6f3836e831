"""The optional import of Triton. Without it this module still imports: kernels are then functions that nobody calls.

Triton reads `TRITON_INTERPRET` when a kernel is decorated, so `INTERPRETED` is fixed once this module is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

HAS_TRITON = triton is not None
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`triton.jit` with its options, as a decorator; without triton the function stays as it is."""
    return triton.jit(**options) if HAS_TRITON else lambda fn: fn


def arithmetic_dtype(dtype: torch.dtype) -> Any:
    """Triton's name for the dtype in which a kernel calculates on `dtype`: fp64 for fp64, else fp32."""
    return tl.float64 if dtype == torch.float64 else tl.float32


__all__ = ["HAS_TRITON", "INTERPRETED", "arithmetic_dtype", "jit", "tl", "triton"]

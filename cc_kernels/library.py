"""Registration of the Triton implementations as PyTorch operators in the namespace `cc_kernels`.

`torch.library.Library` is used directly: an operator made by `custom_op` does the same with a wrapper around the
implementation that costs 2 µs more per call (measured on a CPU: 6.5 against 4.4 µs above the bare function), and
`triton_op` cannot be interpreted, so nothing about it could be tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

_LIBRARY = torch.library.Library("cc_kernels", "DEF")
_DISPATCH_KEYS = ("CUDA", "XPU", "CPU")  # ROCm uses CUDA; CPU is for interpreted kernels


def _no_derivative(name: str, ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(
        f"cc_kernels.{name} has no derivative: it computes one, and second derivatives are not supported"
    )


def define(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    save: Callable[..., None] | None = None,
) -> Any:
    """Register one operator and return it.

    Args:
        schema: name, arguments and results, as in `"swiglu(Tensor gate, Tensor up) -> Tensor"`.
        implementation: launches the kernels.
        fake: the same results without data, for tracing.
        backward, save: `backward` and `setup_context` of `torch.library.register_autograd`; without them a backward
            through the operator raises. An operator that writes to an argument cannot have them.
    """
    name = schema.partition("(")[0]
    qualified = f"cc_kernels::{name}"
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in _DISPATCH_KEYS:
        _LIBRARY.impl(name, implementation, key)
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    if backward is None:
        backward = partial(_no_derivative, name)
    if "!" not in schema:
        torch.library.register_autograd(qualified, backward, setup_context=save, lib=_LIBRARY)
    return getattr(torch.ops.cc_kernels, name).default

"""Liger-Kernel: what of it the patcher has to know. Nothing here imports it."""

from __future__ import annotations

from torch import nn


def is_liger_swiglu(block: nn.Module) -> bool:
    """Whether `block` is Liger's feed-forward module, which models get that are built after `apply_liger_kernel_to_*`.

    It has the projections of the stock module but no activation of its own, and accepts SiLU alone, so that
    `cc_kernels.swiglu` computes the same.
    """
    return any(cls.__name__ == "LigerSwiGLUMLP" for cls in type(block).__mro__)


__all__ = ["is_liger_swiglu"]

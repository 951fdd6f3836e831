"""A projection without the call of its module, where nobody would miss the call.

On a small or a fast device the host is what takes time, and the call of a module costs it as much as starting the
matrix product. A decoder layer calls seven projections; the three of the feed-forward block are ours to call.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.modules.module as module_hooks
from torch import Tensor, nn

from cc_kernels import backend
from cc_kernels.library import is_observed
from cc_model.fast_paths.fused import SILU

_FORWARD = nn.Linear.forward  # which other libraries may replace for all modules


def project(projection: Any, x: Tensor) -> Tensor:
    """`projection(x)`. Of exactly `nn.Linear`, without hooks or a `forward` of its own, the product itself."""
    attributes = projection.__dict__
    if (
        type(projection) is not nn.Linear
        or torch.compiler.is_compiling()
        or _is_watched(attributes)
        or _all_are_watched()
    ):
        return projection(x)
    parameters = attributes["_parameters"]
    weight = parameters.get("weight")
    if weight is None or "bias" not in parameters:  # a wrapper keeps them as plain attributes
        return projection(x)
    return F.linear(x, weight, parameters["bias"])


def plain_weights(*projections: Any) -> list[nn.Parameter] | None:
    """The weights of projections without a bias of which `project` would call none; None where one is another."""
    if torch.compiler.is_compiling() or _all_are_watched():
        return None
    weights: list[nn.Parameter] = []
    for projection in projections:
        attributes = projection.__dict__
        if type(projection) is not nn.Linear or _is_watched(attributes):
            return None
        parameters = attributes["_parameters"]
        weight = parameters.get("weight")
        if type(weight) is not nn.Parameter or parameters.get("bias", weight) is not None:
            return None
        weights.append(weight)
    return weights


def runs_whole(x: Tensor, activation: str) -> bool:
    """Whether a block may run as one function for `x`, as far as its projections do not decide it.

    Not for those who look at operators, and not under autocast, which casts weights for every product.
    """
    return (
        type(x) is Tensor
        and backend.triton_serves("swiglu" if activation == SILU else "geglu", x)
        and not torch.is_autocast_enabled(backend.device_type(x))
        and not is_observed()
    )


def _is_watched(attributes: dict[str, Any]) -> bool:
    """Whether somebody sees the call of the `nn.Linear` with these `attributes`, its `__dict__`, or has changed it.

    Written out, because it is asked three times in every layer.
    """
    return bool(
        attributes["_forward_hooks"]
        or attributes["_forward_pre_hooks"]
        or attributes["_backward_hooks"]
        or attributes["_backward_pre_hooks"]
        or "forward" in attributes
        or attributes.get("_compiled_call_impl") is not None  # a class attribute until it is compiled
    )


def _all_are_watched() -> bool:
    """The same of all modules at once."""
    return bool(
        module_hooks._global_forward_hooks
        or module_hooks._global_forward_pre_hooks
        or module_hooks._global_backward_hooks
        or module_hooks._global_backward_pre_hooks
        or nn.Linear.forward is not _FORWARD
    )


__all__ = ["plain_weights", "project", "runs_whole"]

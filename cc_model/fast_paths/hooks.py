"""Who observes a module: hooks on it, hooks on all modules, and a `forward` of its own.

A fast path may leave a module's call out only where nobody would miss it. Each path asks here, so that a way to observe
a module is known in one place.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.nn.modules.module as module_hooks
from torch import nn

_FORWARD = ("_forward_hooks", "_forward_pre_hooks")
_BACKWARD = ("_backward_hooks", "_backward_pre_hooks")
_ALL = _FORWARD + _BACKWARD
_OUTPUT = ("_forward_hooks", *_BACKWARD)
# Hooks that read no numbers: those of transformers are asleep without output_hidden_states and output_attentions.
_HARMLESS = ("transformers.utils.output_capturing", "torch.distributed.fsdp")


def global_hooks(forward_only: bool = False) -> bool:
    """Whether hooks are registered on all modules of the process."""
    on_forward = module_hooks._global_forward_hooks or module_hooks._global_forward_pre_hooks
    if on_forward or forward_only:
        return bool(on_forward)
    return bool(module_hooks._global_backward_hooks or module_hooks._global_backward_pre_hooks)


def call_is_observed(attributes: dict[str, Any]) -> bool:
    """Whether a hook sees the forward of the module that has these `attributes`, its `__dict__`.

    Asked at every decode step of every layer: attributes of a module are slow, its dictionary is not.
    """
    return bool(attributes["_forward_hooks"] or attributes["_forward_pre_hooks"])


def owns_output(block: Any) -> bool:
    """Whether nobody else holds the output of a feed-forward block; a forward hook or an adapter may have kept it."""
    fused = getattr(block, "cc_fused", None)
    down = getattr(block, fused.down) if fused is not None else None
    if type(down) is not nn.Linear or "forward" in down.__dict__ or "forward" in block.__dict__:
        return False
    # A hook on the backward makes the output a view, which autograd does not let anyone write to.
    if any(module.__dict__[kind] for module in (block, down) for kind in _OUTPUT):
        return False
    return not any(getattr(module_hooks, f"_global{kind}") for kind in _OUTPUT)


def numbers_are_observed(module: nn.Module) -> bool:
    """Whether a hook on `module`, of any kind, may read its numbers."""
    attributes = module.__dict__
    if not (  # written out, because it is asked of every module of a model
        attributes["_forward_hooks"]
        or attributes["_forward_pre_hooks"]
        or attributes["_backward_hooks"]
        or attributes["_backward_pre_hooks"]
    ):
        return False
    return any(attributes[kind] and not _are_harmless(attributes[kind].values()) for kind in _ALL)


def has_own_forward(module: nn.Module) -> bool:
    """Whether another `forward` than the class's is set on the instance.

    accelerate's is the stock one inside hooks of its own, and so is what it leaves behind when they are removed.
    """
    own = module.__dict__.get("forward")
    if own is None or "_hf_hook" in module.__dict__:
        return False
    return getattr(own, "__func__", None) is not type(module).forward


def _are_harmless(hooks: Iterable[Any]) -> bool:
    return all(str(getattr(hook, "__module__", "")).startswith(_HARMLESS) for hook in hooks)


__all__ = ["call_is_observed", "global_hooks", "has_own_forward", "numbers_are_observed", "owns_output"]

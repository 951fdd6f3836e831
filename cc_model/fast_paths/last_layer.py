"""Whether a pass that only captures may run the last feed-forward block on the captured tokens alone.

After the last layer's capture nothing is captured any more, so where nobody reads the result of the pass, that block's
output for all other tokens is work for nothing. It must not be missed by anyone, though, and it must be computed row by
row: a quantised projection may scale a row by what the others hold. What is not known to be so runs on all tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.modules.module as module_hooks
from torch import Tensor, nn

from cc_model.specs import SPECS

# Hooks that read no numbers: those of transformers are asleep without output_hidden_states and output_attentions.
_HARMLESS = ("transformers.utils.output_capturing", "torch.distributed.fsdp")
_GLOBAL = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
_OWN = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_ROW_BY_ROW = frozenset({"SiLU", "SiLUActivation", "Dropout", "Identity", "ModuleDict", "ModuleList", "ParameterDict"})


def narrow_obstacle(body: Any) -> str | None:
    """Why the last layer of the decoder `body` must run on all tokens; None when the captured ones are enough."""
    spec = SPECS[body.config.model_type]
    layer = getattr(body, spec.layers)[-1]
    block = getattr(layer, spec.mlp)
    if torch.compiler.is_compiling() or layer._compiled_call_impl is not None:
        return "it is compiled, and would cost a graph of its own"
    if any(getattr(module_hooks, name) for name in _GLOBAL):
        return "global hooks are registered"
    for module in (*layer.modules(), *getattr(body, spec.norm).modules()):
        attributes = module.__dict__
        if any(attributes[name] and not _are_harmless(attributes[name].values()) for name in _OWN):
            return f"a hook is registered on {type(module).__name__}"
        if "forward" in attributes and not _runs_the_stock_forward(module):
            return f"{type(module).__name__} has a forward of its own"
    if getattr(block, "cc_fused", None) is None:
        return f"{type(block).__name__} runs a forward that is not known"
    unknown = [module for module in block.modules() if module is not block and not _runs_row_by_row(module)]
    return f"{type(unknown[0]).__name__} may not treat rows one by one" if unknown else None


def _are_harmless(hooks: Iterable[Any]) -> bool:
    return all(str(getattr(hook, "__module__", "")).startswith(_HARMLESS) for hook in hooks)


def _runs_the_stock_forward(module: nn.Module) -> bool:
    """Whether the `forward` on the instance is accelerate's, or what its hooks leave behind when they are removed."""
    own = module.__dict__["forward"]
    return "_hf_hook" in module.__dict__ or getattr(own, "__func__", None) is type(module).forward


def _runs_row_by_row(module: nn.Module) -> bool:
    """Plain modules of PyTorch and transformers with plain weights, and PEFT's adapters around them."""
    kind = type(module)
    if kind is nn.Linear:
        weight = module._parameters.get("weight")
        return type(weight) in (nn.Parameter, Tensor) or type(weight).__name__ == "DTensor"
    known = kind.__module__.startswith(("torch.nn.", "transformers.")) and kind.__name__ in _ROW_BY_ROW
    return known or kind.__module__.startswith("peft.tuners.lora.")


__all__ = ["narrow_obstacle"]

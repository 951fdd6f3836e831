"""Whether a pass that only captures may run the last feed-forward block on the captured tokens alone.

After the last layer's capture nothing is captured any more, so where nobody reads the result of the pass, that block's
output for all other tokens is work for nothing. It must not be missed by anyone, though, and it must be computed row by
row: a quantised projection may scale a row by what the others hold. What is not known to be so runs on all tokens.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from cc_model.fast_paths.hooks import global_hooks, has_own_forward, numbers_are_observed
from cc_model.specs import SPECS, addend_of, block_of

_ROW_BY_ROW = frozenset(
    {"SiLU", "SiLUActivation", "GELU", "GELUActivation", "GELUTanh"}
    | {"Dropout", "Identity", "ModuleDict", "ModuleList", "ParameterDict"}
)


def narrow_obstacle(body: Any) -> str | None:
    """Why the last layer of the decoder `body` must run on all tokens; None when the captured ones are enough."""
    spec = SPECS[body.config.model_type]
    layer = attrgetter(spec.layers)(body)[-1]
    block, addend = block_of(layer, spec), addend_of(layer, spec)
    if torch.compiler.is_compiling() or layer._compiled_call_impl is not None:
        return "it is compiled, and would cost a graph of its own"
    if global_hooks():
        return "global hooks are registered"
    for module in (*layer.modules(), *attrgetter(spec.norm)(body).modules()):
        if numbers_are_observed(module):
            return f"a hook is registered on {type(module).__name__}"
        if has_own_forward(module):
            return f"{type(module).__name__} has a forward of its own"
    if addend is not block:
        return f"the layer adds the output of {type(addend).__name__} after it"
    if getattr(block, "cc_fused", None) is None:
        return f"{type(block).__name__} runs a forward that is not known"
    unknown = [module for module in block.modules() if module is not block and not _runs_row_by_row(module)]
    return f"{type(unknown[0]).__name__} may not treat rows one by one" if unknown else None


def _runs_row_by_row(module: nn.Module) -> bool:
    """Plain modules of PyTorch and transformers with plain weights, and PEFT's adapters around them."""
    kind = type(module)
    if kind is nn.Linear:
        weight = module._parameters.get("weight")
        return type(weight) in (nn.Parameter, Tensor) or type(weight).__name__ == "DTensor"
    known = kind.__module__.startswith(("torch.nn.", "transformers.")) and kind.__name__ in _ROW_BY_ROW
    return known or kind.__module__.startswith("peft.tuners.lora.")


__all__ = ["narrow_obstacle"]

"""What a connected forward returns: the output of the stock class, with the decision in one more field."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

FIELD = "decision_weights"


@dataclasses.dataclass
class ConnectedCausalLMOutput(CausalLMOutputWithPast):
    """The stock output plus `decision_weights` `(B, L)`, all zero for a row without a connection."""

    decision_weights: Tensor | None = None


_CLASSES: dict[type, Any] = {CausalLMOutputWithPast: ConnectedCausalLMOutput}


def connected_output(output: ModelOutput, weights: Tensor) -> ModelOutput:
    """`output` with `decision_weights`, itself where it may be; an instance of its class, whose other fields it keeps.

    Example:
        >>> import torch
        >>> from transformers.modeling_outputs import MoeCausalLMOutputWithPast
        >>> found = connected_output(MoeCausalLMOutputWithPast(logits=torch.ones(1)), torch.ones(1, 2))
        >>> isinstance(found, MoeCausalLMOutputWithPast), found.router_logits, tuple(found.decision_weights.shape)
        (True, None, (1, 2))
    """
    if output.keys() <= {field.name for field in dataclasses.fields(output)}:  # type: ignore[arg-type]
        connected = _connected_class(type(output))
        if torch.compiler.is_compiling():
            return connected(**output, **{FIELD: weights})
        output.__class__ = connected  # a new one takes 20 µs more; a compiler cannot follow this
    output[FIELD] = weights  # perhaps beside a field that somebody added in the same way
    return output


def _connected_class(stock: type) -> Any:
    """The subclass of an output class with the field; the same one at every call."""
    if stock not in _CLASSES:
        namespace = {"__reduce__": _reduce, "__module__": stock.__module__, "cc_stock_class": stock}
        field = (FIELD, Tensor | None, dataclasses.field(default=None))
        _CLASSES[stock] = dataclasses.make_dataclass(stock.__name__, [field], bases=(stock,), namespace=namespace)
    return _CLASSES[stock]


def _reduce(self: Any) -> Any:
    """Pickle by the stock class, which is importable under its name."""
    return _rebuild, (type(self).cc_stock_class, dict(self))


def _rebuild(stock: type, fields: dict[str, Any]) -> Any:
    return _connected_class(stock)(**fields)


__all__ = ["FIELD", "ConnectedCausalLMOutput", "connected_output"]

"""One cached subclass per stock class, and swapping the class of an instance."""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any

import transformers
from torch import nn
from transformers import AutoModelForCausalLM, GenerationMixin

from cc_model.data.columns import CONNECTION_ARGUMENTS
from cc_model.patching.causal_lm import PatchedCausalLM
from cc_model.patching.decoder import (
    PatchedAddend,
    PatchedBody,
    PatchedFeedForward,
    PatchedFeedForwardAddend,
    PatchedLayer,
    PatchedSilentLayer,
)

_MIXINS: dict[str, type] = {
    mixin.__name__: mixin
    for mixin in (
        PatchedAddend,
        PatchedBody,
        PatchedCausalLM,
        PatchedFeedForward,
        PatchedFeedForwardAddend,
        PatchedLayer,
        PatchedSilentLayer,
    )
}
_CACHE: dict[tuple[type, str], type] = {}


def patched_class(stock: type, mixin: str) -> type:
    """The subclass of `stock` with the behaviour of the mixin called `mixin`; the same class at every call.

    It carries the stock class's name and module, because transformers writes the name into `config.architectures` and
    looks classes up by it.
    """
    key = (stock, mixin)
    if key not in _CACHE:
        namespace: dict[str, Any] = {
            "__module__": stock.__module__,
            "__qualname__": stock.__qualname__,
            "__doc__": stock.__doc__,
            "__reduce_ex__": _reduce,
            "cc_stock_class": stock,
            "cc_mixin": mixin,
        }
        if mixin in ("PatchedBody", "PatchedCausalLM"):
            signature = inspect.signature(stock.forward)  # type: ignore[attr-defined]
            namespace["cc_arguments"] = _positional(signature)
        if mixin == "PatchedCausalLM":
            namespace["forward"] = _signed_forward(signature)
            namespace["_keys_to_ignore_on_load_unexpected"] = [r"^cc\."]
        _CACHE[key] = type(stock.__name__, (_MIXINS[mixin], stock), namespace)
    return _CACHE[key]


def _positional(signature: inspect.Signature) -> tuple[str, ...]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(name for name, p in signature.parameters.items() if p.kind in kinds)[1:]  # without self


def _signed_forward(stock: inspect.Signature) -> Any:
    """`PatchedCausalLM.forward` that shows the stock parameters and ours: Trainer and generate read the signature."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return PatchedCausalLM.forward(self, *args, **kwargs)

    parameters = list(stock.parameters.values())
    ours = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None) for n in CONNECTION_ARGUMENTS]
    if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        parameters[-1:-1] = ours
    else:
        parameters += ours
    forward.__signature__ = stock.replace(parameters=parameters)  # type: ignore[attr-defined]
    forward.__doc__ = PatchedCausalLM.forward.__doc__
    return forward


def _reduce(self: nn.Module, protocol: Any) -> Any:
    """Pickle and deepcopy by the stock class, which is importable under its name."""
    cls = type(self)
    return _rebuild, (cls.cc_stock_class, cls.cc_mixin), self.__getstate__() if _has_getstate(cls) else self.__dict__  # type: ignore[attr-defined]


def _has_getstate(cls: type) -> bool:
    return "__getstate__" in {name for base in cls.__mro__[:-1] for name in vars(base)}


def _rebuild(stock: type, mixin: str) -> nn.Module:
    cls: Any = patched_class(stock, mixin)
    return cls.__new__(cls)


def model_class(config: Any) -> Any:
    """The stock class that a config names, or else the causal language model that transformers has for it.

    `AutoModelForCausalLM` would load the text half of some models of several modalities.

    Raises:
        ValueError: there is none.
    """
    for name in config.architectures or ():
        named: Any = getattr(transformers, name, None)
        generates = isinstance(named, type) and issubclass(named, GenerationMixin)
        if generates and isinstance(config, named.config_class):
            return named
    mapping: Any = AutoModelForCausalLM._model_mapping
    if type(config) not in mapping:
        raise ValueError(
            f"config: expected the config of a causal language model, got {type(config).__name__}, for which "
            "AutoModelForCausalLM has none"
        )
    return mapping[type(config)]


def swap_class(module: nn.Module, new: type) -> None:
    """Make `module` an instance of `new`, and let accelerate's hooks, if any, call the new class's forward."""
    old_forward = module.__dict__.get("_old_forward")
    bound_to_class = isinstance(old_forward, MethodType) and old_forward.__func__ is type(module).forward
    module.__class__ = new
    if bound_to_class:
        module._old_forward = MethodType(new.forward, module)  # type: ignore[assignment, attr-defined]


def is_patched(module: nn.Module) -> bool:
    """Whether the class of `module` was made by `patched_class`, directly or under a wrapper's subclass."""
    return hasattr(type(module), "cc_stock_class")

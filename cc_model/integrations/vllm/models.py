"""vLLM's model classes with the connection: `CCLlamaForCausalLM` and its like, made when they are asked for.

Each layer calls one op on what it adds to its stream, after the sum over devices. Everything else is vLLM's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from importlib import import_module
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from transformers.utils import cached_file

from cc_model.config import CCConfig
from cc_model.connection.state import CrossLingualConnection
from cc_model.integrations.vllm.families import FAMILIES, MODELS, PREFIX, Family, stock_architecture
from cc_model.integrations.vllm.names import check_names
from cc_model.integrations.vllm.rows import Rows
from cc_model.integrations.vllm.runner import model_state_class, register_layer, register_op, wrap_first_runner
from cc_model.saving import CONFIG_FILE
from cc_model.saving import PREFIX as WEIGHTS


class ConnectedModel:
    """What a connected class adds to vLLM's class of the same family."""

    cc_family: Family
    cc: CrossLingualConnection

    def __init__(self, *, vllm_config: Any, prefix: str = "", **kwargs: Any) -> None:
        check_names("model")
        super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)  # type: ignore[call-arg]
        inner: Any = self
        model_config = vllm_config.model_config
        options = read_options(model_config)
        layers = attrgetter(self.cc_family.layers)(self)
        if not options.inject_layer < len(layers):
            raise ValueError(f"inject_layer: expected a layer below {len(layers)}, got {options.inject_layer}")
        width, dtype = model_config.get_hidden_size(), model_config.dtype
        # No submodule: vLLM's reloading empties those, and takes a buffer away that came with the weights.
        self.__dict__["cc"] = CrossLingualConnection(options, len(layers), width, 0.0, None, dtype)
        self.cc_loaded = False
        device = self.cc.decision_maker.weight.device
        slots = vllm_config.scheduler_config.max_num_seqs
        self.cc_rows = Rows(self.cc, slots, dtype, device, inner.embed_input_ids)
        for number, layer in enumerate(layers):
            name = f"{prefix}.cc.{number}" if prefix else f"cc.{number}"
            register_layer(vllm_config, name, self.cc_rows.of_layer(number))
            addend = attrgetter(self.cc_family.addend)(layer)
            addend.forward = _with_rows(addend.forward, name)
        register_op()
        if not vllm_config.use_v2_model_runner:
            wrap_first_runner()

    def get_model_state_cls(self) -> Any:
        """What vLLM's second model runner asks a model for."""
        return model_state_class()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """The stock weights by the stock method, those under `cc.` into the connection."""
        own: dict[str, Tensor] = {}

        def stock() -> Iterable[tuple[str, Tensor]]:
            for name, value in weights:
                if name.startswith(WEIGHTS):
                    own[name.removeprefix(WEIGHTS)] = value
                else:
                    yield name, value

        loaded = set(super().load_weights(stock()) or ())  # type: ignore[misc]
        missing = [name for name in ("decision_maker.weight", "transform_matrix") if name not in own]
        if missing and not self.cc_loaded:
            raise ValueError(
                f"model: expected the weights {WEIGHTS}{missing[0]}, as save_pretrained of a patched model with a "
                "Transform Matrix writes them, found none; serve a plain model by its stock architecture"
            )
        if own:
            self.cc.load_state_dict(own)
            self.cc_loaded = True
        return loaded | {WEIGHTS + name for name in own}


def read_options(model_config: Any) -> CCConfig:
    """The options in `cc_config.json` of the served folder or repository.

    Raises:
        ValueError: it has none, or one with an unknown option or a value out of range.
    """
    path = cached_file(
        model_config.model,
        CONFIG_FILE,
        revision=model_config.revision,
        _raise_exceptions_for_missing_entries=False,
    )
    if path is None:
        raise ValueError(
            f"model: expected {CONFIG_FILE} in {model_config.model}, which a patched model's save_pretrained writes; "
            "serve a plain model by its stock architecture"
        )
    return CCConfig.from_json(path)


def _with_rows(stock: Callable[..., Tensor], layer_name: str) -> Callable[..., Tensor]:
    """The forward of what a layer adds to its stream, which hands its output `(..., d)` to the rows' op."""

    @functools.wraps(stock)
    def forward(*args: Any, **kwargs: Any) -> Tensor:
        output = stock(*args, **kwargs)
        torch.ops.vllm.cc_rows(output, layer_name)
        return output

    return forward


def __getattr__(name: str) -> Any:
    """`CC<architecture>`, a subclass of vLLM's class."""
    architecture = stock_architecture(name)
    if architecture is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    family = FAMILIES[architecture]
    stock = getattr(import_module(f"{MODELS}.{family.module}"), family.name or architecture)
    made = type(name, (ConnectedModel, stock), {"__module__": __name__, "cc_family": family, "__doc__": stock.__doc__})
    globals()[name] = made
    return made


__all__ = ["PREFIX", "ConnectedModel", "read_options"]

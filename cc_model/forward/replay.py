"""The run of the prompt's last tokens with the connection, compiled where transformers compiles the decode steps.

With a static cache on a GPU, `generate` compiles decode steps into CUDA graphs, but not the prefill. Run eagerly, the
one token that the connection runs again would cost the launches of a whole model, several times a decode step. So it is
compiled in the same way: a second graph beside that of the decode steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import StaticCache
from transformers.generation.configuration_utils import CompileConfig

from cc_model.compat import cache_of
from cc_model.forward.calls import BodyOutput, asks_for
from cc_model.forward.passes import InjectPass

_compiled: list[tuple[CompileConfig, Callable[..., BodyOutput]]] = []


def connected_replay(
    body: Any, named: dict[str, Any], rows: Tensor, update: Tensor, compile_config: CompileConfig | None
) -> BodyOutput:
    """The decoder body on the tokens of `named`, with `update` `(B, d)` added at the flattened tokens `rows` `(B,)`.

    Compiled for one token and a static cache when `compile_config` says how decode steps are compiled.

    Raises:
        RuntimeError: the update was not added exactly once.
    """
    if compile_config is None or not _fits_a_graph(body, named):
        return _replay(body, named, rows, update)
    return _compiled_replay(compile_config)(body, _steady(named), rows, update)


def _replay(body: Any, named: dict[str, Any], rows: Tensor, update: Tensor) -> BodyOutput:
    injection = InjectPass(rows, update)
    output = body.cc_stock(**named, cc_pass=injection)
    injection.check()
    return output


def _fits_a_graph(body: Any, named: dict[str, Any]) -> bool:
    """One token, a static cache, and no result that the next replay of a CUDA graph would overwrite."""
    tokens = named["input_ids"] if named.get("input_ids") is not None else named["inputs_embeds"]
    keeps = any(asks_for(name, body, named) for name in ("output_hidden_states", "output_attentions"))
    return (
        tokens.shape[1] == 1
        and isinstance(cache_of(named), StaticCache)
        and not keeps
        and not torch.compiler.is_compiling()
    )


def _compiled_replay(config: CompileConfig) -> Callable[..., BodyOutput]:
    for known, call in _compiled:
        if known == config:
            return call
    call = torch.compile(_replay, **config.to_dict())
    _compiled.append((config, call))
    return call


def _steady(named: dict[str, Any]) -> dict[str, Any]:
    """The arguments with tensors laid out alike for prompts of any length: slices keep the strides of the prompt."""

    def dense(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.clone(memory_format=torch.contiguous_format)
        return {name: dense(part) for name, part in value.items()} if isinstance(value, dict) else value

    return {name: dense(value) for name, value in named.items()}

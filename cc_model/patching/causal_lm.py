"""The behaviour that `patch_model` mixes into the classes of a model, from the outside in.

Each patched module gets a subclass of its own stock class; nothing of transformers is copied. The causal language
model decides what a forward does (a call), the decoder body runs it, each decoder layer hands the running pass to its
feed-forward block, and the feed-forward block captures or injects around its own `__call__`, so that a `forward` which
another library puts on the instance does not switch the connection off.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.modules.module as module_hooks
from torch import Tensor, nn
from transformers.generation import CompileConfig, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from cc_kernels import gate_up_swiglu, swiglu
from cc_model.compat import cache_of, with_cache
from cc_model.fast_paths.few_tokens import streams_weights
from cc_model.forward.calls import PlainCall
from cc_model.forward.passes import LayerSlot, active
from cc_model.forward.plan import CONNECTION_ARGUMENTS, GENERATION_STEP, plan
from cc_model.generation import connected_generate, refuse_unsupported_mode
from cc_model.generation_state import current_generation
from cc_model.saving import save
from cc_model.specs import layers_of, spec_of


@dataclass
class ConnectedCausalLMOutput(CausalLMOutputWithPast):
    """The stock output plus `decision_weights` `(B, L)`, all zero for a row without a connection."""

    decision_weights: Tensor | None = None


_OUTPUT_FIELDS = {field.name for field in dataclasses.fields(ConnectedCausalLMOutput)}


_OUTPUT_HOOKS = ("_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_OUTPUT_HOOKS = tuple(f"_global{name}" for name in _OUTPUT_HOOKS)


class PatchedFeedForward:
    """SwiGLU through `cc_kernels`, and the running pass applied to the result."""

    cc_slot: LayerSlot
    cc_fused: tuple[str, str, str] | None  # names of the gate, up and down projections; None runs the stock forward

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The module's output, captured from or injected into when a pass is running."""
        block = super().__call__  # type: ignore[misc]
        layer_pass = getattr(active, "layer_pass", None)
        if layer_pass is None:
            return block(*args, **kwargs)
        slot = self.cc_slot
        # Not in compiled layers: a graph of its own for the last of them, in each mode, exceeds the recompile limit.
        if not torch.compiler.is_compiling() and layer_pass.narrow and slot is layer_pass.slots[-1]:
            return layer_pass.narrowed(slot, block, args[0] if args else kwargs["x"])
        output = block(*args, **kwargs)
        return layer_pass.feed_forward(slot, output, owned=slot.injects and self._cc_owns_output())

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """`down(silu(gate(x)) * up(x))`. Projections are called as modules: adapters and hooks stay in effect.

        Only for a few tokens at inference, where nothing is attached to them, one kernel reads their weights itself.
        """
        if self.cc_fused is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        x = args[0] if args else kwargs["x"]
        modules = self._modules  # type: ignore[attr-defined]
        gate, up, down = [modules[name] if name in modules else getattr(self, name) for name in self.cc_fused]
        if streams_weights(self, gate, up, x):
            inner = gate_up_swiglu(x.reshape(-1, x.shape[-1]), gate.weight, up.weight)
            return down(inner.view(*x.shape[:-1], inner.shape[-1]))
        return down(swiglu(gate(x), up(x)))

    def _cc_owns_output(self) -> bool:
        """Whether nobody else can hold the output: a forward hook or an adapter may have kept it."""
        down = getattr(self, self.cc_fused[2]) if self.cc_fused is not None else None
        if type(down) is not nn.Linear or "forward" in down.__dict__ or "forward" in self.__dict__:
            return False
        # A hook on the backward makes the output a view, which autograd does not let anyone write to.
        if any(getattr(module, name) for module in (self, down) for name in _OUTPUT_HOOKS):
            return False
        return not any(getattr(module_hooks, name) for name in _GLOBAL_OUTPUT_HOOKS)


class PatchedLayer:
    """Makes the pass in the layer's keyword arguments the running one while the layer runs."""

    def forward(self, *args: Any, cc_pass: Any = None, **kwargs: Any) -> Any:
        """The stock layer. Gradient checkpointing keeps `cc_pass` with the other arguments for the recompute."""
        if cc_pass is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        previous = getattr(active, "layer_pass", None)
        active.layer_pass = cc_pass
        try:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            active.layer_pass = previous


class PatchedBody:
    """Runs the call that the causal language model made."""

    cc_arguments: tuple[str, ...]
    cc_connection: Any

    def forward(self, *args: Any, cc_call: Any = None, **kwargs: Any) -> Any:
        """The passes of `cc_call`; a direct call of the body is the stock forward, or an error where that misleads."""
        named = dict(zip(self.cc_arguments, args), **kwargs)
        if cc_call is None:
            self._cc_refuse_silence(named)
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        return cc_call.run(self, super().forward, with_cache(named, cache_of(named)))  # type: ignore[misc]

    def _cc_refuse_silence(self, named: dict[str, Any]) -> None:
        bypassed = [name for name in CONNECTION_ARGUMENTS if named.get(name) is not None]
        if bypassed:
            raise RuntimeError(
                f"{bypassed[0]} reached the decoder body: the patched forward of the model was bypassed by a "
                "`forward` set on the instance; call the model itself, model(...)"
            )
        cache = cache_of(named)
        connection = self.cc_connection
        if connection.simulates and not connection.training and (cache is None or int(cache.get_seq_length()) == 0):
            raise RuntimeError(
                "the decoder body was called directly while a Transform Matrix is set, so the connection would be "
                "left out; call model(...), or wrap the call in cc_model.connection_disabled(model)"
            )


class PatchedCausalLM:
    """The patched model: the connected forward, `generate` and `save_pretrained`."""

    cc_arguments: tuple[str, ...]
    cc: Any
    config: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`forward` with the module's hooks; plans the call here, so that an instance-level forward cannot lose it."""
        return self._cc_run(super().__call__, args, kwargs)  # type: ignore[misc]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The stock forward with the cross-lingual connection; see `patch_model` for the added arguments."""
        return self._cc_run(super().forward, args, kwargs)  # type: ignore[misc]

    def _cc_run(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if "cc_call" in kwargs:  # planned by the caller
            return inner(*args, **kwargs)
        if len(args) > len(self.cc_arguments):
            raise TypeError(f"forward: expected at most {len(self.cc_arguments)} positional arguments, got {len(args)}")
        named = dict(zip(self.cc_arguments, args), **kwargs)
        call = plan(self, named)
        output = inner(**named, cc_call=call)
        if isinstance(call, PlainCall):
            return output
        if call.decision_weights is None:
            raise RuntimeError(
                f"connection: the forward that {type(self).__name__} ran did not hand its keyword arguments on to the "
                f"decoder body, so nothing was connected: {getattr(self.forward, '__qualname__', self.forward)}"
            )
        if isinstance(output, tuple):
            return (*output, call.decision_weights)
        if set(output.keys()) <= _OUTPUT_FIELDS:
            return ConnectedCausalLMOutput(**output, decision_weights=call.decision_weights)
        output["decision_weights"] = call.decision_weights  # an output class of another library keeps its own fields
        return output

    @functools.wraps(GenerationMixin.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The stock inputs, marked as a step of the running `generate`."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        generation = current_generation(self)
        if generation is not None:
            inputs[GENERATION_STEP] = generation
        return inputs

    def get_compiled_call(self, compile_config: CompileConfig | None) -> Any:
        """The stock compiled call; the running `generate` keeps how, so that the connected token is compiled alike."""
        generation = current_generation(self)
        if generation is not None:
            generation.compile_config = compile_config or self._default_compile_config()  # type: ignore[attr-defined]
        return super().get_compiled_call(compile_config)  # type: ignore[misc]

    def cc_slots(self) -> list[LayerSlot]:
        """The slot of every layer's feed-forward block, in order.

        Raises:
            RuntimeError: a block was replaced after `patch_model`; the message names it.
        """
        slots = []
        name = spec_of(self).mlp
        for index, layer in enumerate(layers_of(self)):
            feed_forward = getattr(layer, name)
            slot = getattr(feed_forward, "cc_slot", None)
            if slot is None:
                raise RuntimeError(
                    f"connection: the feed-forward block of layer {index}, {type(feed_forward).__name__}, was replaced "
                    "after patch_model; call unpatch_model and patch_model again"
                )
            slots.append(slot)
        return slots

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The stock `generate` with the cross-lingual connection, made exactly once for each prompt.

        With `cc.transform_matrix` set, in evaluation mode, it is simulated from the prompt's own activations: in one
        prefill, or in two where the cache cannot be rolled back, which is said once. Given `pivot_input_ids`, in either
        mode, the English prompt is read instead. Otherwise this is the plain model's `generate`, which is said once,
        too, but not in `connection_disabled`.

        These connect: greedy search, sampling, beam search and beam sampling, assisted generation, several returned
        sequences, left padding, caches (static ones, those with earlier turns), chunked prefill and `use_cache=False`.

        Args:
            args: of the stock method.
            kwargs: of the stock method, and ours: `connection_index` `(B,)` within the columns of the given prompt
                (default: the last one; −1: no connection for the row), `pivot_input_ids` `(B, S)`, `pivot_index`
                `(B,)` (default: the last attended), all int64 or int32, and `pivot_attention_mask` `(B, S)`, 0 at
                padding.

        Returns:
            What the stock method returns.

        Raises:
            ValueError: `pivot_attention_mask` or `pivot_index` without `pivot_input_ids`. Where it connects also: a
                right-padded prompt; one of our arguments has the wrong type or shape; a `connection_index` out of
                range, or of a token in the cache; contrastive search, DoLa, group or constrained beam search,
                `custom_generate`, `negative_prompt_ids`, `guidance_scale` other than 1, `assistant_early_exit`,
                `token_healing`, `cache_implementation="paged"`.

        Example:
            >>> import torch
            >>> from cc_model import patch_model
            >>> from cc_model.testing import random_matrix, tiny_model
            >>> model = patch_model(tiny_model("llama"))
            >>> model.cc.transform_matrix = random_matrix(model)
            >>> model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, do_sample=False).shape
            torch.Size([1, 5])
        """
        return connected_generate(self, super().generate, args, kwargs)  # type: ignore[misc]

    def _validate_generation_mode(self, generation_mode: Any, generation_config: Any, mode_kwargs: Any) -> None:
        refuse_unsupported_mode(self, generation_mode, generation_config)
        super()._validate_generation_mode(generation_mode, generation_config, mode_kwargs)  # type: ignore[misc]

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Continuous batching packs prompts, which the connection does not support."""
        if self.cc.simulates:
            raise NotImplementedError(
                "generate_batch: continuous batching is not supported with the connection; use generate(), or wrap "
                "the call in cc_model.connection_disabled(model)"
            )
        return super().generate_batch(*args, **kwargs)  # type: ignore[misc]

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, plain: bool = False, **kwargs: Any):
        """Save weights, Decision Maker, matrix and options, safetensors only; `cc_model.from_pretrained` reads them.

        Stock `AutoModelForCausalLM` loads the directory as the plain model. An interrupted save leaves what was there.

        Args:
            save_directory: made when missing.
            args: `is_main_process` and `state_dict` of the stock method.
            plain: leave out everything of ours.
            kwargs: of the stock method; with `push_to_hub=True` files are written in place, interrupted or not.

        Raises:
            ValueError: `save_directory` is a file.
            TypeError: more than three arguments by position.

        Example:
            >>> import os, tempfile
            >>> from cc_model import patch_model
            >>> from cc_model.testing import tiny_model
            >>> with tempfile.TemporaryDirectory() as directory:
            ...     patch_model(tiny_model("llama")).save_pretrained(directory)
            ...     sorted(os.listdir(directory))
            ['cc_config.json', 'config.json', 'generation_config.json', 'model.safetensors']
        """
        return save(self, super().save_pretrained, save_directory, args, kwargs, plain)  # type: ignore[misc]

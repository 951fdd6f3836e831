"""The behaviour mixed into the causal language model: it decides what a forward does, generates and saves.

`patch_model` gives each module a subclass of its own stock class; nothing of transformers is copied. The model plans a
call, its decoder body (`cc_model.patching.decoder`) runs it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from transformers.generation import CompileConfig, GenerationMixin

from cc_model.compat import OLD_CACHE, RENAMED, cache_of, with_cache
from cc_model.connection.adapters import carried_by, put_carried, refuse_other_options
from cc_model.forward.calls import ConnectedCall
from cc_model.forward.passes import LayerSlot
from cc_model.forward.plan import GENERATION_STEP, plan
from cc_model.generation import connected_generate, current_generation, refuse_unsupported_mode
from cc_model.patching.decoder import beside
from cc_model.patching.outputs import connected_output
from cc_model.saving import save
from cc_model.specs import SPECS, addend_of, layers_of

POSTPONED = "_cc_postponed_adapter"


def _stock_when_unpatched(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that others keep bound (PEFT does): after `unpatch_model` it is the stock one of the same name."""

    @functools.wraps(method)
    def bound(self: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self, PatchedCausalLM):
            return method(self, *args, **kwargs)
        return getattr(type(self), method.__name__)(self, *args, **kwargs)

    return bound


class PatchedCausalLM:
    """The patched model: the connected forward, `generate` and `save_pretrained`."""

    cc_arguments: tuple[str, ...]
    cc_hands_on: bool
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
            return self._cc_hand_on(inner, kwargs.pop("cc_call"), args, kwargs)
        if len(args) > len(self.cc_arguments):
            raise TypeError(f"forward: expected at most {len(self.cc_arguments)} positional arguments, got {len(args)}")
        named = dict(zip(self.cc_arguments, args), **kwargs)
        if RENAMED and OLD_CACHE in named:
            named = with_cache(named, cache_of(named))
        call = plan(self, named)
        output = self._cc_hand_on(inner, call, (), named)
        if not isinstance(call, ConnectedCall):
            return output
        if call.decision_weights is None:
            raise RuntimeError(
                f"connection: the forward that {type(self).__name__} ran did not hand its keyword arguments on to the "
                f"decoder body, so nothing was connected: {getattr(self.forward, '__qualname__', self.forward)}"
            )
        if isinstance(output, tuple):
            return (*output, call.decision_weights)
        return connected_output(output, call.decision_weights)

    def _cc_hand_on(self, inner: Callable[..., Any], call: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """The forward with `call` on its way to the decoder body: among its keyword arguments, or beside them."""
        if self.cc_hands_on:
            return inner(*args, **named, cc_call=call)
        previous, beside.call = beside.call, call
        try:
            return inner(*args, **named, cc_call=call)
        finally:
            beside.call = previous

    @_stock_when_unpatched
    @functools.wraps(GenerationMixin.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The stock inputs, marked as a step of the running `generate`."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        generation = current_generation(self)
        if generation is not None:
            inputs[GENERATION_STEP] = generation
        return inputs

    def _update_model_kwargs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The stock method, which every decoding loop calls after each forward: the prompt must have connected."""
        generation = current_generation(self)
        if generation is not None:
            generation.check_prefill()
        return super()._update_model_kwargs_for_generation(*args, **kwargs)  # type: ignore[misc]

    def get_compiled_call(self, compile_config: CompileConfig | None) -> Any:
        """The stock compiled call; the running `generate` keeps how, so that the connected token is compiled alike."""
        generation = current_generation(self)
        if generation is not None:
            generation.compile_config = compile_config or self._default_compile_config()  # type: ignore[attr-defined]
        return super().get_compiled_call(compile_config)  # type: ignore[misc]

    def cc_slots(self) -> list[LayerSlot]:
        """The slot of what every layer adds to its stream, in order.

        Raises:
            RuntimeError: such a module was replaced after `patch_model`; the message names it.
        """
        slots = []
        spec = SPECS[self.config.model_type]
        for index, layer in enumerate(layers_of(self)):
            addend = addend_of(layer, spec)
            slot = getattr(addend, "cc_slot", None)
            if slot is None:
                what = "module whose output is added" if spec.addend else "feed-forward block"
                raise RuntimeError(
                    f"connection: the {what} of layer {index}, {type(addend).__name__}, was replaced "
                    "after patch_model; call unpatch_model and patch_model again"
                )
            slots.append(slot)
        return slots

    @_stock_when_unpatched
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The stock `generate` with the cross-lingual connection, made exactly once for each prompt.

        With `cc.transform_matrix` set, in evaluation mode, it is simulated from the prompt's own activations: in one
        prefill, or in two for a cache of an unknown class, which is said once. Given `pivot_input_ids`, in either
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
            TypeError: a pivot argument is no tensor or has the wrong dtype.
            ValueError: `pivot_attention_mask` or `pivot_index` without `pivot_input_ids`. Where it connects also: a
                right-padded prompt (without a mask: one that ends in the padding token); an adapter with virtual tokens
                before the prompt; a pivot argument has the wrong shape; a `connection_index` is no tensor of `(B,)`
                integers, is out of range, or of a token in the cache; contrastive search, DoLa, group or constrained
                beam search, `custom_generate`, `negative_prompt_ids`, `guidance_scale` other than 1,
                `assistant_early_exit`, `token_healing`, `cache_implementation="paged"`.
            RuntimeError: the prompt has run and nothing was connected.

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

    def load_adapter(self, peft_model_id: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The stock method of transformers; the matrix and the options that a PEFT adapter carries come with it.

        Args:
            peft_model_id: folder or hub name of the adapter.
            args: of the stock method.
            kwargs: of the stock method.

        Raises:
            ValueError: the adapter was trained with other options than the model is patched with.
        """
        if "cc" not in self._modules:  # type: ignore[attr-defined]
            self.__dict__[POSTPONED] = ((peft_model_id, *args), kwargs)  # cc_model.from_pretrained does it when patched
            return None
        carried = carried_by(peft_model_id, kwargs)
        refuse_other_options(self.cc, carried)
        result = super().load_adapter(peft_model_id, *args, **kwargs)  # type: ignore[misc]
        put_carried(self.cc, carried)
        return result

    @_stock_when_unpatched
    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *args: Any,
        plain: bool = False,
        serve: bool = False,
        remote_code: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Save weights, Decision Maker, matrix and options, safetensors only; `cc_model.from_pretrained` reads them.

        Stock `AutoModelForCausalLM` loads the directory as the plain model. A save that fails or is interrupted leaves
        what was there; a process that is killed while files are replaced leaves a folder that does not load. Files that
        this save does not write stay, those of another `variant=` too.

        Args:
            save_directory: made when missing.
            args: `is_main_process` and `state_dict` of the stock method.
            plain: leave out everything of ours.
            serve: name the connected architecture (`CCLlamaForCausalLM`) in `config.json`, so that vLLM with our
                plugin serves the folder with the connection, and without it refuses it; transformers does not read it.
            remote_code: add a file of a few lines that `AutoModelForCausalLM` and `pipeline` run when they are told
                `trust_remote_code=True`: they then load the folder with the connection, where `cc_model` is installed.
            kwargs: of the stock method, without `distributed_checkpoint`.

        Raises:
            ValueError: `save_directory` is a file, or keeps weights of another variant with other options;
                `distributed_checkpoint=True`; `serve=True` or `remote_code=True` with `plain=True`, without a matrix,
                or with an adapter.
            IsADirectoryError: a folder has the name of a file to be written.
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
        return save(self, super().save_pretrained, save_directory, args, kwargs, plain, serve, remote_code)  # type: ignore[misc]

"""What this plugin uses of vLLM and vLLM calls private, by name, and how one of its methods is wrapped.

`scheduler`, `front` and `runner` use these names and no other file does. They are checked before anything is changed.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

NAMES = {
    "vllm.v1.core.sched.scheduler:Scheduler": (
        *("_update_after_schedule", "_preempt_request", "add_request", "schedule", "update_from_output"),
        *("finish_requests", "hash_block_size", "requests"),
    ),
    "vllm.v1.request:Request": ("_block_hasher", "block_hashes", "is_prefill_chunk", "num_computed_tokens"),
    "vllm.v1.engine.input_processor:InputProcessor": ("process_inputs", "model_config"),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner": (
        *("_update_states", "_prepare_inputs", "_get_prompt_logprobs_dict", "get_model", "discard_request_mask"),
        *("input_batch", "requests", "num_prompt_logprobs", "query_start_loc"),
    ),
    "vllm.v1.worker.gpu_input_batch:InputBatch": ("req_id_to_index", "num_computed_tokens_cpu", "generators"),
    "vllm.v1.worker.gpu.model_states.default:DefaultModelState": (
        *("add_request", "remove_request", "preprocess_state", "postprocess_state", "custom_sampler"),
    ),
    "vllm.v1.worker.gpu.sample.prompt_logprob:PromptLogprobsWorker": (
        *("compute_prompt_logprobs", "compute_prompt_token_id_logprobs"),
        *("in_progress_prompt_logprobs", "token_id_scores"),
    ),
}
"""Attributes of vLLM's classes that are used here, by module and class."""


def check_names(*places: str) -> None:
    """Raise unless the installed vLLM has what this file uses of the classes in `places`."""
    import vllm

    for place in places:
        module, _, name = place.partition(":")
        try:
            found = getattr(importlib.import_module(module), name)
            source = inspect.getsource(found)
            missing = [name for name in NAMES[place] if not hasattr(found, name) and f"self.{name}" not in source]
        except (ImportError, AttributeError) as error:
            missing = [str(error)]
        if missing:
            raise RuntimeError(
                f"vllm {vllm.__version__}: the cc_model plugin does not know this version: expected {place} with "
                f"{', '.join(NAMES[place])}, missing: {missing[0]}; docs/serving.md lists the versions that it was "
                "tested with"
            )


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Put `around(stock, self, ...)` in the place of a method, once."""
    stock = getattr(owner, name)
    if hasattr(stock, "cc_stock"):
        return

    @functools.wraps(stock)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(stock, self, *args, **kwargs)

    method.cc_stock = stock  # type: ignore[attr-defined]
    setattr(owner, name, method)

"""What this plugin uses of vLLM, by name, and how one of its methods is wrapped.

Most of it vLLM calls private, so a new version may name it otherwise. Each part of the plugin has its names checked
before it changes anything, and the error names the version. A test reads the plugin's files and fails for a name of
vLLM that is not here.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

_CONFIG = "vllm.config"
_V1, _V2 = "vllm.v1.worker", "vllm.v1.worker.gpu"

NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "front": {
        "vllm:ModelRegistry": ("get_supported_archs", "register_model"),
        "vllm.model_executor.models.config:MODELS_CONFIG_MAP": (),
        "vllm.model_executor.models.config:VerifyAndUpdateConfig": (
            *("verify_and_update_config", "verify_and_update_model_config"),
        ),
        f"{_CONFIG}:VllmConfig": (
            *("additional_config", "cache_config", "compilation_config", "kv_transfer_config", "load_config"),
            *("lora_config", "model_config", "parallel_config", "scheduler_config", "speculative_config"),
        ),
        f"{_CONFIG}:CacheConfig": ("kv_sharing_fast_prefill",),
        f"{_CONFIG}:CompilationConfig": ("pass_config",),
        f"{_CONFIG}:LoadConfig": ("load_format",),
        f"{_CONFIG}:ModelConfig": (
            *("architecture", "enable_prompt_embeds", "enable_sleep_mode", "model", "revision", "runner_type"),
        ),
        f"{_CONFIG}:ParallelConfig": (
            *("decode_context_parallel_size", "enable_dbo", "pipeline_parallel_size", "prefill_context_parallel_size"),
            *("tensor_parallel_size", "use_sequence_parallel_moe"),
        ),
        f"{_CONFIG}:SchedulerConfig": ("async_scheduling", "scheduler_cls"),
        "vllm.exceptions:VLLMValidationError": (),
        "vllm.sampling_params:SamplingParams": ("extra_args",),
        "vllm.v1.engine:EngineCoreRequest": ("prompt_embeds", "prompt_token_ids", "resumable", "sampling_params"),
        "vllm.v1.engine.input_processor:InputProcessor": ("process_inputs", "model_config"),
        "vllm.entrypoints.generate.beam_search.offline:BeamSearchOfflineMixin": ("beam_search", "model_config"),
        "vllm.entrypoints.generate.beam_search.online:BeamSearchOnlineMixin": ("beam_search", "engine_client"),
        "vllm.engine.protocol:EngineClient": ("model_config",),
    },
    "scheduler": {
        "vllm.v1.core.sched.async_scheduler:AsyncScheduler": (),
        "vllm.v1.core.sched.scheduler:Scheduler": (
            *("__init__(vllm_config)", "_preempt_request(request)", "_update_after_schedule(scheduler_output)"),
            *("add_request(request)", "finish_requests", "hash_block_size", "requests", "schedule"),
            "update_from_output",
        ),
        "vllm.v1.core.sched.output:SchedulerOutput": ("num_scheduled_tokens",),
        "vllm.v1.engine:EngineCoreOutput": ("finish_reason", "new_token_ids", "request_id"),
        "vllm.v1.engine:EngineCoreOutputs": ("outputs",),
        "vllm.v1.request:Request": (
            *("_block_hasher", "block_hashes", "client_index", "get_finished_reason", "is_prefill_chunk"),
            *("num_computed_tokens", "num_prompt_tokens", "prompt_embeds", "prompt_token_ids", "request_id"),
            *("resumable", "sampling_params", "update_block_hashes"),
        ),
        "vllm.v1.request:RequestStatus": ("FINISHED_ERROR",),
    },
    "model": {
        f"{_CONFIG}:CompilationConfig": ("static_forward_context",),
        f"{_CONFIG}:ModelConfig": ("dtype", "get_hidden_size", "model", "revision"),
        f"{_CONFIG}:SchedulerConfig": ("max_num_seqs",),
        f"{_CONFIG}:VllmConfig": ("use_v2_model_runner",),
        "vllm.forward_context:ForwardContext": ("no_compile_layers",),
        "vllm.forward_context:get_forward_context": (),
        "vllm.model_executor.model_loader.default_loader:": ("load_weights",),
        "vllm.model_executor.models.interfaces_base:VllmModel": ("embed_input_ids",),
        "vllm.utils.torch_utils:direct_register_custom_op": (),
    },
    "first runner": {
        f"{_V1}.gpu_model_runner:GPUModelRunner": (
            *("_get_prompt_logprobs_dict", "_prepare_inputs", "_update_states", "discard_request_mask", "get_model"),
            *("input_batch", "num_prompt_logprobs", "query_start_loc", "requests"),
        ),
        f"{_V1}.gpu_input_batch:InputBatch": (
            *("generators", "num_computed_tokens_cpu", "num_reqs", "req_id_to_index", "req_ids"),
        ),
        f"{_V1}.gpu_input_batch:CachedRequestState": (
            *("in_progress_prompt_logprobs_cpu", "prompt_token_ids", "sampling_params"),
        ),
        "vllm.v1.core.sched.output:SchedulerOutput": (
            *("finished_req_ids", "num_scheduled_tokens", "preempted_req_ids", "scheduled_cached_reqs"),
            "scheduled_new_reqs",
        ),
        "vllm.v1.core.sched.output:CachedRequestData": ("resumed_req_ids",),
        "vllm.v1.core.sched.output:NewRequestData": ("prompt_token_ids", "req_id", "sampling_params"),
        "vllm.v1.utils:CpuGpuBuffer": ("copy_to_gpu", "np"),
    },
    "second runner": {
        f"{_V2}.model_states:": ("get_model_state_cls",),
        f"{_V2}.model_states.default:DefaultModelState": (
            *("add_request(req_index)", "add_request(new_req_data)", "custom_sampler(sampler)", "model"),
            *("postprocess_state", "preprocess_state(input_batch)", "remove_request(req_id)"),
        ),
        f"{_V2}.input_batch:InputBatch": (
            *("num_computed_tokens_np", "num_scheduled_tokens", "query_start_loc_np", "req_ids"),
        ),
        f"{_V2}.sample.output:SamplerOutput": ("num_rejected", "num_sampled"),
        f"{_V2}.sample.prompt_logprob:PromptLogprobsWorker": (
            *("compute_prompt_logprobs(input_batch)", "in_progress_prompt_logprobs"),
        ),
        f"{_V2}.sample.sampler:Sampler": ("__call__(logits)", "__call__(input_batch)"),
        "vllm.v1.core.sched.output:NewRequestData": ("prompt_token_ids", "req_id", "sampling_params"),
        "vllm.v1.outputs:LogprobsTensors": ("cat", "logprob_token_ids", "logprobs", "selected_token_ranks"),
    },
    "scores of given tokens": {
        f"{_V2}.sample.prompt_logprob:PromptLogprobsWorker": (
            *("compute_prompt_token_id_logprobs(input_batch)", "token_id_scores"),
        ),
    },
}
"""By part of the plugin and `module:class`: attributes, and methods with a parameter in use; of `module:` words."""

SOME_VERSIONS = {
    f"{_CONFIG}.compilation:PassConfig": ("enable_sp",),  # to 0.31
    "vllm.sampling_params:SamplingParams": ("prompt_logprob_token_ids",),  # from 0.31
}
"""What the plugin asks for before it uses it."""


def check_names(part: str) -> None:
    """Raise unless the installed vLLM has what a part of the plugin uses.

    Raises:
        RuntimeError: something is missing; the message names it and the version.
    """
    import vllm

    for place, names in NAMES[part].items():
        module, _, name = place.partition(":")
        try:
            found = importlib.import_module(module)
            found = getattr(found, name) if name else found
            missing = [name for name in names if not _has(found, name)]
        except (ImportError, AttributeError) as error:
            missing = [str(error)]
        if missing:
            raise RuntimeError(
                f"vllm {vllm.__version__}: the cc_model plugin does not know this version: of {place} it uses "
                f"{', '.join(names) or 'the name'}, missing: {missing[0]}; docs/serving.md lists the versions that it "
                "was tested with"
            )


def _has(found: Any, name: str) -> bool:
    """Whether a class or what it makes has an attribute, or a method with a parameter; of a module, a word in it."""
    method, _, parameter = name.removesuffix(")").partition("(")
    if parameter:
        return hasattr(found, method) and parameter in inspect.signature(getattr(found, method)).parameters
    if hasattr(found, name):
        return True
    if not inspect.isclass(found):
        return name in _source(found)
    stock = [kind for kind in found.__mro__ if kind.__module__.startswith("vllm.")]
    return any(name in inspect.get_annotations(kind) or f"self.{name}" in _source(kind) for kind in stock)


_source = functools.cache(inspect.getsource)


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

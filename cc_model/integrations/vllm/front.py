"""What is refused: at the start the settings, per request what cannot be exact, where the sender gets the message."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from cc_model.integrations.vllm.families import FAMILIES, PREFIX, stock_architecture
from cc_model.integrations.vllm.names import check_names, wrap
from cc_model.integrations.vllm.requests import connection_index

SCHEDULER = "cc_model.integrations.vllm.scheduler.make_scheduler"
WITHOUT_LOADING = ("dummy", "sharded_state", "runai_streamer_sharded")  # formats past `load_weights`


def request_index(request: Any) -> int | None:
    """The connection index of an engine's request, None for a plain one; ValueError where it cannot be exact."""
    params = request.sampling_params
    if params is None:
        raise ValueError("request: expected a generation, got a pooling request; a connected model only generates")
    index = connection_index(params.extra_args, len(request.prompt_token_ids or ()))
    if index is not None and request.prompt_embeds is not None:
        raise ValueError("prompt_embeds: expected token ids for a connected request; pass extra_args cc: false")
    if index is not None and request.resumable:
        raise ValueError("streaming input: expected the whole prompt at once; pass extra_args cc: false")
    return index


def refuse_settings(config: Any) -> None:
    """ValueError for settings of an engine under which answers would not be those of `generate`."""
    check_names("front")
    parallel, own = config.parallel_config, config.scheduler_config
    stock = stock_architecture(config.model_config.architecture)
    passes = config.compilation_config.pass_config
    scheduler, load_format = own.scheduler_cls, config.load_config.load_format
    if stock:
        _refuse_another_family(config.model_config, stock)
    refused = {
        "pipeline_parallel_size above 1": parallel.pipeline_parallel_size > 1,
        "sequence parallelism (pass_config.enable_sp)": bool(getattr(passes, "enable_sp", False)),
        "sequence parallelism of experts": parallel.use_sequence_parallel_moe,
        "prefill_context_parallel_size above 1": parallel.prefill_context_parallel_size > 1,
        "decode_context_parallel_size above 1": parallel.decode_context_parallel_size > 1,
        "enable_dbo": parallel.enable_dbo,
        "speculative decoding": config.speculative_config is not None,
        "a KV connector (kv_transfer_config)": config.kv_transfer_config is not None,
        "prompt embeddings (enable_prompt_embeds)": config.model_config.enable_prompt_embeds,
        "kv_sharing_fast_prefill": config.cache_config.kv_sharing_fast_prefill,
        "LoRA adapters (merge them first)": config.lora_config is not None,
        f"load_format={load_format}": load_format in WITHOUT_LOADING,
        "enable_sleep_mode": config.model_config.enable_sleep_mode,
        "a pooling runner": config.model_config.runner_type != "generate",
        f"scheduler_cls={scheduler!r}": scheduler is not None and scheduler != SCHEDULER,
        f"tensor_parallel_size above 1 for {stock}": bool(
            stock and not FAMILIES[stock].tensor_parallel and parallel.tensor_parallel_size > 1
        ),
    }
    found = [name for name, present in refused.items() if present]
    if found:
        raise ValueError(f"a model with the cross-lingual connection cannot be served with {', '.join(found)}")


def _refuse_another_family(model_config: Any, stock: str) -> None:
    """ValueError where `config.json` names another family, whose weights vLLM may load, and answer wrongly with."""
    options = {"revision": model_config.revision, "_raise_exceptions_for_missing_entries": False}
    path = cached_file(model_config.model, "config.json", **options)
    names = json.loads(Path(path).read_text(encoding="utf-8")).get("architectures") if path else None
    if names and names[0].removeprefix(PREFIX) != stock:
        raise ValueError(
            f"architectures: expected {PREFIX}{names[0].removeprefix(PREFIX)}, because config.json in "
            f"{model_config.model} names {names[0]}, got {PREFIX}{stock}"
        )


def check_requests_in_front() -> None:
    """Check requests where their sender gets the message; models without the connection are left alone."""
    check_names("front")
    from vllm.entrypoints.generate.beam_search.offline import BeamSearchOfflineMixin
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.input_processor import InputProcessor

    def process_inputs(stock: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        request = stock(self, *args, **kwargs)
        if stock_architecture(self.model_config.architecture):
            try:
                request_index(request)
            except ValueError as error:
                raise VLLMValidationError(str(error)) from error  # over HTTP 400, where a ValueError is 500
        return request

    wrap(InputProcessor, "process_inputs", process_inputs)
    for mixin in (BeamSearchOfflineMixin, BeamSearchOnlineMixin):
        wrap(mixin, "beam_search", _no_beam_search)


def _no_beam_search(stock: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    owner = self if hasattr(self, "model_config") else self.engine_client
    if stock_architecture(owner.model_config.architecture):
        from vllm.exceptions import VLLMValidationError

        raise VLLMValidationError(
            "beam search: vLLM sends prompt and beam as a new prompt, which would connect at its last token; send "
            "requests with extra_args cc_index, or use generate of the patched model"
        )
    return stock(self, *args, **kwargs)

"""vLLM's model runners with the rows: what they plan before a forward, and what they drop of a captured request.

The first runner (V1) is wrapped at three methods. The second one (V2) asks the model for a state class, which is ours;
its sampler and its prompt logprobs are told which requests were captured.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cc_model.integrations.vllm.names import check_names, wrap
from cc_model.integrations.vllm.requests import connection_index
from cc_model.integrations.vllm.rows import LayerRows, Rows


def register_layer(vllm_config: Any, name: str, layer: LayerRows) -> None:
    """Let the op find a layer's buffers by name, as vLLM's attention finds its cache."""
    vllm_config.compilation_config.static_forward_context[name] = layer


def register_op() -> None:
    """Register `torch.ops.vllm.cc_rows(x, layer_name)`, which changes x `(N, d)` in place; once per process."""
    from vllm.forward_context import get_forward_context
    from vllm.utils.torch_utils import direct_register_custom_op

    def cc_rows(x: Tensor, layer_name: str) -> None:
        get_forward_context().no_compile_layers[layer_name].apply_(x)

    def nothing(x: Tensor, layer_name: str) -> None:
        return None

    for op in (cc_rows, nothing):  # vLLM reads the types, which are strings in this file
        op.__annotations__ = {"x": Tensor, "layer_name": str, "return": None}
    if not hasattr(torch.ops.vllm, "cc_rows"):
        direct_register_custom_op("cc_rows", cc_rows, mutates_args=["x"], fake_impl=nothing)


def wrap_first_runner() -> None:
    """Wrap vLLM's first model runner in this process; models without rows run as ever."""
    check_names("first runner")
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    wrap(GPUModelRunner, "_update_states", _update_states)
    wrap(GPUModelRunner, "_prepare_inputs", _prepare_inputs)
    wrap(GPUModelRunner, "_get_prompt_logprobs_dict", _get_prompt_logprobs_dict)


def _rows_of(runner: Any) -> Rows | None:
    return getattr(runner.get_model(), "cc_rows", None)


def _begin(rows: Rows, name: str, params: Any, prompt: list[int] | None) -> None:
    index = None if params is None or not prompt else connection_index(params.extra_args, len(prompt))
    if index is not None and prompt is not None:
        rows.begin(name, index, prompt[index])


def _update_states(stock: Callable[..., Any], runner: Any, output: Any) -> Any:
    """Follow the requests that a step brings or resumes, and no longer those that it ends."""
    rows = _rows_of(runner)
    if rows is not None:
        for name in (*output.finished_req_ids, *(output.preempted_req_ids or ())):
            rows.forget(name)
        for new in output.scheduled_new_reqs:
            _begin(rows, new.req_id, new.sampling_params, new.prompt_token_ids)
        for name in output.scheduled_cached_reqs.resumed_req_ids:
            kept = runner.requests[name]
            _begin(rows, name, kept.sampling_params, kept.prompt_token_ids)
    return stock(runner, output)


def _prepare_inputs(stock: Callable[..., Any], runner: Any, output: Any, *args: Any, **kwargs: Any) -> Any:
    """Plan the rows, and mark captured requests as chunks of a prompt, whose samples vLLM drops."""
    prepared = stock(runner, output, *args, **kwargs)
    rows = _rows_of(runner)
    if rows is None:
        return prepared
    batch = runner.input_batch
    scheduled = [output.num_scheduled_tokens[name] for name in batch.req_ids]
    starts = runner.query_start_loc.np
    again = rows.plan(batch.req_id_to_index, starts, batch.num_computed_tokens_cpu, scheduled)
    runner.cc_held = {}
    for name in again:
        place = batch.req_id_to_index[name]
        runner.discard_request_mask.np[place] = True
        generator = batch.generators.pop(place, None)
        if generator is not None:  # a dropped sample takes nothing from the request's random numbers
            runner.cc_held[place] = generator
    if again:
        runner.discard_request_mask.copy_to_gpu(batch.num_reqs)
    return prepared


def _get_prompt_logprobs_dict(stock: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    """Hold the prompt's logprobs of captured requests for their next step, and end the step's plan."""
    rows = _rows_of(runner)
    if rows is None:
        return stock(runner, *args, **kwargs)
    asked = {name: runner.num_prompt_logprobs.get(name) for name in rows.again}
    result = stock(runner, *args, **kwargs)
    for name, count in asked.items():
        tensors = result.pop(name, None)
        if tensors is not None:
            runner.num_prompt_logprobs[name] = count
            runner.requests[name].in_progress_prompt_logprobs_cpu = tensors
    runner.input_batch.generators.update(getattr(runner, "cc_held", {}))
    runner.cc_held = {}
    rows.finish()
    return result


@functools.cache
def model_state_class() -> Any:
    """The state of a connected model in vLLM's second model runner."""
    check_names("second runner")
    from vllm.sampling_params import SamplingParams
    from vllm.v1.worker.gpu.model_states.default import DefaultModelState
    from vllm.v1.worker.gpu.sample.prompt_logprob import PromptLogprobsWorker

    wrap(PromptLogprobsWorker, "compute_prompt_logprobs", _compute_prompt_logprobs)
    if hasattr(SamplingParams, "prompt_logprob_token_ids"):  # a request of this version can ask for them
        check_names("scores of given tokens")
        wrap(PromptLogprobsWorker, "compute_prompt_token_id_logprobs", _compute_prompt_token_id_logprobs)

    class ConnectedState(DefaultModelState):
        """vLLM's state of a decoder, which plans the rows of each step."""

        def add_request(self, req_index: int, new_req_data: Any) -> None:
            super().add_request(req_index, new_req_data)
            _begin(self.model.cc_rows, new_req_data.req_id, new_req_data.sampling_params, new_req_data.prompt_token_ids)

        def remove_request(self, req_id: str) -> None:
            super().remove_request(req_id)
            self.model.cc_rows.forget(req_id)

        def preprocess_state(self, input_batch: Any, *args: Any, **kwargs: Any) -> None:
            super().preprocess_state(input_batch, *args, **kwargs)
            input_batch.cc_again = self.model.cc_rows.plan(
                {name: place for place, name in enumerate(input_batch.req_ids)},
                input_batch.query_start_loc_np,
                input_batch.num_computed_tokens_np,
                input_batch.num_scheduled_tokens,
            )

        def custom_sampler(self, sampler: Any) -> Any:
            sampler.__class__ = _sampler_class(type(sampler))  # type: ignore[arg-type]
            sampler.cc_rows = self.model.cc_rows
            return super().custom_sampler(sampler)

        def postprocess_state(self, *args: Any, **kwargs: Any) -> None:
            super().postprocess_state(*args, **kwargs)
            self.model.cc_rows.finish()

    return ConnectedState


@functools.cache
def _sampler_class(stock: Any) -> Any:
    class Sampler(stock):
        """vLLM's sampler, which reports captured requests as tokens that were rejected."""

        def __call__(self, logits: Tensor, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
            output = super().__call__(logits, input_batch, *args, **kwargs)
            again = self.cc_rows.again
            found = [(place, again[name]) for place, name in enumerate(input_batch.req_ids) if name in again]
            if found:
                places, counts = self.cc_rows.to_device(found)
                output.num_sampled.index_fill_(0, places, 0)
                output.num_rejected.index_copy_(0, places, counts.to(output.num_rejected.dtype))
            return output

    Sampler.__name__ = Sampler.__qualname__ = stock.__name__
    return Sampler


def _batch_of(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return inspect.signature(stock).bind(*args, **kwargs).arguments["input_batch"]


def _compute_prompt_logprobs(stock: Callable[..., Any], worker: Any, *args: Any, **kwargs: Any) -> Any:
    """Hold the logprobs of captured requests; those of the tokens that run again come with the next step."""
    result = stock(worker, *args, **kwargs)
    batch = _batch_of(stock, worker, *args, **kwargs)
    for name, again in getattr(batch, "cc_again", {}).items():
        if name not in worker.in_progress_prompt_logprobs:
            continue
        place = batch.req_ids.index(name)
        index = int(batch.num_computed_tokens_np[place]) + int(batch.num_scheduled_tokens[place]) - again
        done = result.pop(name, None)
        parts = worker.in_progress_prompt_logprobs[name] if done is None else [done]
        whole = type(parts[0]).cat(parts) if parts else None
        kept = [] if whole is None or index == 0 else [_first(whole, index)]
        worker.in_progress_prompt_logprobs[name] = kept
    return result


def _first(tensors: Any, count: int) -> Any:
    """The first `count` rows of `LogprobsTensors`."""
    names = ("logprob_token_ids", "logprobs", "selected_token_ranks")
    return tensors._replace(**{name: getattr(tensors, name)[:count] for name in names})


def _compute_prompt_token_id_logprobs(stock: Callable[..., Any], worker: Any, *args: Any, **kwargs: Any) -> Any:
    """The same for the scores of given tokens, which are written to their places again."""
    again = getattr(_batch_of(stock, worker, *args, **kwargs), "cc_again", {})
    held = {name: worker.token_id_scores[name] for name in again if name in worker.token_id_scores}
    result = stock(worker, *args, **kwargs)
    for name in held:
        result.pop(name, None)
    worker.token_id_scores.update(held)
    return result

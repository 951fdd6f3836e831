"""vLLM's scheduler with the roll-back: each request that connects is set back to its connection token, once.

The connection token of a request must run twice. vLLM can run a token again: chunked prefill and rejected draft tokens
both set `num_computed_tokens` back. So the scheduler sets it back to the connection token when that token has run, and
the model runner, which needs no message, lets the first run capture and the second one add. Nothing is sampled from
the first.
"""

from __future__ import annotations

import functools
import itertools
import logging
import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from cc_model.integrations.vllm.front import refuse_settings, request_index
from cc_model.integrations.vllm.names import check_names
from cc_model.integrations.vllm.requests import Counts, salted

logger = logging.getLogger("vllm.cc_model")  # below vLLM's own, whose level and handlers it takes


def make_scheduler(*args: Any, **kwargs: Any) -> Any:
    """The scheduler of an engine with a connected model: vLLM's own, for steps in turn or ahead, and the roll-back."""
    check_names("scheduler")
    config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
    refuse_settings(config)
    return _scheduler_class(bool(config.scheduler_config.async_scheduling))(*args, **kwargs)


class RollsBack:
    """What is put before vLLM's `Scheduler`: it sets each request back to its connection token once that has run."""

    requests: dict[str, Any]
    hash_block_size: int
    finish_requests: Callable[..., Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cc_counts = Counts()
        self._cc_salts = (f"{uuid.uuid4()}:{number}" for number in itertools.count())
        self._cc_refused: list[Any] = []

    def add_request(self, request: Any) -> None:
        """Note where the request connects, and salt its hashes; one that cannot be exact will end with an error."""
        try:
            index = request_index(request)
        except ValueError as error:  # raised here it would stop the engine
            logger.error("request %s: %s", request.request_id, error)
            super().add_request(request)  # type: ignore[misc]
            self._cc_refused.append(request)
            return
        if index is None:
            logger.debug("request %s runs without the connection", request.request_id)
        else:
            request.cc = SimpleNamespace(index=index, attempt=0, waits=True, hasher=request._block_hasher)
            self._cc_salt(request)
        super().add_request(request)  # type: ignore[misc]

    def _cc_salt(self, request: Any) -> None:
        if request.cc.hasher is not None:
            first = request.cc.index // self.hash_block_size
            del request.block_hashes[first:]
            request._block_hasher = salted(request.cc.hasher, first, next(self._cc_salts))
            request.update_block_hashes()

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """The stock method, without the refused requests."""
        if self._cc_refused:
            from vllm.v1.request import RequestStatus

            self.finish_requests([r.request_id for r in self._cc_refused], RequestStatus.FINISHED_ERROR)
        return super().schedule(*args, **kwargs)  # type: ignore[misc]

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        super()._update_after_schedule(scheduler_output)  # type: ignore[misc]
        for name in scheduler_output.num_scheduled_tokens:
            request = self.requests[name]
            state = request.__dict__.get("cc")
            if state is None or not state.waits or request.num_computed_tokens <= state.index:
                continue
            again = request.num_computed_tokens - state.index
            request.num_computed_tokens, request.is_prefill_chunk = state.index, True
            state.waits = False
            self.cc_counts.add(again)
            logger.debug(
                "request %s connects at token %d of %d, attempt %d; %d tokens run again",
                *(name, state.index, request.num_prompt_tokens, state.attempt, again),
            )

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        super()._preempt_request(request, *args, **kwargs)  # type: ignore[misc]
        state = request.__dict__.get("cc")
        if state is not None:  # its keys and values are gone, so it connects anew
            state.waits, state.attempt = True, state.attempt + 1
            self._cc_salt(request)

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        """The stock method's outputs, and the end of the refused requests."""
        from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

        outputs = super().update_from_output(*args, **kwargs)  # type: ignore[misc]
        for request in self._cc_refused:
            told = EngineCoreOutput(request.request_id, [], finish_reason=request.get_finished_reason())
            outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(told)
        self._cc_refused = []
        return outputs


@functools.cache
def _scheduler_class(ahead: bool) -> Any:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    connected = type("Connected", (RollsBack, Scheduler), {})
    if not ahead:
        return connected
    return type("ConnectedAhead", (AsyncScheduler, connected), {})  # the roll-back comes before its placeholders

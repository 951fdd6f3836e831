"""What one request asks of the connection, its hash salt, and what is counted and logged of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def connection_index(extra: Mapping[str, Any] | None, prompt_length: int) -> int | None:
    """Where a request connects: `cc_index` of its `extra_args`, else the last prompt token; None for `cc: false`.

    Args:
        extra: the sampling parameters' `extra_args` (`vllm_xargs` of the HTTP server), which may hold `cc`, true or
            false, and `cc_index`, an int in [0, prompt_length).
        prompt_length: number of prompt tokens.

    Raises:
        ValueError: a value has another type or is out of range, `cc_index` comes with `cc: false`, or there is an
            unknown key that begins with `cc`.

    Example:
        >>> connection_index(None, 7), connection_index({"cc_index": 2}, 7), connection_index({"cc": False}, 7)
        (6, 2, None)
    """
    extra = extra or {}
    unknown = [name for name in extra if name.startswith("cc") and name not in ("cc", "cc_index")]
    if unknown:
        raise ValueError(f"extra_args: expected cc or cc_index, got {unknown[0]!r}")
    connects, index = extra.get("cc", True), extra.get("cc_index")
    if connects not in (True, False):  # the HTTP server makes numbers of true and false
        raise ValueError(f"extra_args['cc']: expected true or false, got {connects!r}")
    if index is None:
        return prompt_length - 1 if connects else None
    if not connects:
        raise ValueError(f"extra_args['cc_index']: expected none beside cc: false, got {index!r}")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < prompt_length:
        raise ValueError(f"extra_args['cc_index']: expected an int in [0, {prompt_length}), got {index!r}")
    return index


def salted(hasher: Callable[[Any], Sequence[Any]], first: int, salt: str) -> Callable[[Any], list[Any]]:
    """A hasher of blocks whose hashes from block `first` on no other request has.

    Keys and values from the connection token on are those of one request in one attempt. So is the hash of its block,
    and those after it, which are chained to it. The blocks before are shared with everyone.

    Args:
        hasher: new block hashes of a request, those after its `block_hashes`.
        first: block that holds the connection token.
        salt: name of request and attempt.
    """

    def hashes(request: Any) -> list[Any]:
        known = len(request.block_hashes)
        new = list(hasher(request))
        return [_mix(value, salt) if known + i >= first else value for i, value in enumerate(new)]

    return hashes


def _mix(value: Any, salt: str) -> Any:
    return type(value)(hashlib.sha256(salt.encode() + b"\0" + value).digest()[: len(value)])


class Counts:
    """Requests connected and tokens run again, for Prometheus where vLLM brought its client."""

    def __init__(self) -> None:
        from prometheus_client import Counter

        self.connected, self.again = 0, 0
        self._counters = (_counter(Counter, *_CONNECTED), _counter(Counter, *_AGAIN))

    def add(self, tokens: int) -> None:
        """Count a request that connects, and the tokens of it that run again."""
        self.connected += 1
        self.again += tokens
        self._counters[0].inc()
        self._counters[1].inc(tokens)


_CONNECTED = ("vllm:cc_requests_connected", "Requests that were given the cross-lingual connection, again ones too.")
_AGAIN = ("vllm:cc_tokens_run_again", "Tokens that ran a second time, with the connection.")
_MADE: dict[str, Any] = {}  # a process registers a counter once, however many engines it has


def _counter(kind: Any, name: str, text: str) -> Any:
    if name not in _MADE:
        _MADE[name] = kind(name, text)
    return _MADE[name]

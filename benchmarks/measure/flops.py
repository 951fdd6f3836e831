"""What the FLOP count predicts: matrix products of a decoder, and the ratio of a connected step to a plain one."""

from __future__ import annotations

from typing import Any


def body_flops(config: Any, rows: int, tokens: int) -> int:
    """Floating-point operations of one forward of the decoder body over `(rows, tokens)`.

    Two for each weight of each projection and token, and four for each query, earlier or equal key, and channel of the
    attention heads, which is what a causal attention kernel has to do.

    Example:
        >>> from types import SimpleNamespace
        >>> config = SimpleNamespace(hidden_size=4, intermediate_size=8, num_attention_heads=2, num_key_value_heads=1,
        ...                          head_dim=2, num_hidden_layers=1)
        >>> body_flops(config, rows=1, tokens=1)  # 2 * (16 + 8 + 8 + 16 + 96) + 4 * 4
        304
    """
    width, inner = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    weights = 2 * width * queries + 2 * width * keys + 3 * width * inner
    attention = 4 * queries * tokens * (tokens + 1) // 2
    return config.num_hidden_layers * rows * (2 * weights * tokens + attention)


def head_flops(config: Any, rows: int, tokens: int) -> int:
    """Floating-point operations of the language-model head over `(rows, tokens)`."""
    return 2 * rows * tokens * config.hidden_size * config.vocab_size


def capture_flops(config: Any, rows: int, tokens: int) -> int:
    """A pass that only captures: `body_flops`, with the last layer's feed-forward block for one token of each row."""
    unused = 6 * config.hidden_size * config.intermediate_size * rows * (tokens - 1)
    return body_flops(config, rows, tokens) - unused


def training_ratio(
    config: Any,
    rows: int,
    tokens: int,
    pivot_tokens: int,
    pivot_grad: bool = False,
    pivots: int | None = None,
    labelled: int | None = None,
) -> float:
    """Forward and backward with the connection ÷ without; a backward counts as two forwards.

    Args:
        config: of the model.
        rows: B.
        tokens: T.
        pivot_tokens: S.
        pivot_grad: the pivot pass has a backward, too.
        pivots: rows of the pivot pass; None: one for each row.
        labelled: tokens that the connected step's head runs on; None: all.
    """
    body, head = body_flops(config, rows, tokens), head_flops(config, rows, tokens)
    pivot = (3 if pivot_grad else 1) * capture_flops(config, rows if pivots is None else pivots, pivot_tokens)
    own_head = head if labelled is None else head_flops(config, 1, labelled)
    return (3 * (body + own_head) + pivot) / (3 * (body + head))


def prefill_ratio(config: Any, rows: int, tokens: int, prefills: int = 1) -> float:
    """Time to the first token with the connection ÷ without.

    One prefill captures, and one token runs again; two prefills are two runs of the stock body.
    """
    body = body_flops(config, rows, tokens)
    plain = body + head_flops(config, rows, 1)
    if prefills == 1:
        connected = capture_flops(config, rows, tokens) + body_flops(config, rows, tokens + 1) - body
    else:
        connected = body * prefills
    return (connected + head_flops(config, rows, 1)) / plain

"""Log-likelihood of answers after a prompt: all choices of a prompt share one prefill, which makes the connection.

Where the prompt's cache cannot be repeated for its choices, each runs in one forward with its prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, LinearAttentionLayer

from cc_model.compat import CACHE
from cc_model.connection.adapters import has_virtual_tokens
from cc_model.connection.state import is_connected


class ChoiceScore(NamedTuple):
    """Log-probability of a choice, in nats, and whether greedy decoding would give exactly it."""

    logprob: float
    greedy: bool


@torch.no_grad()
def score_choices(
    model: Any,
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[Sequence[int]]],
    connection_index: Sequence[int] | None = None,
) -> list[list[ChoiceScore]]:
    """Score every choice of every prompt, with one prefill per prompt where its cache can be repeated.

        log p(c | x) = Σ_t log softmax(logits(x, c_1 … c_{t−1}))[c_t]

    A patched model connects in the prefill, at the prompt's last token, with its Transform Matrix; inside
    `connection_disabled(model)` it is the plain model. The first token of each choice is scored by the prefill itself;
    the key/value cache is then repeated for the choices, which run together without another connection, each as if it
    had been generated. The result equals a forward per choice over prompt and choice with
    `connection_index = len(prompt) − 1`. That forward is what runs, for all choices of the batch at once, where some
    choice has several tokens and the cache cannot be repeated: linear attention, state spaces and convolutions keep a
    state, and MiniMax a cache of its own.

    Args:
        model: in evaluation mode; patched, or any causal language model of transformers that takes left padding.
        prompts: B lists of token ids, of any lengths.
        choices: for each prompt its choices, as token ids.
        connection_index: for each prompt the index of the token to connect; None for the last one. Patched models only.

    Returns:
        For each prompt the scores of its choices. Logits are reduced in fp32.

    Raises:
        ValueError: the model is in training mode, a prompt or a choice is empty, or the lengths of the lists differ;
            an adapter puts virtual tokens before the prompts.

    Memory: the logits `(R, C − 1, vocabulary)` and R copies of the cache, for R choices in all of at most C tokens;
    nothing of it when every choice is one token. Of whole sequences it is the logits from the end of the shortest
    prompt on. The caller chooses how many prompts to score at a time.

    Example:
        >>> from cc_model import patch_model
        >>> from cc_model.testing import random_matrix, tiny_model
        >>> model = patch_model(tiny_model("llama"))
        >>> model.cc.transform_matrix = random_matrix(model)
        >>> scores = score_choices(model, [[5, 6, 7], [8]], [[[1], [2, 3]], [[4]]])
        >>> [len(row) for row in scores], scores[0][0].logprob < 0
        ([2, 1], True)
    """
    _check(model, prompts, choices, connection_index)
    if connection_index is None and is_connected(model):
        connection_index = [len(prompt) - 1 for prompt in prompts]
    flat = [choice for row in choices for choice in row]
    owner = [row for row, given in enumerate(choices) for _ in given]
    longer = max(map(len, flat)) > 1
    if longer and not _repeats_caches(model):
        total, greedy = _in_whole_sequences(model, [prompts[row] for row in owner], flat, owner, connection_index)
    else:
        total, greedy = _after_one_prefill(model, prompts, flat, owner, connection_index, longer)
    scores = iter(map(ChoiceScore, total.tolist(), greedy.tolist()))
    return [[next(scores) for _ in row] for row in choices]


def _repeats_caches(model: Any) -> bool:
    """Whether a prompt's cache can be repeated for its choices; layers with a state cannot select rows."""
    layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    return model._supports_default_dynamic_cache() and not any(isinstance(x, LinearAttentionLayer) for x in layers)


def _after_one_prefill(
    model: Any,
    prompts: Sequence[Sequence[int]],
    choices: list[Sequence[int]],
    owner: list[int],
    connection_index: Sequence[int] | None,
    longer: bool,
) -> tuple[Tensor, Tensor]:
    """Scores `(R,)` of `choices`, of which the r-th follows the prompt `owner[r]`; `longer`: one has several tokens."""
    device = model.device
    inputs, lengths = _left_padded(prompts, connection_index, device)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True)) if longer else None
    if longer:
        inputs[CACHE] = cache
    logits = model(**inputs, use_cache=longer, logits_to_keep=1).logits[:, -1]
    rows = torch.tensor(owner, device=device)
    targets = torch.tensor([choice[0] for choice in choices], device=device)
    total, greedy = _scored(logits[rows][:, None], targets[:, None], torch.ones_like(targets)[:, None])
    if cache is not None:
        cache.batch_select_indices(rows)
        further = _continue(model, cache, inputs["attention_mask"][rows], lengths[rows], choices)
        total, greedy = total + further[0], greedy & further[1]
    return total, greedy


def _in_whole_sequences(
    model: Any,
    prompts: list[Sequence[int]],
    choices: list[Sequence[int]],
    owner: list[int],
    connection_index: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:
    """Scores `(R,)` of `choices`, each in a forward over its prompt `prompts[r]` and it, padded on the right."""
    device = model.device
    sequences = [[*prompt, *choice] for prompt, choice in zip(prompts, choices)]
    width, first = max(map(len, sequences)) - 1, min(map(len, prompts)) - 1  # the last token is no input
    ids = torch.tensor([row + [0] * (width + 1 - len(row)) for row in sequences], device=device)
    starts = torch.tensor([[len(prompt) - 1] for prompt in prompts], device=device)
    ends = torch.tensor([[len(row) - 1] for row in sequences], device=device)
    steps = torch.arange(width, device=device)
    inputs = {"input_ids": ids[:, :-1], "attention_mask": (steps < ends).long()}
    if connection_index is not None:
        inputs["connection_index"] = torch.tensor([connection_index[row] for row in owner], device=device)
    logits = model(**inputs, use_cache=False, logits_to_keep=width - first).logits
    real = ((steps >= starts) & (steps < ends)).long()
    return _scored(logits, ids[:, first + 1 :], real[:, first:])


def _left_padded(
    prompts: Sequence[Sequence[int]], connection_index: Sequence[int] | None, device: torch.device
) -> tuple[dict[str, Any], Tensor]:
    """The arguments of the prefill, and the lengths of the prompts `(B,)`."""
    width = max(map(len, prompts))
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(0)}
    if connection_index is not None:
        inputs["connection_index"] = torch.tensor(connection_index, device=device) + (width - lengths)
    return inputs, lengths


def _continue(
    model: Any, cache: DynamicCache, mask: Tensor, lengths: Tensor, choices: list[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Scores `(R,)` of every choice's tokens after its first, which extend the prompts in `cache`."""
    device = mask.device
    width = max(map(len, choices)) - 1
    sizes = torch.tensor([len(choice) - 1 for choice in choices], device=device)
    steps = torch.arange(width, device=device)
    real = (steps < sizes[:, None]).long()
    padded = torch.tensor([list(choice) + [0] * (width + 1 - len(choice)) for choice in choices], device=device)
    logits = model(
        input_ids=padded[:, :-1],
        attention_mask=torch.cat([mask, real], dim=1),
        position_ids=lengths[:, None] + steps,
        use_cache=True,
        **{CACHE: cache},
    ).logits
    return _scored(logits, padded[:, 1:], real)


def _scored(logits: Tensor, targets: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """`(R,)`: log-probability of `targets` `(R, C)` where `real`, summed, and whether all are the arg-max."""
    logprobs = logits.float().log_softmax(dim=-1).gather(-1, targets[..., None])[..., 0]
    hits = (logits.argmax(dim=-1) == targets) | (real == 0)
    return torch.where(real != 0, logprobs, 0.0).sum(dim=1), hits.all(dim=1)


def _check(model: Any, prompts: Any, choices: Any, connection_index: Any) -> None:
    if model.training:
        raise ValueError("model: expected evaluation mode, got training mode; call model.eval()")
    if has_virtual_tokens(model):
        raise ValueError("model: expected no virtual tokens before the prompts, got an adapter that adds them")
    if not prompts or len(choices) != len(prompts):
        raise ValueError(f"choices: expected one list for each of at least 1 prompt, got {len(choices)}/{len(prompts)}")
    if connection_index is not None and len(connection_index) != len(prompts):
        raise ValueError(f"connection_index: expected {len(prompts)} indices, got {len(connection_index)}")
    for row, (prompt, given) in enumerate(zip(prompts, choices)):
        if not len(prompt):
            raise ValueError(f"prompts: expected at least one token in every prompt, got none in row {row}")
        if not given or not all(len(choice) for choice in given):
            raise ValueError(f"choices: expected choices of at least one token each, got an empty one in row {row}")
        if connection_index is not None and not 0 <= connection_index[row] < len(prompt):
            raise ValueError(
                f"connection_index: expected an index in [0, {len(prompt)}) in row {row}, got {connection_index[row]}"
            )


__all__ = ["ChoiceScore", "score_choices"]

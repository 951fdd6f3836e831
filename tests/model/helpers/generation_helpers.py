"""Prompts, oracle tokens and a token counter for the generation tests."""

from __future__ import annotations

import torch
from oracle import greedy

GREEDY = {"max_new_tokens": 6, "do_sample": False}
SCORES = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}


def prompts(lengths=(9, 6, 1), seed=0):
    """Left-padded prompts `(B, T)` and their mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(256, (len(lengths), max(lengths)), generator=generator)
    mask = torch.ones_like(ids)
    for b, length in enumerate(lengths):
        mask[b, : ids.shape[1] - length] = 0
    return ids, mask


def oracle_tokens(stock, model, ids, mask, steps=6, **options):
    """Greedy tokens of each row alone, without padding, by the oracle."""
    weight, matrix = model.cc.decision_maker.weight, model.cc.transform_matrix
    return [greedy(stock, weight, matrix, row[keep.bool()][None], steps, **options) for row, keep in zip(ids, mask)]


def new_tokens(sequences, ids):
    return sequences[:, ids.shape[1] :].tolist()


class TokenCounter:
    """Counts the tokens that the first decoder layer processes in each forward."""

    def __init__(self, model):
        self.lengths: list[int] = []
        layer = model.model.layers[0].self_attn.q_proj
        self.handle = layer.register_forward_hook(lambda module, args, output: self.lengths.append(args[0].shape[1]))

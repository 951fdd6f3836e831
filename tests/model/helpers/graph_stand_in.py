"""A stand-in for CUDA graphs on a CPU, and the models and prompts of the tests that use it."""

from __future__ import annotations

import torch
from model_pairs import batch
from model_pairs import pair as single_pair

from cc_model import pivot_bank, use_pivot_graph
from cc_model.fast_paths import pivot_graph
from cc_model.specs import body_of

EXACT = {"rtol": 1e-9, "atol": 1e-9}
FP32 = {"rtol": 1e-4, "atol": 1e-5}  # of numbers up to 20


def pair(*args, **options):
    """In fp64: the sums of a padded prompt are rounded otherwise."""
    stock, model = single_pair(*args, **options)
    return stock.double(), model.double()


class NoPool:
    nbytes = 0

    def __init__(self, device):
        pass


class StandIn:
    """Repeats the recorded call; like a graph's, its result is at one place, and holds nothing before a replay."""

    new_pool = NoPool

    def __init__(self, device, pool):
        assert isinstance(pool, NoPool)

    @staticmethod
    def obstacle(device):
        return None

    def capture(self, run):
        self.run = run
        self.result = torch.full_like(run(), float("nan"))
        return self.result

    def replay(self):
        self.result.copy_(self.run())


def name_of(case):
    return getattr(case, "__name__", "")


def graphs_of(model):
    return body_of(model).__dict__[pivot_graph.ATTRIBUTE]


def prompts(rows=3, length=9, seed=0, padding="right"):
    data = batch(rows=rows, pivot=length, seed=seed)
    taken = {name: value for name, value in data.items() if name.startswith("pivot")}
    if padding == "left":
        taken["pivot_attention_mask"] = taken["pivot_attention_mask"].flip(1)
    if padding == "none":
        del taken["pivot_attention_mask"]
    return taken


def both(model, given):
    """The bank with and without graphs."""
    use_pivot_graph(model, False)
    expected = pivot_bank(model, given)
    return pivot_bank(use_pivot_graph(model), given), expected

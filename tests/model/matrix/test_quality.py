"""The report of a fit: what it measures, and the bounded sample that it measures on."""

from __future__ import annotations

import pytest
import torch

from cc_model.distributed import Processes
from cc_model.matrix.quality import measure
from cc_model.matrix.statistics import Reservoir


@pytest.mark.parametrize("per_layer", [False, True])
def test_report_measures_the_affine_map(per_layer):
    """Prescribed activations E = A M + c: with the bias the report finds no error, without it a large one."""
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(3, 40, 5, generator=generator)
    matrices = torch.randn(3 if per_layer else 1, 5, 5, generator=generator)
    bias = 10 * torch.randn(3 if per_layer else 1, 5, generator=generator)
    target = source @ matrices + bias[:, None]
    overall, layers = measure(source, target, matrices, bias, Processes(None))
    assert overall.r2 == pytest.approx(1, abs=1e-9)
    assert all(layer.r2 == pytest.approx(1, abs=1e-9) for layer in layers)
    assert measure(source, target, matrices, None, Processes(None))[0].r2 < 0


def test_reservoir_is_uniform_and_bounded():
    counts = torch.zeros(20)
    for seed in range(2000):
        reservoir = Reservoir(5, (1, 1), seed)
        rows = torch.arange(20.0)[None, :, None]
        reservoir.add(rows[:, :7], rows[:, :7])
        reservoir.add(rows[:, 7:], rows[:, 7:])
        kept = reservoir.share(Processes(None))[0].flatten().long()
        assert kept.numel() == 5
        counts[kept] += 1
    assert (counts / 2000 - 0.25).abs().max() < 0.05

"""Fitting the Transform Matrix in two processes: equal to one process on all pairs."""

from __future__ import annotations

import fit_steps as steps
import pytest
import torch
import torch.distributed as dist
from model_pairs import pair

from cc_model import fit_transform_matrix
from cc_model.distributed import Processes
from cc_model.matrix.statistics import Reservoir

SHARES = ([3, 2], [4, 1], [5, 0], [0, 5])


def one_process(**options):
    _, model = pair()
    report = fit_transform_matrix(model, steps.prompt_pairs(), progress=False, **options)
    return model.cc.transform_matrix, model.cc.transform_bias, report


def assert_same_fit(ranks, matrix, bias, report):
    for result in ranks:
        assert "error" not in result, result["error"]
        torch.testing.assert_close(result["matrix"], matrix, rtol=0, atol=1e-6)
        assert torch.equal(result["matrix"], ranks[0]["matrix"])
        assert (result["bias"] is None) == (bias is None)
        if bias is not None:
            torch.testing.assert_close(result["bias"], bias, rtol=0, atol=1e-6)
            assert torch.equal(result["bias"], ranks[0]["bias"])
        assert result["report"] == ranks[0]["report"]
        ours = result["report"]
        assert (ours.pairs, ours.held_out, ours.skipped, ours.rank) == (29, 0, 1, report.rank)
        assert ours.sample == report.sample
        for one, other in zip([ours.overall, *ours.layers], [report.overall, *report.layers]):
            assert vars(one) == pytest.approx(vars(other), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("options", [{}, {"per_layer": True, "ridge": 0.5}, {"affine": True}])
def test_equals_one_process(two_processes, options):
    expected = one_process(**options)
    for counts in SHARES:
        assert_same_fit(two_processes.run(steps.fitted, "none", counts, **options), *expected)


@pytest.mark.parametrize("wrapper", ["ddp", "compiled", "fsdp2"])
def test_wrapped_models(two_processes, wrapper):
    """Under FSDP2 every forward gathers parameters from both: the process that is done first goes on taking part."""
    expected = one_process()
    for counts in SHARES[1:]:
        assert_same_fit(two_processes.run(steps.fitted, wrapper, counts), *expected)


@pytest.mark.parametrize("wrapper", ["none", "fsdp2"])
def test_a_failure_in_one_process_ends_all(two_processes, wrapper):
    for counts in ([3, 1], [1, 3]):
        first, second = two_processes.run(steps.fitted, wrapper, counts, fail=True)
        assert second["error"] == "OSError: the disk is full"
        assert first["error"] == "OtherProcessError: rank 1 of 2 failed: OSError: the disk is full"
        assert first["untouched"]
        assert second["untouched"]


def test_a_wrong_argument_in_one_process_ends_all(two_processes):
    first, second = two_processes.run(steps.fitted, "none", [2, 3], of_rank_1={"ridge": -1.0})
    wrong = "ValueError: ridge: expected a finite number, 0 or more, got -1.0"
    assert second["error"] == wrong
    assert first["error"] == f"OtherProcessError: rank 1 of 2 failed: {wrong}"
    assert first["untouched"]
    assert second["untouched"]


def test_no_usable_pair_in_any_process(two_processes):
    for result in two_processes.run(steps.fitted, "none", [0, 0]):
        assert result["error"].startswith("ValueError: batches: expected at least one usable pair")


def test_holdout_and_a_small_report(two_processes):
    ranks = two_processes.run(steps.fitted, "none", [3, 2], holdout=0.5, report_rows=20)
    report = ranks[0]["report"]
    assert report == ranks[1]["report"]
    assert report.pairs + report.held_out == 29
    assert 5 <= report.held_out <= 24
    assert report.sample == "20 rows of 5 prompts (held-out pairs)"
    assert report.overall.mse > 0


def test_one_process_of_several_fits_alone(two_processes):
    assert two_processes.run(steps.fitted_by_rank_0) == [True, True]


def test_unknown_group():
    _, model = pair()
    with pytest.raises(ValueError, match="process_group: expected a process group, 'default' or None, got 'world'"):
        fit_transform_matrix(model, steps.prompt_pairs(), process_group="world")


class Rank:
    """What one process of two sees when they were offered 30 and 10 prompts."""

    def __init__(self, rank):
        self.rank = rank

    def gather(self, value):
        assert value == [30, 10][self.rank]
        return [30, 10]


def test_shared_sample_is_uniform_and_bounded():
    """Prompts 0 to 29 in one process, 30 to 39 in the other: each is in the sample of 8 with probability 8 / 40."""
    counts = torch.zeros(40)
    for seed in range(2000):
        kept = []
        for rank, prompts in enumerate((torch.arange(30.0), torch.arange(30.0, 40.0))):
            reservoir = Reservoir(8, (1, 1), seed, stream=rank)
            reservoir.add(prompts[None, :, None], prompts[None, :, None])
            kept.append(reservoir.share(Rank(rank))[0].flatten().long())
        kept = torch.cat(kept)
        assert kept.numel() == 8
        counts[kept] += 1
    assert (counts / 2000 - 0.2).abs().max() < 0.05


def test_tensors_go_where_the_backend_takes_them(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 3)
    for backends, device in (("cpu:gloo,cuda:nccl", "cpu"), ("cuda:nccl", "cuda:3")):
        monkeypatch.setattr(dist, "get_backend_config", lambda group, backends=backends: backends)
        assert Processes(None)._served(torch.device("cpu")) == torch.device(device)

"""The pivot pass as a real CUDA graph, against the pass without one."""

from __future__ import annotations

import pytest
import torch
from model_pairs import assert_same_gradients, batch, gradients, gumbel, pair

from cc_model import pivot_bank, report, use_pivot_graph
from cc_model.fast_paths import pivot_graph

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SHAPES = ((3, 9), (4, 60), (3, 5), (5, 70), (3, 9))  # two buckets; the last prompts are shorter than what was there


def moved(data):
    return {name: value.cuda() for name, value in data.items()}


def prompts(rows, length, seed=0):
    return moved({name: value for name, value in batch(rows=rows, pivot=length, seed=seed).items() if "pivot" in name})


def graph_note(model):
    return report(model).notes[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_banks(architecture, dtype):
    _, model = pair(architecture)
    model.cuda().to(dtype)
    expected = [pivot_bank(model, prompts(*shape)).bank for shape in SHAPES]
    use_pivot_graph(model)
    banks = [pivot_bank(model, prompts(*shape)).bank for shape in SHAPES]
    for actual, wanted in zip(banks, expected):
        error = (actual.float() - wanted.float()).norm() / wanted.float().norm()
        assert error < (1e-5 if dtype == torch.float32 else 2e-2)
    assert graph_note(model).startswith("pivot graph: 2 captures, 5 replays")


def test_training_steps_whose_weights_change():
    results = []
    for enabled in (False, True):
        _, model = pair()
        use_pivot_graph(model.cuda().train(), enabled)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        losses = []
        for step in range(3):
            optimizer.zero_grad()
            loss = model(**moved(batch(seed=step)), gumbel_noise=gumbel(3, seed=step).cuda()).loss
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
        results.append((losses, gradients(model)))
    assert results[1][0] == pytest.approx(results[0][0], abs=1e-4)
    assert_same_gradients(results[1][1], results[0][1], tolerance=1e-4)
    assert graph_note(model).startswith("pivot graph: 1 captures, 3 replays")


def test_mixed_precision_reads_new_weights():
    _, model = pair()
    use_pivot_graph(model.cuda())
    with torch.autocast("cuda", torch.bfloat16):
        first = pivot_bank(model, prompts(3, 9)).bank
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(2)
    with torch.autocast("cuda", torch.bfloat16):
        second = pivot_bank(model, prompts(3, 9)).bank
    torch.testing.assert_close(second[0], 2 * first[0], rtol=2e-2, atol=2e-2)
    assert graph_note(model).startswith("pivot graph: 1 captures, 2 replays")


def test_on_another_stream():
    """Buffers are filled again only after the earlier replay, on whichever stream."""
    _, model = pair()
    use_pivot_graph(model.cuda())
    given = [prompts(3, 9, seed) for seed in (1, 2)]
    expected = [pivot_bank(model, each).bank for each in given]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(10):
        first = pivot_bank(model, given[0]).bank
        with torch.cuda.stream(stream):
            second = pivot_bank(model, given[1]).bank
        torch.cuda.synchronize()
        assert torch.equal(first, expected[0])
        assert torch.equal(second, expected[1])


def test_the_memory_of_the_pool_is_told_and_given_back(monkeypatch):
    monkeypatch.setattr(pivot_graph, "PASSES_PER_CAPTURE", 1)
    _, model = pair()
    use_pivot_graph(model.cuda(), most_buckets=1)
    for shape in SHAPES:
        pivot_bank(model, prompts(*shape))
    graphs = model.model.cc_pivot_graphs
    assert (graphs.captures, len(graphs.recorded)) == (3, 1)
    assert graphs.nbytes > 2**20
    torch.cuda.synchronize()
    held = torch.cuda.memory_reserved()
    del graphs
    use_pivot_graph(model, False)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < held
    assert "pivot graph" not in graph_note(model)

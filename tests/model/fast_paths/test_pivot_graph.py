"""The pivot pass as a CUDA graph: buckets, buffers, what makes a graph stale, and what stands against one.

On a CPU a stand-in takes the graph's place: it repeats the recorded call on the buffers, and writes its result to the
same place. `tests/model/test_pivot_graph_on_gpu.py` compares real graphs.
"""

from __future__ import annotations

import copy

import pytest
import torch
from graph_stand_in import EXACT, FP32, StandIn, both, graphs_of, pair, prompts
from model_pairs import assert_same_gradients, batch, gradients, gumbel
from model_pairs import pair as single_pair
from torch import nn

from cc_model import fit_transform_matrix, pivot_bank, report, use_pivot_graph
from cc_model.fast_paths import pivot_graph
from cc_model.fast_paths.pivot_graph import Buffers, bucket
from cc_model.forward.pivot_graph import bank_of
from cc_model.specs import body_of, layers_of


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr(pivot_graph, "CudaGraph", StandIn)


@pytest.mark.parametrize("padding", ["right", "left", "none"])
@pytest.mark.parametrize("index", [None, [2, -1, 40]])
def test_the_bank_is_that_of_a_pass(architecture, padding, index):
    _, model = pair(architecture)
    given = prompts(padding=padding)
    if index is not None:
        given["pivot_index"] = torch.tensor(index)
    actual, expected = both(model, given)
    assert torch.equal(actual.usable, expected.usable)
    torch.testing.assert_close(actual.bank[:, actual.usable], expected.bank[:, expected.usable], **EXACT)
    assert actual.bank.isfinite().all()
    assert graphs_of(model).replays == 1


def test_rows_without_a_token():
    _, model = pair()
    given = prompts()
    given["pivot_attention_mask"][1] = 0
    actual, expected = both(model, given)
    assert actual.usable.tolist() == expected.usable.tolist() == [True, False, True]
    torch.testing.assert_close(actual.bank[:, [0, 2]], expected.bank[:, [0, 2]], **EXACT)
    assert actual.bank.isfinite().all()


def test_every_token_of_the_buffers_sees_one():
    """Attention that sees nothing is not a number in some kernels, and spreads from there."""
    _, model = pair()
    buffers = Buffers(4, 64, torch.device("cpu"))
    buffers.fill(
        torch.ones(2, 5, dtype=torch.long), torch.tensor([[0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]), torch.tensor([3, 9])
    )
    masks = []
    with pytest.raises(RuntimeError, match="did not capture"):
        bank_of(model.model, lambda **named: masks.append(named["attention_mask"]), model.cc_slots(), buffers)
    (mask,) = masks
    assert mask.shape == (4, 1, 64, 64)
    assert mask.any(-1).all()
    assert not mask.triu(1).any()
    assert mask[0, 0, 4].nonzero().flatten().tolist() == [2, 3, 4]
    assert buffers.tokens.tolist() == [3, 64 + 4, 128, 192]


def train(model, steps=3):
    """Losses and the gradients of the last of several steps that change the weights in place."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = model.train()(**batch(seed=step, pivot=9 + step), gumbel_noise=gumbel(3, seed=step)).loss
        loss.backward()
        losses.append(loss.item())
        if step < steps - 1:
            optimizer.step()
    return losses, gradients(model)


def test_training_steps(architecture):
    """One graph serves all steps, whose prompts fall into one bucket while the weights change."""
    (_, plain), (_, model) = pair(architecture), pair(architecture)
    expected = train(plain)
    losses, found = train(use_pivot_graph(model))
    assert losses == pytest.approx(expected[0], abs=1e-9)
    assert_same_gradients(found, expected[1], tolerance=1e-9)
    assert (graphs_of(model).captures, graphs_of(model).replays) == (1, 3)


def test_fp32():
    _, model = single_pair()
    actual, expected = both(model, prompts())
    torch.testing.assert_close(actual.bank, expected.bank, **FP32)


def test_gradient_checkpointing():
    (_, plain), (_, model) = pair(), pair()
    for each in (plain, model):
        each.gradient_checkpointing_enable({"use_reentrant": False})
    expected, (losses, found) = train(plain), train(use_pivot_graph(model))
    assert losses == pytest.approx(expected[0], abs=1e-9)
    assert_same_gradients(found, expected[1], tolerance=1e-9)


def test_a_bank_is_not_overwritten_by_the_next_replay():
    _, model = pair()
    use_pivot_graph(model)
    first = pivot_bank(model, prompts(seed=1)).bank
    kept = first.clone()
    second = pivot_bank(model, prompts(seed=2)).bank
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)
    assert graphs_of(model).captures == 1


def test_two_forwards_before_the_backward():
    """The first one's backward still needs its bank: the Decision Maker's gradient is made of it."""
    results = []
    for enabled in (False, True):
        _, model = pair()
        use_pivot_graph(model, enabled).train()
        parts = [model(**batch(seed=seed), gumbel_noise=gumbel(3)).loss for seed in (1, 2)]
        sum(parts).backward()
        results.append(gradients(model))
    assert_same_gradients(results[1], results[0], tolerance=1e-9)


def test_what_earlier_prompts_left_in_the_buffers():
    """Longer and more rows first, then shorter and fewer in the same bucket, then without a mask."""
    _, model = pair()
    graphed = use_pivot_graph(copy.deepcopy(model))
    for given in (prompts(4, 60, 1), prompts(3, 5, 2), prompts(4, 7, 3, "none"), prompts(3, 33, 4, "left")):
        actual, expected = pivot_bank(graphed, given), pivot_bank(model, given)
        torch.testing.assert_close(actual.bank, expected.bank, **EXACT)
    assert (graphs_of(graphed).captures, graphs_of(graphed).replays) == (1, 4)


@pytest.mark.parametrize(
    ("shape", "expected"), [((1, 1), (1, 64)), ((3, 64), (4, 64)), ((4, 65), (4, 128)), ((9, 513), (16, 576))]
)
def test_buckets(shape, expected):
    assert bucket(*shape) == expected


def test_the_least_recently_used_bucket_goes(monkeypatch):
    monkeypatch.setattr(pivot_graph, "PASSES_PER_CAPTURE", 1)
    _, model = pair()
    use_pivot_graph(model, most_buckets=2)
    for rows, captures in ((1, 1), (2, 2), (1, 2), (4, 3), (1, 3), (2, 4)):
        pivot_bank(model, prompts(rows))
        assert graphs_of(model).captures == captures, rows
    assert [key[:2] for key in graphs_of(model).recorded] == [(1, 64), (2, 64)]


def test_shapes_that_change_often_do_not_record_again_and_again():
    """A capture costs four passes, so where it takes another's place it has to wait for its turn."""
    _, plain = pair()
    model = use_pivot_graph(copy.deepcopy(plain), most_buckets=1)
    for turn in range(1, 40):
        rows = 1 + turn % 2
        actual, expected = (pivot_bank(each, prompts(rows)).bank for each in (model, plain))
        torch.testing.assert_close(actual, expected, **EXACT)
    graphs = graphs_of(model)
    assert (graphs.captures, len(graphs.recorded)) == (3, 1)
    assert graphs.replays == 21
    recorded = next(iter(graphs.recorded))[0]
    pivot_bank(model, prompts(3 - recorded))
    assert graphs.reason == "1 other buckets are recorded, and shapes change often"
    pivot_bank(model, prompts(recorded))
    assert graphs.reason is None


def moved(model):
    model.to(torch.float32)


def replaced(model):
    layer = layers_of(model)[2].mlp
    layer.down_proj.weight = nn.Parameter(layer.down_proj.weight.detach() * 2)


def data_replaced(model):
    layer = layers_of(model)[1].mlp
    layer.up_proj.weight.data = layer.up_proj.weight.data * 2


def written_in_place(model):
    with torch.no_grad():
        layers_of(model)[1].mlp.up_proj.weight.mul_(2)


@pytest.mark.parametrize(
    ("change", "captures"),
    [(moved, 2), (replaced, 2), (data_replaced, 2), (written_in_place, 1)],
    ids=lambda case: getattr(case, "__name__", ""),
)
def test_weights_in_other_memory(change, captures):
    _, model = pair()
    use_pivot_graph(model)
    pivot_bank(model, prompts())
    kept = [parameter.data for parameter in model.parameters()]  # so that no address comes again
    change(model)
    actual = pivot_bank(model, prompts()).bank
    assert graphs_of(model).captures == captures
    expected = pivot_bank(use_pivot_graph(model, False), prompts()).bank
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, **(EXACT if actual.dtype == torch.float64 else FP32))
    del kept


def test_weights_in_other_memory_at_every_pass():
    """As where they are gathered for every forward: recording each time would cost more than it gives."""
    _, model = pair()
    use_pivot_graph(model)
    kept = []
    for _ in range(8):
        pivot_bank(model, prompts())
        kept.append(model.model.norm.weight.data)
        model.model.norm.weight.data = kept[-1].clone()
    assert graphs_of(model).captures == pivot_graph.MOST_IN_VAIN
    said = "pivot graph: not used (adapters or the memory of the weights change from pass to pass)"
    assert report(model).notes[-1] == said


def test_adapters():
    """New ones, disabled, merged in place, scaled: each is a new graph, and the numbers are those of a pass."""
    peft = pytest.importorskip("peft")
    from adapters import fill, lora

    _, model = pair()
    use_pivot_graph(model)
    pivot_bank(model, prompts())
    adapted = fill(peft.get_peft_model(model, lora()))
    graphs, before = graphs_of(model), graphs_of(model).captures

    def check(captures):
        actual = pivot_bank(adapted, prompts()).bank
        body = body_of(model).__dict__
        held = body.pop(pivot_graph.ATTRIBUTE)
        expected = pivot_bank(adapted, prompts()).bank
        body[pivot_graph.ATTRIBUTE] = held
        torch.testing.assert_close(actual, expected, **EXACT)
        assert graphs.reason is None
        assert graphs.captures - before == captures

    check(1)
    check(1)
    with adapted.disable_adapter():
        check(2)
    check(3)
    layers_of(model)[0].mlp.down_proj.scaling["default"] *= 2
    check(4)
    adapted.merge_adapter()
    check(5)


def test_autocast_is_a_graph_of_its_own():
    _, model = single_pair()
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = both(model, prompts())
        # What a pass casts, autocast keeps; a graph must neither keep nor read that.
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.mul_(2)
        assert not torch.equal(pivot_bank(model, prompts()).bank[0], actual.bank[0])
    assert (actual.bank - expected.bank).norm() < 0.02 * expected.bank.norm()
    pivot_bank(model, prompts())
    assert (graphs_of(model).captures, graphs_of(model).replays) == (2, 3)


def test_inference_mode_leaves_usable_buffers():
    _, model = pair()
    use_pivot_graph(model)
    with torch.inference_mode():
        first = pivot_bank(model, prompts()).bank
    model.train()(**batch(), gumbel_noise=gumbel(3)).loss.backward()
    assert torch.equal(pivot_bank(model, prompts()).bank, first)
    assert graphs_of(model).captures == 1


def test_the_fit_goes_through_graphs():
    reports = []
    for enabled in (False, True):
        _, model = pair()
        use_pivot_graph(model, enabled)
        rows = [
            {name: value for name, value in batch(rows=32, seed=seed).items() if name != "labels"} for seed in (1, 2)
        ]
        reports.append((fit_transform_matrix(model, rows, ridge=1.0), model.cc.transform_matrix))
    assert graphs_of(model).replays == 4
    torch.testing.assert_close(reports[0][1], reports[1][1], rtol=1e-4, atol=1e-5)

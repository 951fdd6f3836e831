"""The pivot pass as a CUDA graph: buckets, buffers, what makes a graph stale, and what stands against one.

On a CPU a stand-in takes the graph's place: it repeats the recorded call on the buffers, and writes its result to the
same place. `tests/model/test_pivot_graph_on_gpu.py` compares real graphs.
"""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
import torch
from model_pairs import assert_same_gradients, batch, gradients, gumbel
from model_pairs import pair as single_pair
from torch import nn

from cc_model import CCConfig, fit_transform_matrix, patch_model, pivot_bank, report, unpatch_model, use_pivot_graph
from cc_model.fast_paths import pivot_graph
from cc_model.fast_paths.pivot_graph import bucket
from cc_model.specs import body_of, layers_of
from cc_model.testing import tiny_model

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


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr(pivot_graph, "CudaGraph", StandIn)
    return StandIn


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


def test_the_least_recently_used_bucket_goes():
    _, model = pair()
    use_pivot_graph(model, most_buckets=2)
    for rows, captures in ((1, 1), (2, 2), (1, 2), (4, 3), (1, 3), (2, 4)):
        pivot_bank(model, prompts(rows))
        assert graphs_of(model).captures == captures, rows
    assert [key[:2] for key in graphs_of(model).recorded] == [(1, 64), (2, 64)]


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


# What stands against a graph: how the model is made so, and what the report says.


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


def with_hook(model):
    model.model.layers[1].self_attn.register_forward_hook(lambda *args: None)


def with_body_hook(model):
    model.model.register_forward_hook(lambda *args: None)


def with_forward(model):
    norm = model.model.norm
    norm.forward = lambda hidden, stock=norm.forward: stock(hidden)


def offloaded(model):
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    add_hook_to_module(model.model.layers[0].mlp, AlignDevicesHook("cpu"))


def compiled(model):
    for layer in model.model.layers:
        layer.compile(backend="eager")


def partitioned(model):
    model.model.norm.weight.ds_id = 3


def foreign(model):
    class Norm(type(model.model.norm)):
        pass

    Norm.__module__ = "elsewhere"
    model.model.norm.__class__ = Norm


def two_kinds(model):
    weight = model.model.norm.weight

    class Sharded(nn.Parameter):
        pass

    model.model.norm._parameters["weight"] = weight.data.as_subclass(Sharded)


def dropping_out(model):
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()


def eager(model):
    model.config._attn_implementation = "eager"


def replica(model):
    model.model.__dict__["_is_replica"] = True


OBSTACLES = [
    (with_hook, "a hook is registered on LlamaAttention"),
    (with_body_hook, "a hook is registered on LlamaModel"),
    (with_forward, "LlamaRMSNorm has a forward of its own"),
    (offloaded, "accelerate's hooks, as for offloading, are on LlamaMLP"),
    (compiled, "LlamaDecoderLayer is compiled"),
    (partitioned, "ZeRO-3 partitions its parameters"),
    (foreign, "Norm is of a library that is not known to do the same work at every call"),
    (two_kinds, "a parameter is a Sharded, which may be sharded or quantised"),
    (dropping_out, "LlamaAttention drops out at random"),
    (eager, "llama with eager attention is not known to take a ready mask and to ask the device for nothing"),
    (replica, "it is a replica of nn.DataParallel"),
]


@pytest.mark.parametrize(("make", "reason"), OBSTACLES, ids=name_of)
def test_obstacles(make, reason):
    _, model = pair()
    use_pivot_graph(model)
    make(model)
    pivot_bank(model, prompts())
    assert graphs_of(model).replays == 0
    assert report(model).notes[-1] == f"pivot graph: not used ({reason})"


def test_global_hooks():
    _, model = pair()
    use_pivot_graph(model)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *args: None)
    pivot_bank(model, prompts())
    assert report(model).notes[-1] == "pivot graph: not used (global hooks are registered)"
    handle.remove()
    pivot_bank(model, prompts())
    assert graphs_of(model).replays == 1


@pytest.mark.parametrize(
    ("model_type", "options", "said"),
    [
        ("gemma2", {}, "gemma2 with"),
        ("mistral", {"sliding_window": 16}, "mistral with"),
        ("mixtral", {}, "mixtral with"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "embedding (dynamic)",
        ),
    ],
)
def test_other_families_run_as_before(model_type, options, said):
    _, model = single_pair(model_type, **options)
    actual, expected = both(model, prompts())
    assert torch.equal(actual.bank, expected.bank)
    assert graphs_of(model).replays == 0
    assert said in report(model).notes[-1]


def test_a_gradient_through_the_pass():
    _, model = pair(config=CCConfig(pivot_grad=True))
    use_pivot_graph(model).train()(**batch(), gumbel_noise=gumbel(3)).loss.backward()
    assert graphs_of(model).replays == 0
    assert report(model).notes[-1].endswith("; the last pass ran without: a gradient goes through the pass")


def test_the_model_compiled_as_a_whole():
    _, model = pair()
    expected = pivot_bank(model, prompts()).bank
    use_pivot_graph(model)
    model.eval()
    whole = torch.compile(model, backend="eager")
    with torch.no_grad():
        output = whole(**batch())
        assert graphs_of(model).captures == 0
        torch.testing.assert_close(output.logits, model(**batch()).logits, **EXACT)
    assert graphs_of(model).captures == 1
    torch.testing.assert_close(pivot_bank(model, prompts()).bank, expected, **EXACT)


def test_a_capture_that_fails(monkeypatch, caplog):
    """The pass runs without a graph, once says so, and is not tried again."""
    _, model = pair()
    expected = pivot_bank(model, prompts()).bank

    def capture(self, run):
        run()
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    monkeypatch.setattr(StandIn, "capture", capture)
    use_pivot_graph(model)
    with caplog.at_level(logging.WARNING, "cc_model"):
        for _ in range(2):
            assert torch.equal(pivot_bank(model, prompts()).bank, expected)
    assert len(caplog.records) == 1
    reason = "the capture failed with RuntimeError: operation not permitted when stream is capturing"
    assert reason in caplog.text
    assert report(model).notes[-1] == f"pivot graph: not used ({reason})"
    monkeypatch.undo()
    monkeypatch.setattr(pivot_graph, "CudaGraph", StandIn)
    pivot_bank(use_pivot_graph(model), prompts())
    assert graphs_of(model).replays == 1


def test_a_module_that_does_not_capture_is_named():
    """The error of a pass, not a note about graphs."""
    _, model = pair()
    layers_of(use_pivot_graph(model))[1].mlp = tiny_model("llama").double().model.layers[0].mlp
    with pytest.raises(RuntimeError, match="block of layer 1, LlamaMLP, was replaced after patch_model"):
        pivot_bank(model, prompts())


def test_the_report():
    _, model = pair()
    use_pivot_graph(model, most_buckets=3)
    assert report(model).notes[-1] == "pivot graph: 0 captures, 0 replays, at most 3 buckets (none yet), 0.0 MiB"
    for rows in (3, 3, 5):
        pivot_bank(model, prompts(rows, 9))
    expected = "pivot graph: 2 captures, 3 replays, at most 3 buckets (4 × 64, 8 × 64), 0.0 MiB"
    assert report(model).notes[-1] == expected
    assert graphs_of(model).nbytes == 2 * 64 * 8 + (4 + 8) * (64 * 9 + 8)


def test_the_switch():
    """A copy has it and no graphs; the state dict and `unpatch_model` know nothing of it."""
    _, model = pair()
    names, stock = set(model.state_dict()), report(model).notes
    use_pivot_graph(model, most_buckets=5)
    expected = pivot_bank(model, prompts()).bank
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert set(copied.state_dict()) == names
        assert graphs_of(copied) is not graphs_of(model)
        assert (graphs_of(copied).captures, graphs_of(copied).most_buckets) == (0, 5)
        torch.testing.assert_close(pivot_bank(copied, prompts()).bank, expected)
        assert graphs_of(copied).captures == 1
    assert report(use_pivot_graph(copied, False)).notes == stock
    unpatch_model(model)
    assert pivot_graph.ATTRIBUTE not in model.model.__dict__
    assert report(patch_model(model)).notes == stock


def test_what_is_refused():
    with pytest.raises(TypeError, match="model: expected a torch module, got int"):
        use_pivot_graph(1)
    with pytest.raises(ValueError, match="model: expected a patched model, got LlamaForCausalLM"):
        use_pivot_graph(tiny_model("llama"))
    _, model = pair()
    with pytest.raises(TypeError, match="enabled: expected a bool, got int"):
        use_pivot_graph(model, 1)
    for value in (2.0, True):
        with pytest.raises(TypeError, match="most_buckets: expected an int, got"):
            use_pivot_graph(model, most_buckets=value)
    with pytest.raises(ValueError, match="most_buckets: expected at least 1, got 0"):
        use_pivot_graph(model, most_buckets=0)


def test_without_a_gpu_nothing_is_recorded(monkeypatch):
    monkeypatch.undo()
    _, model = pair()
    use_pivot_graph(model)
    pivot_bank(model, prompts())
    assert report(model).notes[-1] == "pivot graph: not used (the model is on cpu, which has no CUDA graphs)"

"""What stands against a CUDA graph of the pivot pass, what the report says of it, and the switch.

How a model is made so that a graph could be wrong, and that its passes then run as before.
"""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
import torch
from graph_stand_in import EXACT, StandIn, both, graphs_of, name_of, pair, prompts
from model_pairs import batch, gumbel
from model_pairs import pair as single_pair
from torch import nn

from cc_model import CCConfig, patch_model, pivot_bank, report, unpatch_model, use_pivot_graph
from cc_model.fast_paths import pivot_graph
from cc_model.specs import layers_of
from cc_model.testing import tiny_model


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr(pivot_graph, "CudaGraph", StandIn)


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

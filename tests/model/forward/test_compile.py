"""`torch.compile` of the layers and of the whole model: the same numbers, no recompilation, graph breaks counted."""

from __future__ import annotations

import pytest
import torch
from model_pairs import assert_same_gradients, at_end, batch, gradients, gumbel, pair
from snippets import COMPILE_OPTION
from transformers import CompileConfig

from cc_model import CCConfig
from cc_model.forward import replay


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def compile_layers(model):
    for layer in model.model.layers:
        layer.compile(fullgraph=True, backend="aot_eager")


def counted(group, name):
    return torch._dynamo.utils.counters[group][name]


@pytest.mark.parametrize("pivot_grad", [False, True])
def test_training_step(pivot_grad):
    config = CCConfig(pivot_grad=pivot_grad)
    layers = 10  # more than the number of recompilations that are allowed
    _, eager = pair("llama", config, num_hidden_layers=layers)
    _, model = pair("llama", config, num_hidden_layers=layers, use_cache=False)
    data, noise = batch(), gumbel(3, layers)
    compile_layers(model)
    model.train()(**data, gumbel_noise=noise)  # compiles
    model.zero_grad()
    with torch._dynamo.config.patch(error_on_recompile=True):
        output = model(**data, gumbel_noise=noise)
        output.loss.backward()
    expected = eager.train()(**data, gumbel_noise=noise)
    expected.loss.backward()
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-5)
    assert torch.equal(output.decision_weights, expected.decision_weights)
    assert_same_gradients(gradients(model), gradients(eager), tolerance=1e-5)


@pytest.mark.parametrize("pivot_grad", [False, True])
def test_training_and_evaluation_stay_within_the_recompile_limit(pivot_grad):
    """A training step, then evaluation without a gradient: the eight graphs that `fullgraph` allows, not one more."""
    layers = 10
    _, model = pair("llama", CCConfig(pivot_grad=pivot_grad), num_hidden_layers=layers, use_cache=False)
    compile_layers(model)
    data, noise = batch(), gumbel(3, layers)
    model.train()(**data, gumbel_noise=noise).loss.backward()
    with torch.no_grad():
        model.eval()(**data, gumbel_noise=noise)
    assert counted("stats", "unique_graphs") <= 8


SIZES = [(12, 9), (12, 9), (14, 11), (17, 10), (13, 15)]  # tokens of the main and of the pivot rows


@pytest.mark.parametrize(("pivot_grad", "steps"), [(False, 2), (True, 5)])
def test_whole_model_in_training(pivot_grad, steps):
    """Pivot pass, decision and main pass in one graph; other lengths compile once more, with symbolic sizes."""
    config = CCConfig(pivot_grad=pivot_grad)
    _, eager = pair("llama", config, num_hidden_layers=2, use_cache=False)
    _, model = pair("llama", config, num_hidden_layers=2, use_cache=False)
    compiled = torch.compile(model.train(), backend="aot_eager", fullgraph=True)
    eager.train()
    for step, (main, pivot) in enumerate(SIZES[:steps]):
        data, noise = batch(main=main, pivot=pivot), gumbel(3, 2)
        for each, called in ((model, compiled), (eager, eager)):
            each.zero_grad()
            output = called(**data, gumbel_noise=noise)
            output.loss.backward()
        assert_same_gradients(gradients(model), gradients(eager), tolerance=1e-5)
        assert counted("stats", "unique_graphs") == (1 if step < 2 else 2)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert gradients(model)["cc.decision_maker.weight"].any()


def test_whole_model_with_the_matrix():
    """The first connection index is read back to cut the tokens, so there are breaks: as many graphs at every call."""
    _, model = pair(matrix=True, num_hidden_layers=2)
    data = batch()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        data = {"input_ids": data["input_ids"], **at_end(data["input_ids"])}
        expected = model(**data)
        for _ in range(3):
            output = compiled(**data)
            torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-5)
            assert torch.equal(output.decision_weights, expected.decision_weights)
            assert counted("stats", "unique_graphs") <= 12
        reasons = " ".join(torch._dynamo.utils.counters["graph_break"])
        assert len(torch._dynamo.utils.counters["graph_break"]) <= 3
        assert "item()" in reasons
        pivoted = torch.compile(model, backend="eager", fullgraph=True)(**data, use_cache=False)
        torch.testing.assert_close(pivoted.logits, model(**data).logits, rtol=0, atol=1e-5)


def test_compiled_layers_under_checkpointing():
    """A layer says which pass is running; the recompute gets the pass from its arguments and need not say it again."""
    if not hasattr(torch._dynamo.config, COMPILE_OPTION):
        pytest.skip(f"needs a PyTorch with torch._dynamo.config.{COMPILE_OPTION}")
    config = CCConfig(pivot_grad=True)
    _, eager = pair("llama", config, num_hidden_layers=2)
    _, model = pair("llama", config, num_hidden_layers=2)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    compile_layers(model)
    data, noise = batch(), gumbel(3, 2)
    with torch._dynamo.config.patch({COMPILE_OPTION: True}):
        for each in (eager, model, model):
            each.zero_grad()
            each.train()(**data, gumbel_noise=noise).loss.backward()
    assert_same_gradients(gradients(model), gradients(eager), tolerance=1e-5)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert all(slot.captured is None for slot in model.cc_slots()), "the recompute keeps nothing alive"


def test_decode_steps_and_the_connected_token_compile_once():
    """The decode steps of a static cache, and the token that runs again to connect: two graphs for all lengths."""
    _, model = pair(matrix=True)
    compiled = CompileConfig(backend="eager", fullgraph=True, mode=None)
    compiled._compile_all_devices = True
    options = {"max_new_tokens": 5, "do_sample": False, "cache_implementation": "static", "max_cache_len": 32}
    for length in (9, 12, 17):
        ids = torch.randint(256, (2, length), generator=torch.Generator().manual_seed(length))
        eager = model.generate(ids, **options, disable_compile=True)
        assert torch.equal(model.generate(ids, **options, compile_config=compiled), eager)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]
    assert replay._compiled_replay(compiled) is replay._compiled_replay(CompileConfig(**compiled.to_dict()))


@pytest.mark.parametrize(
    ("options", "compiled"),
    [
        ({}, 1),
        ({"connection_index": torch.tensor([4, 8])}, 0),  # five tokens run again: another graph for each number
        ({"return_dict_in_generate": True, "output_hidden_states": True}, 0),  # the next replay would overwrite them
        ({"cache_implementation": None}, 0),
    ],
    ids=["the last token", "several tokens", "hidden states", "a cache that grows"],
)
def test_which_tokens_run_again_as_a_graph(options, compiled, monkeypatch):
    _, model = pair(matrix=True, num_hidden_layers=1)
    asked = []
    monkeypatch.setattr(replay, "_compiled_replay", lambda config: asked.append(config) or replay._replay)
    config = CompileConfig(backend="eager", fullgraph=True, mode=None)
    config._compile_all_devices = True
    ids = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(0))
    model.generate(ids, **{"cache_implementation": "static", **options}, max_new_tokens=1, compile_config=config)
    assert len(asked) == compiled

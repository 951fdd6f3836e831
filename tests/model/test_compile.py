"""`torch.compile` of the patched decoder layers: one graph without breaks, the same numbers, no recompilation."""

from __future__ import annotations

import pytest
import torch
from model_pairs import assert_same_gradients, batch, gradients, gumbel, pair
from transformers import CompileConfig

from cc_model import CCConfig


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def compile_layers(model):
    for layer in model.model.layers:
        layer.compile(fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("pivot_grad", [False, True])
def test_training_step(pivot_grad):
    config = CCConfig(pivot_grad=pivot_grad)
    layers = 10  # more than the number of recompilations that are allowed
    _, eager = pair("llama", config, num_hidden_layers=layers)
    _, model = pair("llama", config, num_hidden_layers=layers, use_cache=False)
    data, noise = batch(), gumbel(3, layers)
    compile_layers(model)
    for _ in range(2):  # the first steps compile
        model.train()(**data, gumbel_noise=noise)
    model.zero_grad()
    with torch._dynamo.config.patch(error_on_recompile=True):
        output = model(**data, gumbel_noise=noise)
        output.loss.backward()
    expected = eager.train()(**data, gumbel_noise=noise)
    expected.loss.backward()
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-5)
    assert torch.equal(output.decision_weights, expected.decision_weights)
    assert_same_gradients(gradients(model), gradients(eager), tolerance=1e-5)


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

"""Gate and up projections by one kernel for a few tokens at inference, and everything that must prevent it.

The kernels need a GPU or the interpreter: without a GPU the tests run in a process of their own (the last test here).
"""

from __future__ import annotations

import pytest
import torch
from interpreted import DEVICE, in_a_process_of_its_own, needs_kernels, run_interpreted
from model_pairs import batch, pair
from torch import nn
from transformers import CompileConfig

import cc_model.patching.decoder
from cc_kernels import use_backend
from cc_kernels.ops.gate_up_swiglu import MOST_ROWS
from cc_model import report
from cc_model.fast_paths.few_tokens import obstacle, streamed
from cc_model.testing import random_matrix

GREEDY = {"do_sample": False, "max_new_tokens": 3}
LAYERS = 4


@pytest.fixture
def calls(monkeypatch):
    """The number of rows of each call of `gate_up_swiglu` by a model."""
    rows = []
    stock = cc_model.patching.decoder.gate_up_swiglu

    def counted(x, w_gate, w_up):
        rows.append(x.shape[0])
        return stock(x, w_gate, w_up)

    monkeypatch.setattr(cc_model.patching.decoder, "gate_up_swiglu", counted)
    return rows


def prompts(rows=2, length=MOST_ROWS // 2 + 8):
    """By default more tokens than are streamed, so that only decode steps and the connected token are."""
    return torch.randint(256, (rows, length), generator=torch.Generator().manual_seed(rows)).to(DEVICE)


def patched(architecture="llama", **options):
    return pair(architecture, **options)[1].to(DEVICE)


@needs_kernels
def test_generation_is_that_of_the_modules(architecture, calls):
    model = patched(architecture, matrix=True)
    ids = prompts()
    with use_backend("torch"):
        expected = model.generate(ids, **GREEDY, output_logits=True, return_dict_in_generate=True)
    assert not calls
    with use_backend("triton"):
        got = model.generate(ids, **GREEDY, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(got.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(expected.logits), rtol=0, atol=1e-5)
    # Of the prefill of 40 tokens the last layer, for the two that are captured; then these two tokens again, with the
    # connection, and two decode steps.
    assert calls == [2] * (1 + LAYERS * (1 + 2))


@needs_kernels
def test_a_matrix_for_each_layer():
    model = patched(matrix=True)
    model.cc.transform_matrix = torch.stack([random_matrix(model, seed) for seed in range(LAYERS)])
    with use_backend("torch"):
        expected = model.generate(prompts(), **GREEDY)
    with use_backend("triton"):
        assert torch.equal(model.generate(prompts(), **GREEDY), expected)


@needs_kernels
def test_number_of_tokens(calls):
    model = patched()
    with torch.no_grad(), use_backend("triton"):
        model(prompts(1, MOST_ROWS))
        model(prompts(1, MOST_ROWS + 1))
    assert calls == [MOST_ROWS] * LAYERS


@needs_kernels
def test_never_with_gradients_or_in_training(calls):
    model = patched()
    with use_backend("triton"):
        model(prompts(1, 4))
        model.train()
        with torch.no_grad():
            model(prompts(1, 4))
            model(**{name: value[:1, :4].to(DEVICE) for name, value in batch().items()})
    assert not calls


def with_bias(model):
    model.model.layers[1].mlp.gate_proj.bias = nn.Parameter(torch.ones(160, device=DEVICE))


def with_hook(model):
    model.model.layers[1].mlp.gate_proj.register_forward_hook(lambda module, args, output: output * 2)


def with_pre_hook(model):
    model.model.layers[1].mlp.up_proj.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def with_own_forward(model):
    linear = model.model.layers[1].mlp.up_proj
    linear.forward = lambda x: nn.functional.linear(x, linear.weight) * 2


def with_subclass(model):
    class Doubled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    model.model.layers[1].mlp.up_proj.__class__ = Doubled


def with_lora(model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["gate_proj"], layers_to_transform=[1], init_lora_weights=False)
    peft.inject_adapter_in_model(config, model)
    model.eval()


ATTACHED = {
    with_bias: "has a bias",
    with_hook: "has hooks",
    with_pre_hook: "has hooks",
    with_own_forward: "has a forward of its own",
    with_subclass: "is a Doubled, not nn.Linear",
    with_lora: "not nn.Linear",
}


@needs_kernels
@pytest.mark.parametrize("attach", ATTACHED, ids=lambda attach: attach.__name__)
def test_what_is_attached_to_a_projection_stays_in_effect(attach, calls):
    model = patched(matrix=True)
    with use_backend("torch"):  # on a GPU the kernels would be counted here
        plain = model.generate(prompts(), **GREEDY)
    attach(model)
    with use_backend("torch"):
        expected = model.generate(prompts(), **GREEDY, output_logits=True, return_dict_in_generate=True)
    with use_backend("triton"):
        got = model.generate(prompts(), **GREEDY, output_logits=True, return_dict_in_generate=True)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(expected.logits), rtol=0, atol=1e-5)
    # The other layers' weights are streamed for three tokens, the last layer's for the prefill's captured rows, too.
    assert len(calls) == (LAYERS - 1) * 3 + 1
    assert plain.shape == got.sequences.shape


@pytest.mark.parametrize("attach", ATTACHED, ids=lambda attach: attach.__name__)
def test_report_names_the_obstacle(attach):
    model = patched()
    attach(model)
    layers = report(model).layers
    assert ATTACHED[attach] in layers[1].few_tokens
    assert layers[0].few_tokens != layers[1].few_tokens


def test_obstacles_of_weights():
    gate, up = nn.Linear(4, 6, bias=False), nn.Linear(4, 6, bias=False)
    assert obstacle(gate, up) is None
    assert "different dtypes or shapes" in obstacle(gate, nn.Linear(4, 8, bias=False))
    assert "different dtypes or shapes" in obstacle(gate, nn.Linear(4, 6, bias=False, dtype=torch.float16))
    assert "different devices" in obstacle(gate, nn.Linear(4, 6, bias=False, device="meta"))

    biased = nn.Linear(4, 6, bias=False)
    del biased.bias
    biased.bias = torch.ones(6)  # a plain attribute, which the module's forward adds all the same
    assert "has a bias" in obstacle(gate, biased)

    class Packed(torch.Tensor):
        pass

    up.weight = nn.Parameter(torch.ones(6, 4).as_subclass(Packed))
    assert "is a Packed" in obstacle(gate, up)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert "global forward hooks" in obstacle(gate, gate)
    finally:
        handle.remove()


@needs_kernels
def test_autocast_calls_the_modules(calls):
    model = patched()
    with torch.no_grad(), use_backend("triton"), torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        model(prompts(1, 4))
    assert not calls


@needs_kernels
def test_report_says_that_the_kernel_serves():
    model = patched()
    with use_backend("triton"):
        text = str(report(model))
    assert text.startswith(f"kernels: Triton, for tensors on {DEVICE.type}\n")
    assert f"few tokens at inference: gate, up and SwiGLU in one kernel, up to {MOST_ROWS} tokens" in text


@needs_kernels
def test_compiled_decode_steps_hold_the_kernel():
    """One graph for decode steps, one for the connected token, for prompts of any length; no recompilation."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = patched(matrix=True)
    compiled = CompileConfig(backend="eager", fullgraph=True, mode=None)
    compiled._compile_all_devices = True
    options = {**GREEDY, "cache_implementation": "static", "max_cache_len": MOST_ROWS}
    with use_backend("triton"):
        for length in (MOST_ROWS // 2 + 7, MOST_ROWS // 2 + 8, MOST_ROWS // 2 + 15):
            expected = model.generate(prompts(2, length), **options, disable_compile=True)
            assert torch.equal(model.generate(prompts(2, length), **options, compile_config=compiled), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize(
    ("gate", "up", "x"),
    [
        (torch.ones(6, 4), torch.ones(5, 4), torch.ones(2, 4)),
        (torch.ones(6, 4), torch.ones(6, 4).bfloat16(), torch.ones(2, 4)),
        (torch.ones(6, 4), torch.ones(6, 4, device="meta"), torch.ones(2, 4)),
        (torch.ones(6, 4), torch.ones(6, 4), torch.ones(2, 4).bfloat16()),
        (torch.ones(6, 4, device="meta"), torch.ones(6, 4, device="meta"), torch.ones(2, 4)),
        (torch.ones(6, 4), torch.ones(6, 4), torch.ones(MOST_ROWS + 1, 4)),
    ],
)
def test_weights_that_the_kernel_does_not_take(gate, up, x):
    """They are compared where they are known, and where they are read off the projections."""
    projections = [nn.Linear(4, len(weight), bias=False) for weight in (gate, up)]
    for linear, weight in zip(projections, (gate, up)):
        linear.weight = nn.Parameter(weight)
    assert streamed(*projections, x, [gate, up]) is None
    assert streamed(*projections, x, None) is None


def test_weights_that_the_kernel_takes():
    gate, up = (nn.Linear(4, 6, bias=False) for _ in range(2))
    for known in (None, [gate.weight, up.weight]):
        first, second = streamed(gate, up, torch.ones(MOST_ROWS, 4), known)
        assert first is gate.weight
        assert second is up.weight


@in_a_process_of_its_own
def test_interpreted():
    run_interpreted(__file__)

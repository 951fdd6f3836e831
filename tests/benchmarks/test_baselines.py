"""Every way to connect that is compared with ours computes the same thing: in fp32, loss, gradients and tokens."""

from __future__ import annotations

import pytest
import torch

from benchmarks.baselines import MODES, compiled, make_modes, random_batch
from benchmarks.baselines.hooks import Hooks
from benchmarks.baselines.ours import Ours
from benchmarks.baselines.published import Published, positions
from benchmarks.measure.models import NAMES, build, shape_of, twin
from cc_kernels.aot.shapes import MODELS

LAYERS, ROWS = 3, 3
CPU = torch.device("cpu")
CONNECTING = [kind for kind in MODES if kind.connects and kind is not Hooks]


@pytest.fixture(scope="module")
def model():
    """Weights so large that the connection changes the tokens."""
    made = build("tiny", CPU, torch.float32, layers=LAYERS)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    return made


def batch(seed=0):
    return random_batch(ROWS, 12, 5, 10, 2048, LAYERS, CPU, seed)


def step(mode, model, data):
    model.zero_grad()
    mode.maker.grad = None
    loss = mode.loss(data)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return loss.detach(), mode.maker.grad.clone(), gradients


@pytest.mark.parametrize("pivot_grad", [False, True])
@pytest.mark.parametrize("kind", CONNECTING, ids=lambda kind: kind.name)
def test_training_step_is_that_of_the_hooks(model, kind, pivot_grad, monkeypatch):
    if not kind.available:
        pytest.skip(f"{kind.name} is not installed")
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")  # the hooks and the patch are traced; no code is generated
    hooks, other = make_modes([Hooks, kind], model, pivot_grad)
    for seed in (0, 1):
        expected, actual = step(hooks, model, batch(seed)), step(other, model, batch(seed))
        torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-6)
        assert expected[1].abs().max() > 1e-4
        torch.testing.assert_close(actual[1], expected[1], rtol=1e-3, atol=1e-6)
        for name, gradient in expected[2].items():
            torch.testing.assert_close(
                actual[2][name], gradient, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n} {m}"
            )


@pytest.mark.parametrize("kind", [Published, Ours], ids=lambda kind: kind.name)
def test_tokens_and_logits_are_those_of_the_hooks(model, kind):
    data = batch()
    vanilla, hooks, other = make_modes([MODES[0], Hooks, kind], model)
    options = {"return_dict_in_generate": True, "output_logits": True}
    plain, expected, actual = (mode.generate(data.prompt, 4, data.noise, **options) for mode in (vanilla, hooks, other))
    for ours, theirs in zip(actual.logits, expected.logits):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert torch.equal(actual.sequences, expected.sequences)
    assert (plain.logits[0] - expected.logits[0]).abs().max() > 0.1, "the connection changes nothing"


def test_modes_leave_each_other_alone(model):
    """Hooks, patches and compiled layers of one mode are not seen by another."""
    data = batch()
    alone = make_modes([MODES[0]], model)[0].loss(data)
    among = make_modes(list(MODES), model)
    for mode in among:
        if not mode.compiles:
            mode.loss(data)
    assert torch.equal(among[0].loss(data), alone)


def test_code_compiled_without_hooks_is_not_taken_for_a_layer_with_hooks(model, monkeypatch):
    """By default torch.compile does not look at a module's hooks again."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    kinds = {kind.name: kind for kind in MODES}
    vanilla, hooks = make_modes([kinds["vanilla+compile"], kinds["hooks+compile"]], model)
    data = batch()
    plain = vanilla.loss(data)
    assert abs(hooks.loss(data) - plain) > 1e-3


def test_hooks_do_not_stay_armed_after_a_failure(model):
    mode = make_modes([Hooks], model)[0]
    data = batch()
    with pytest.raises(TypeError):
        mode.generate(data.prompt, "many", data.noise)
    assert mode.state.capture is None
    assert mode.state.inject is None


def test_published_decides_with_noise_at_inference(model):
    """Its own noise changes the choice between calls; ours never draws any there."""
    published, ours = make_modes([Published, Ours], model)
    ids = batch().prompt
    options = {"return_dict_in_generate": True, "output_logits": True}
    drawn = [published.generate(ids, 1, **options).logits[0] for _ in range(8)]
    assert any(not torch.equal(drawn[0], other) for other in drawn[1:])
    first, second = (ours.generate(ids, 1, **options).logits[0] for _ in range(2))
    assert torch.equal(first, second)


def test_published_positions():
    data = batch()
    assert positions(data.input_ids) == [11] * ROWS
    assert positions(data.pivot_input_ids) == [9] * ROWS


def test_short_prompts_are_refused():
    with pytest.raises(ValueError, match="prompt, pivot: expected 2 or more tokens, got 1 and 4"):
        random_batch(1, 1, 2, 4, 64, 2, CPU)


def test_twin_shares_every_tensor(model):
    other = twin(model)
    assert other is not model
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    assert all(ours[name] is theirs[name] for name in ours)
    assert other.model.layers[0].mlp is not model.model.layers[0].mlp


def test_the_registry_has_the_shapes_of_the_kernels():
    assert [name for name in NAMES if shape_of(name) not in MODELS] == ["tiny", "tiny-8k", "small"]
    with pytest.raises(ValueError, match="model: expected one of tiny, tiny-8k, small, 1b"):
        shape_of("2b")


@pytest.mark.parametrize("name", NAMES)
def test_registered_models_can_be_built(name):
    """On the meta device, where 8B weights cost nothing."""
    model = build(name, torch.device("meta"), torch.bfloat16)
    shape = shape_of(name)
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (
        shape.layers,
        shape.hidden,
        shape.intermediate,
    )
    assert next(model.parameters()).dtype == torch.bfloat16


def test_a_saved_model_is_loaded(tmp_path, model):
    model.save_pretrained(tmp_path)
    loaded = build(str(tmp_path), CPU, torch.float32)
    ids = batch().input_ids
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    with pytest.raises(ValueError, match="layers: expected none for a saved model, got 2"):
        build(str(tmp_path), CPU, torch.float32, layers=2)

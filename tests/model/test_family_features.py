"""What some families have and others have not: outputs of their own, experts, pictures, bodies that drop arguments."""

from __future__ import annotations

import copy
import pickle

import oracle
import pytest
import torch
from families import LAYERS, made, same_gradients, tiny
from model_pairs import batch, gradients, gumbel
from shared_pivots import loss_rows_of
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache

from cc_model import connection_disabled, fit_transform_matrix, from_pretrained, patch_model, report
from cc_model.fast_paths.rollback import ways_of
from cc_model.specs import SPECS, ModelSpec, addend_of, block_of, layers_of, spec_of
from cc_model.testing import tiny_config, tiny_model

INDEX = [6, 5, 4]
SEVERAL = ["gemma3", "gemma4", "mistral3", "qwen3_5"]  # the text decoder of a model of several modalities
DROPPING = ["bloom", "falcon"]  # bodies that hand no keyword arguments on
ROWS = {name: ids % 250 if name.endswith("ids") else ids for name, ids in batch().items()}
AT = {"connection_index": torch.tensor(INDEX)}
PICTURE = torch.zeros(1, 3, 28, 28)


def trained(model, **options):
    torch.manual_seed(0)
    output = model.train()(**ROWS, gumbel_noise=gumbel(3, LAYERS), **options)
    output.loss.backward()
    found = gradients(model)
    model.zero_grad()
    return output, found


def simulated(stock, model, **options):
    """The oracle's output at `INDEX` with the matrix."""
    ids = ROWS["input_ids"]
    bank = oracle.capture(stock, ids, None, INDEX) @ model.cc.transform_matrix
    embeds = stock.get_input_embeddings()(ids)[torch.arange(3), torch.tensor(INDEX)]
    chosen = oracle.decide(bank, embeds, model.cc.decision_maker.weight).argmax(1)
    updates = [bank[chosen[b], b] for b in range(3)]
    return oracle.connected_logits(stock, ids, None, INDEX, updates, **options)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "gpt_oss", "olmoe"])
def test_router_logits_and_their_loss(family):
    """Of the main pass; in evaluation those of the first run before the connection, of the second after it."""
    stock, model = made(family)
    options = {"labels": ROWS["input_ids"], "output_router_logits": True}
    with torch.no_grad():
        output = model(ROWS["input_ids"], **AT, **options)
        expected = simulated(stock, model, **options)
    assert isinstance(output, type(expected))
    assert type(output).__name__ == type(expected).__name__
    assert expected.aux_loss > 0
    for name in ("loss", "aux_loss", "logits"):
        torch.testing.assert_close(output[name], expected[name], rtol=0, atol=1e-5)
    assert len(output.router_logits) == LAYERS
    for ours, theirs in zip(output.router_logits, expected.router_logits):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    again = pickle.loads(pickle.dumps(output))
    assert type(again) is type(output)
    assert torch.equal(again.decision_weights, output.decision_weights)
    weights, _ = trained(model, output_router_logits=True)
    assert isinstance(weights, type(expected))
    assert weights.aux_loss is not None
    assert isinstance(model(**ROWS, return_dict=False)[-1], torch.Tensor)


@pytest.mark.parametrize(
    "family", ["bloom", "falcon", "gpt2", "gemma2", "gemma3", "mixtral", "gpt_oss", "qwen3_5_text"]
)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(family, reentrant):
    _, model = made(family, dropout=0.1)
    expected, wanted = trained(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    output, found = trained(model)
    assert output.loss.item() == pytest.approx(expected.loss.item(), abs=1e-6)
    same_gradients(found, wanted)


@pytest.mark.parametrize("family", ["bloom", "gpt2", "gemma3", "mixtral", "gemma4_text"])
def test_head_and_loss_on_labelled_tokens(family):
    _, model = made(family)
    expected, wanted = trained(model)
    output, found = trained(model, loss_rows=loss_rows_of(ROWS["labels"]))
    assert output.logits.shape[1] < expected.logits.shape[1] * 3
    assert output.loss.item() == pytest.approx(expected.loss.item(), abs=1e-6)
    same_gradients(found, wanted)


@pytest.mark.parametrize("family", [*DROPPING, "gemma2", "gpt_oss", "mistral3"])
def test_copies_and_saves(family, tmp_path):
    stock, model = made(family)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(ROWS["input_ids"], **AT).logits
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), from_pretrained(tmp_path)):
            assert type(twin) is type(model)
            assert torch.equal(twin(ROWS["input_ids"], **AT).logits, expected)
        plain = type(stock).from_pretrained(tmp_path)
        assert torch.equal(plain(ROWS["input_ids"]).logits, stock(ROWS["input_ids"]).logits)


@pytest.mark.parametrize("family", SEVERAL)
def test_several_modalities(family, tmp_path):
    """Text trains, fits, saves, loads and generates (`test_families` trains and generates); a picture raises."""
    _, model = made(family)
    fitted = fit_transform_matrix(model, [ROWS], ridge=1e-3)
    assert fitted.pairs == 3
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    ids = ROWS["input_ids"][:1]
    answers = [m.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0) for m in (model, loaded)]
    assert torch.equal(*answers)
    with pytest.raises(NotImplementedError, match="pixel_values: expected text alone, got Tensor; the connection is"):
        model(ids, connection_index=torch.tensor([3]), pixel_values=PICTURE)
    with pytest.raises(NotImplementedError, match="pixel_values: expected text alone"):
        model.train()(**ROWS, pixel_values=PICTURE)
    with pytest.raises(NotImplementedError, match="pixel_values: expected text alone"):
        model.eval().generate(ids, max_new_tokens=1, pixel_values=PICTURE)
    model.cc.transform_matrix = None
    seen = []
    model.model.get_image_features = lambda *args, **kwargs: seen.append(1) or (_ for _ in ()).throw(KeyError("seen"))
    with connection_disabled(model), pytest.raises(KeyError, match="seen"):
        model(ids, pixel_values=PICTURE)  # the stock model's own business


def test_the_class_that_a_config_names(tmp_path):
    """`AutoModelForCausalLM` would load Qwen 3.5's text half."""
    patch_model(tiny_model("qwen3_5")).save_pretrained(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)).__name__ == "Qwen3_5ForCausalLM"
    assert type(from_pretrained(tmp_path)).__name__ == "Qwen3_5ForConditionalGeneration"
    with pytest.raises(ValueError, match="config: expected the config of a causal language model, got SiglipVision"):
        from_pretrained(tmp_path, config=tiny_config("gemma3").vision_config)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_replaced_addend_is_named(family):
    _, model = made(family)
    spec, layer = spec_of(model), layers_of(model)[1]
    name = (spec.addend or (spec.mlp,))[0]
    setattr(layer, name, nn.Identity())
    what = "module whose output is added" if spec.addend else "feed-forward block"
    with pytest.raises(RuntimeError, match=f"the {what} of layer 1, Identity, was replaced after patch_model"):
        model(**ROWS)
    assert "was replaced by Identity: connected forwards raise" in report(model).layers[1].reason


WRONG = {
    "gemma2": ModelSpec(),  # the block before the norm
    "olmo2": ModelSpec(),
    "glm4": ModelSpec(addend=("post_self_attn_layernorm",)),
    "bloom": ModelSpec(body="transformer", layers="h", norm="ln_f", hands_on=False),  # the block adds the stream
    "llama": ModelSpec(mlp="self_attn.o_proj"),
    "gpt_neox": ModelSpec(body="gpt_neox", norm="final_layer_norm", mlp="attention.dense"),
}


@pytest.mark.parametrize("family", WRONG)
def test_a_wrong_spec_gives_other_numbers(family, monkeypatch):
    """So that `test_families` fails: the loss differs by far more than it allows."""
    monkeypatch.setitem(SPECS, family, WRONG[family])
    stock, model = made(family)
    noise = gumbel(3, LAYERS)
    weight = model.cc.decision_maker.weight.detach()
    expected = oracle.training_forward(stock.train(), weight, ROWS, noise, INDEX, [8, 7, 6])
    assert abs(model.train()(**ROWS, gumbel_noise=noise).loss.item() - expected.item()) > 1e-5


def test_a_spec_that_names_what_is_not_there(monkeypatch):
    monkeypatch.setitem(SPECS, "llama", ModelSpec(addend=("post_feedforward_layernorm",)))
    model = tiny("llama")
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=r"layer 0 \(LlamaDecoderLayer\) has no 'post_feedforward_layernorm', whose"):
        patch_model(model)
    assert [type(module) for module in model.modules()] == before


@pytest.mark.parametrize("family", ["gemma4_text", "gemma4"])
def test_tokens_with_equal_embeddings(family):
    """Gemma 4 reads a second embedding by the ids; searched in the first one they would not be found."""
    stock, model = made(family)
    with torch.no_grad():
        for one in (stock, model):
            weight = one.get_input_embeddings().weight
            weight[8] = weight[int(ROWS["input_ids"][0, 0])]
    noise = gumbel(3, LAYERS)
    weight = model.cc.decision_maker.weight.detach()
    expected = oracle.training_forward(stock.train(), weight, ROWS, noise, INDEX, [8, 7, 6])
    assert model.train()(**ROWS, gumbel_noise=noise).loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_a_cache_that_holds_more_than_its_layers_is_not_rolled_back():
    class Own(DynamicCache):
        """As MiniMax's."""

    assert ways_of(DynamicCache(), 1).obstacle is None
    assert ways_of(Own(), 1).obstacle == "a cache of type Own cannot be rolled back"


@pytest.mark.parametrize("family", ["gemma4_text", "gemma4", "gemma2"])
def test_as_many_logits_as_asked_for(family):
    """Gemma 4's head tells by the length of what its body returns whether that was cut already."""
    stock, model = made(family)
    with torch.no_grad():
        expected = simulated(stock, model).logits
        for kept in (0, 1, 3):
            logits = model(ROWS["input_ids"], **AT, logits_to_keep=kept).logits
            torch.testing.assert_close(logits, expected[:, -kept:], rtol=0, atol=1e-5)


def test_what_runs_on_all_tokens():
    _, model = made("gemma2")
    assert "captures: the last layer's feed-forward block runs on all tokens (the layer adds the output of " in str(
        report(model)
    )


def test_gate_and_up_in_one_projection_run_fused():
    _, model = made("phi3")
    assert {layer.reason for layer in report(model).layers} == {
        "SwiGLU through cc_kernels, gate and up in one projection"
    }
    assert addend_of(layers_of(model)[0], spec_of(model)) is block_of(layers_of(model)[0], spec_of(model))

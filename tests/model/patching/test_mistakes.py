"""Ways to lose the connection or its parts without noticing: each raises, warns, or is put right."""

from __future__ import annotations

import logging
from types import MethodType

import pytest
import torch
from accelerate import cpu_offload
from model_pairs import at_end, batch, gumbel, pair
from transformers.modeling_outputs import CausalLMOutputWithPast

from cc_model import (
    CCConfig,
    connection_disabled,
    fit_transform_matrix,
    from_pretrained,
    patch_model,
    unpatch_model,
)
from cc_model.compat import CACHE
from cc_model.patching.classes import is_patched
from cc_model.testing import random_matrix, tiny_model

GREEDY = {"max_new_tokens": 4, "do_sample": False}


def prompt(rows=1, length=9):
    return torch.randint(256, (rows, length), generator=torch.Generator().manual_seed(0))


def test_foreign_forward_that_drops_the_arguments_raises():
    _, model = pair()

    def foreign(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return CausalLMOutputWithPast(logits=self.lm_head(output.last_hidden_state))

    model.forward = MethodType(foreign, model)
    with pytest.raises(RuntimeError, match=r"did not hand its keyword arguments on .*foreign"):
        model.train()(**batch())


def test_other_output_classes_keep_their_fields():
    _, model = pair()

    class OtherOutput(CausalLMOutputWithPast):
        pass

    def foreign(self, **kwargs):
        output = OtherOutput(**type(self).forward(self, **kwargs))
        output["token_accuracy"] = torch.tensor(0.5)
        return output

    model.forward = MethodType(foreign, model)
    output = model.train()(**batch(), gumbel_noise=gumbel(3))
    assert output.token_accuracy == 0.5
    assert output.decision_weights.shape == (3, 4)


def test_training_without_labels_and_index_warns(caplog):
    _, model = pair()
    data = {name: value for name, value in batch().items() if name != "labels"}
    with caplog.at_level(logging.WARNING, "cc_model"):
        model.train()(**data)
        model.train()(**data)
    assert caplog.text.count("without labels and without connection_index") == 1


def test_early_exit_is_refused_before_it_changes_the_model():
    _, model = pair(matrix=True)
    with pytest.raises(ValueError, match="assistant_early_exit is not supported"):
        model.generate(prompt(), assistant_early_exit=2, **GREEDY)
    assert model.config.num_hidden_layers == 4


def test_model_called_by_a_logits_processor():
    """A forward of the model inside `generate` is not a step of that `generate`."""
    _, model = pair(matrix=True)
    ids = prompt()
    expected = model.generate(ids, **GREEDY)
    shapes = []

    def processor(input_ids, scores):
        with torch.no_grad():
            other = torch.arange(4)[None]
            shapes.append(model(other, **at_end(other)).logits.shape)
        return scores

    assert torch.equal(model.generate(ids, logits_processor=[processor], **GREEDY), expected)
    assert shapes == [(1, 4, 256)] * 4


def test_other_model_generates_in_a_logits_processor():
    """Its steps are not those of the running `generate`, whose English prompt and refusals it knows nothing about."""
    _, model = pair()
    _, other = pair("qwen2")
    ids, pivots = prompt(), batch()["pivot_input_ids"][:1]
    expected = model.generate(ids, pivot_input_ids=pivots, **GREEDY)
    plain = other.generate(ids, use_cache=False, **GREEDY)
    found = []

    def processor(input_ids, scores):
        found.append(other.generate(ids, use_cache=False, **GREEDY))
        return scores

    assert torch.equal(model.generate(ids, pivot_input_ids=pivots, logits_processor=[processor], **GREEDY), expected)
    assert len(found) == 4
    assert all(torch.equal(tokens, plain) for tokens in found)


def test_a_new_matrix_drops_the_old_bias():
    _, model = pair(matrix=True)
    model.cc.transform_bias = torch.ones(64)
    model.cc.transform_matrix = random_matrix(model, seed=1)
    assert model.cc.transform_bias is None
    model.cc.transform_bias = torch.ones(64)
    state = {name: value for name, value in model.state_dict().items() if name != "cc.transform_bias"}
    model.load_state_dict(state)
    assert model.cc.transform_bias is None


def test_matrix_must_be_finite_in_the_model_dtype():
    model = patch_model(tiny_model().half())
    with pytest.raises(ValueError, match=r"transform_matrix: expected numbers that are finite in torch.float16"):
        model.cc.transform_matrix = torch.full((64, 64), 1e5)


def test_assigned_matrix_is_a_copy():
    _, model = pair()
    matrix = random_matrix(model)
    model.cc.transform_matrix = matrix
    matrix.zero_()
    assert model.cc.transform_matrix.any()


def test_inference_mode_leaves_ordinary_tensors():
    model = tiny_model()
    with torch.inference_mode():
        patch_model(model)
        ids = prompt(4)
        fit_transform_matrix(model, [{"input_ids": ids, "pivot_input_ids": ids}], progress=False)
    assert not model.cc.transform_matrix.is_inference()
    model.load_state_dict(model.state_dict())
    model.train()(**batch()).loss.backward()
    assert model.cc.decision_maker.weight.grad is not None


def test_pivot_grad_with_only_the_head_trainable():
    _, model = pair("llama", CCConfig(pivot_grad=True))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "model.norm.weight")
    model.train()(**batch()).loss.backward()
    assert model.model.norm.weight.grad is not None


@pytest.mark.parametrize("when", ["before", "after"])
def test_offloaded_model(when):
    _, expected = pair(matrix=True)
    ids = prompt(2)
    model = tiny_model(initializer_range=0.15)
    if when == "before":
        patch_model(model)
        model.load_state_dict(expected.state_dict())
        cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        cpu_offload(model, execution_device=torch.device("cpu"))
        patch_model(model)
        with torch.no_grad():
            model.cc.load_state_dict(expected.cc.state_dict())
    assert torch.equal(model.generate(ids, **GREEDY), expected.generate(ids, **GREEDY))
    data = [{"input_ids": ids, "pivot_input_ids": ids}]
    assert fit_transform_matrix(model, data, progress=False).pairs == 2


def test_continued_prompt_with_padding_in_the_cache_is_not_packed():
    _, model = pair()
    data = batch()
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[1, :5] = 0
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
    with torch.no_grad():
        cache = model(data["input_ids"][:, :3], attention_mask=mask[:, :3], use_cache=True)[CACHE]
        output = model(
            data["input_ids"][:, 3:],
            attention_mask=mask,
            position_ids=positions[:, 3:],
            pivot_input_ids=data["pivot_input_ids"],
            **{CACHE: cache},
        )
    assert output.decision_weights.sum() == 3


def test_unpatch_with_a_replaced_layer():

    _, model = pair()
    model.model.layers[1] = tiny_model().model.layers[1]
    unpatch_model(model)
    assert not any(is_patched(module) for module in model.modules())


def test_save_with_positional_arguments(tmp_path):
    _, model = pair(matrix=True)
    model.save_pretrained(tmp_path, True, dict(model.state_dict()), plain=True)
    assert not (tmp_path / "cc_config.json").exists()
    with pytest.raises(TypeError, match="by keyword"):
        model.save_pretrained(tmp_path, True, None, False)


def test_config_fields_given_to_from_pretrained(tmp_path):
    _, model = pair()
    model.save_pretrained(tmp_path)
    assert from_pretrained(tmp_path, attention_dropout=0.5).config.attention_dropout == 0.5
    with pytest.raises(ValueError, match="output_loading_info: not supported"):
        from_pretrained(tmp_path, output_loading_info=True)


def test_noise_of_the_wrong_shape_in_generate():
    _, model = pair(matrix=True)
    with pytest.raises(ValueError, match="gumbel_noise: expected shape"):
        model.generate(prompt(), gumbel_noise=torch.zeros(1, 5), **GREEDY)


def test_disabled_connection_after_everything():
    stock, model = pair(matrix=True)
    with connection_disabled(model):
        assert torch.equal(model.generate(prompt(), **GREEDY), stock.generate(prompt(), **GREEDY))

"""Patching and unpatching: what changes, what stays, and what is refused."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import subprocess
import sys

import pytest
import torch
from model_pairs import ARCHITECTURES, at_end, batch, pair
from torch import nn
from transformers import AutoModel, MambaConfig, MambaForCausalLM

from cc_model import CCConfig, patch_model, report, unpatch_model
from cc_model.compat import CACHE
from cc_model.specs import spec_of
from cc_model.testing import random_matrix, tiny_model


def test_patched_without_pivot_is_bit_equal(architecture):
    stock, model = pair(architecture)
    ids = batch()["input_ids"]
    for train in (False, True):
        assert torch.equal(stock.train(train)(ids).logits, model.train(train)(ids).logits)


def test_unpatch_restores_everything(architecture):
    stock, model = pair(architecture, matrix=True)
    before = {name: type(module) for name, module in stock.named_modules()}
    assert unpatch_model(model) is model
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert [vars(m).keys() for m in model.modules()] == [vars(m).keys() for m in stock.modules()]
    assert vars(model.config).keys() == vars(stock.config).keys()
    assert torch.equal(model(batch()["input_ids"]).logits, stock(batch()["input_ids"]).logits)


def test_patching_again_changes_nothing():
    model = patch_model(tiny_model(), CCConfig(pivot_grad=True))
    weight, kind = model.cc.decision_maker.weight, type(model)
    assert patch_model(model) is model
    assert patch_model(model, CCConfig(pivot_grad=True)) is model
    assert model.cc.decision_maker.weight is weight
    assert type(model) is kind
    with pytest.raises(ValueError, match="config: the model is patched with"):
        patch_model(model, CCConfig())


def test_second_model_is_untouched():
    other = tiny_model("llama")
    classes = [type(module) for module in other.modules()]
    expected = other(batch()["input_ids"]).logits
    patch_model(tiny_model("llama"))
    assert [type(module) for module in other.modules()] == classes
    assert torch.equal(other(batch()["input_ids"]).logits, expected)


def test_one_class_per_stock_class():
    first, second = patch_model(tiny_model()), patch_model(tiny_model(seed=1))
    assert type(first) is type(second)
    assert type(first.model.layers[0]) is type(second.model.layers[3])
    assert type(first).__name__ == "LlamaForCausalLM"
    assert isinstance(first, type(tiny_model()))


@pytest.mark.parametrize("duplicate", ["deepcopy", "pickle", "torch.save"])
def test_copies_use_their_own_weights(duplicate):
    _, model = pair(matrix=True)
    ids = batch()["input_ids"]
    with torch.no_grad():
        expected = model(ids, **at_end(ids)).logits  # also fills the folded matrix
        if duplicate == "deepcopy":
            twin = copy.deepcopy(model)
        elif duplicate == "pickle":
            twin = pickle.loads(pickle.dumps(model))
        else:
            buffer = io.BytesIO()
            torch.save(model, buffer)
            buffer.seek(0)
            twin = torch.load(buffer, weights_only=False)
        assert type(twin) is type(model)
        assert torch.equal(twin(ids, **at_end(ids)).logits, expected)
        for parameter in model.parameters():
            parameter.zero_()
        model.cc.transform_matrix.zero_()
        assert torch.equal(twin(ids, **at_end(ids)).logits, expected)
        twin.cc.transform_matrix = -twin.cc.transform_matrix
        assert not torch.equal(twin(ids, **at_end(ids)).logits, expected)


def test_signature_names_stock_and_own_arguments(architecture):
    stock, model = pair(architecture)
    ours = set(inspect.signature(model.forward).parameters)
    assert ours >= set(inspect.signature(stock.forward).parameters)
    assert ours >= {"pivot_input_ids", "pivot_attention_mask", "connection_index", "pivot_index", "gumbel_noise"}


def test_config_ignores_decision_weights_at_inference():
    model = patch_model(tiny_model())
    assert model.config.keys_to_ignore_at_inference == [CACHE, "decision_weights"]


def test_decision_maker():
    model = patch_model(tiny_model(hidden_size=512, num_hidden_layers=8).to(torch.bfloat16))
    weight = model.cc.decision_maker.weight
    assert tuple(weight.shape) == (8, 512)
    assert weight.dtype == torch.bfloat16
    assert weight.float().std().item() == pytest.approx(model.config.initializer_range, rel=0.1)
    assert not isinstance(model.cc.decision_maker, nn.Linear)


def mamba():
    return MambaForCausalLM(MambaConfig(num_hidden_layers=1, hidden_size=8, state_size=2, vocab_size=16))


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (mamba(), ValueError, "mamba.*no feed-forward block; supported are .*llama, .*mistral"),
        (nn.Linear(2, 2), TypeError, "model: expected a causal language model"),
        (AutoModel.from_config(tiny_model().config), TypeError, "AutoModelForCausalLM"),
        ("llama", TypeError, "model: expected a torch module, got str"),
    ],
)
def test_unsupported_models(model, error, message):
    with pytest.raises(error, match=message):
        patch_model(model)


def test_failed_patch_changes_nothing():
    model = tiny_model()
    classes = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match="inject_layer: expected a layer below 4, got 4"):
        patch_model(model, CCConfig(inject_layer=4))
    with pytest.raises(TypeError, match="config: expected a CCConfig, got dict"):
        patch_model(model, {"hard": True})
    assert [type(module) for module in model.modules()] == classes
    assert "cc" not in model._modules


@pytest.mark.parametrize("function", [unpatch_model, report])
def test_not_patched(function):
    with pytest.raises(ValueError, match="model: expected a patched model"):
        function(tiny_model())


def test_another_activation_falls_back():
    stock, model = pair(hidden_act="relu")
    assert torch.equal(model(batch()["input_ids"]).logits, stock(batch()["input_ids"]).logits)
    assert "not SiLU or GELU" in report(model).layers[0].reason
    assert model(**batch()).decision_weights is not None


def test_report_names_what_runs():
    _, model = pair(matrix=True)
    with torch.no_grad():
        model(batch()["input_ids"], **at_end(batch()["input_ids"]))
    text = str(report(model))
    assert "layers 0-3: fused" in text
    assert "simulated by the Transform Matrix (one matrix)" in text
    assert "last connected prompt: one prefill" in text


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_spec_table_is_complete(model_type):
    assert spec_of(tiny_model(model_type)).mlp == "mlp"


IMPORTS = """
import sys
sys.modules["triton"] = None
import cc_kernels, cc_model
import torch
assert not torch.cuda.is_initialized()
assert "datasets" not in sys.modules and "peft" not in sys.modules and "matplotlib" not in sys.modules
print(cc_kernels.swiglu(torch.zeros(2), torch.ones(2)).tolist())
"""


def test_imports_without_triton():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[0.0, 0.0]"


def test_kernels_do_not_import_transformers():
    code = "import sys, cc_kernels; assert 'transformers' not in sys.modules and 'cc_model' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_random_matrix_scale():
    model = patch_model(tiny_model())
    assert random_matrix(model, scale=2.0).std().item() == pytest.approx(2.0 / 8, rel=0.1)

"""Adapters of PEFT that put virtual tokens before the prompt: never a connection at the wrong token."""

from __future__ import annotations

import pytest
import torch
from adapters import lora, peft
from model_pairs import pair

from cc_model import connection_disabled, patch_model, unpatch_model
from cc_model.scoring import score_choices
from cc_model.testing import random_matrix, tiny_model

GREEDY = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
SHARED = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
CONFIGS = {
    "prompt tuning": lambda: peft.PromptTuningConfig(**SHARED),
    "p-tuning": lambda: peft.PromptEncoderConfig(**SHARED, encoder_hidden_size=16),
    "prefix tuning": lambda: peft.PrefixTuningConfig(**SHARED),
    "multitask": lambda: peft.MultitaskPromptTuningConfig(**SHARED, num_tasks=2),
}
ORDERS = ["patch first", "adapter first"]
pytestmark = pytest.mark.filterwarnings("ignore:Position ids are not supported")


def wrapped(name, order="patch first", matrix=True):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if order == "patch first":
            model = peft.get_peft_model(pair()[1], CONFIGS[name]())
        else:
            model = patch_model(peft.get_peft_model(tiny_model(initializer_range=0.15), CONFIGS[name]()))
    if matrix:
        model.get_base_model().cc.transform_matrix = random_matrix(model.get_base_model())
    return model.eval()


def prompt():
    ids = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("given", ["the matrix", "the English prompt", "an index"])
def test_generate_raises_before_anything_runs(given, name, order):
    model = wrapped(name, order, matrix=given != "the English prompt")
    ran = []
    model.get_base_model().lm_head.register_forward_hook(lambda *_: ran.append(1))
    options = {
        "the matrix": {},
        "the English prompt": {"pivot_input_ids": prompt()["input_ids"]},
        "an index": {"connection_index": torch.tensor([4, 8])},
    }[given]
    for _ in range(2):  # PEFT leaves its method on the model after the first call
        with pytest.raises(ValueError, match="generate: an adapter with virtual tokens before the prompt"):
            model.generate(**prompt(), **options, **GREEDY)
    assert not ran


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["prompt tuning", "p-tuning"])
def test_plain_generate_is_peft_s_own(name, order):
    model = wrapped(name, order)
    with connection_disabled(model), torch.no_grad():
        expected = model(**prompt()).logits[:, -1]
        found = model.generate(**prompt(), **GREEDY).logits[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_a_forward_connects_where_it_is_told(order):
    """The index counts through the virtual tokens, too; without one it is not guessed."""
    model = wrapped("prompt tuning", order)
    index = torch.tensor([11, 11])
    with torch.no_grad():
        with pytest.raises(ValueError, match="connection_index: expected the token of each row"):
            model(**prompt())
        output = model(**prompt(), connection_index=index)
        prefix = model.get_prompt(batch_size=2)
        embeds = torch.cat([prefix, model.get_input_embeddings()(prompt()["input_ids"])], dim=1)
        expected = model.get_base_model()(inputs_embeds=embeds, connection_index=index)
    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-5)
    assert output.decision_weights.sum() == 2


def test_an_index_behind_a_filled_cache():
    """Prefix tuning fills the cache before the prompt: what is told is done there, too, in one prefill or in two."""
    model = wrapped("prefix tuning")
    index = torch.tensor([8, 4])
    with torch.no_grad():
        one = model(**prompt(), connection_index=index)
    two = model(**prompt(), connection_index=index)
    assert model.get_base_model().cc.prefills.startswith("two prefills")
    torch.testing.assert_close(one.logits, two.logits, rtol=0, atol=1e-5)
    with connection_disabled(model), torch.no_grad():
        plain = model(**prompt()).logits
    torch.testing.assert_close(one.logits[0, :8], plain[0, :8], rtol=0, atol=1e-5)
    torch.testing.assert_close(one.logits[1, :4], plain[1, :4], rtol=0, atol=1e-5)
    assert not torch.allclose(one.logits[0, 8], plain[0, 8], atol=1e-3)
    assert not torch.allclose(one.logits[1, 4], plain[1, 4], atol=1e-3)


def test_scoring_raises():
    with pytest.raises(ValueError, match="model: expected no virtual tokens before the prompts"):
        score_choices(wrapped("prompt tuning"), [[1, 2]], [[[3]]])


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("unpatched", ["the wrapper", "the model in it"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["prompt tuning", "lora"])
def test_unpatched_under_peft(name, order, unpatched, used):
    """PEFT keeps the bound method of the model that it wrapped; `generate` works on, and is the plain model's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = lora(modules_to_save=None) if name == "lora" else CONFIGS[name]()
        base = tiny_model(initializer_range=0.15)
        if order == "patch first":
            model = peft.get_peft_model(patch_model(base), config).eval()
        else:
            model = patch_model(peft.get_peft_model(base, config)).eval()
    with connection_disabled(model):
        expected = model.generate(**prompt(), **GREEDY).logits[0] if used else None
    unpatch_model(model if unpatched == "the wrapper" else base)
    found = model.generate(**prompt(), **GREEDY).logits[0]
    if expected is not None:
        assert torch.equal(found, expected)
    patch_model(model)
    with connection_disabled(model):
        assert torch.equal(model.generate(**prompt(), **GREEDY).logits[0], found)

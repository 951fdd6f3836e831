"""PEFT: what is warned of, because an adapter does not train or carry the Decision Maker."""

from __future__ import annotations

import logging

from adapters import adapted, lora, peft
from model_pairs import batch, pair
from torch import nn

from cc_model import patch_model, report
from cc_model.testing import tiny_model


def test_saved_decision_maker_that_was_not_loaded_warns(tmp_path, caplog):
    _, wrapped = adapted()
    wrapped.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_model(), tmp_path)
    with caplog.at_level(logging.WARNING, "cc_model"):
        patch_model(loaded)
    assert "names the Decision Maker, but was put on a model without one" in caplog.text


class OtherWrapper(nn.Module):
    """An adapter without the list of modules that it saves, as PEFT had for prompt tuning."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def get_base_model(self):
        return self.base


def test_adapter_that_saves_no_modules_warns(caplog):
    wrapped = OtherWrapper(tiny_model())
    with caplog.at_level(logging.WARNING, "cc_model"):
        patch_model(wrapped)
        patch_model(wrapped)
    assert caplog.text.count("OtherWrapper saves no modules of the model") == 1


def test_frozen_decision_maker_warns(caplog):
    _, model = pair()
    wrapped = peft.get_peft_model(model, lora(modules_to_save=None)).train()
    with caplog.at_level(logging.WARNING, "cc_model"):
        wrapped(**batch())
    assert "modules_to_save=['decision_maker']" in caplog.text
    assert "the Decision Maker is frozen" in str(report(model))


def test_a_decision_maker_that_an_adapter_trains_is_not_called_frozen(caplog):
    _, model = pair()
    wrapped = peft.get_peft_model(model, lora()).train()
    with caplog.at_level(logging.WARNING, "cc_model"):
        wrapped(**batch())
    assert "frozen" not in caplog.text

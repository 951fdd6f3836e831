"""One word per mode, one option per field of `CCConfig`; the examples of the common room."""

import dataclasses
import doctest
import importlib
import typing
from pathlib import Path

import pytest
import torch

from cc_model import CCConfig, patch_model
from cc_model.testing import random_matrix, tiny_model
from train.common.arguments import ModelArguments, connection_config
from train.common.connection_arguments import texts_of
from train.common.models import connect
from train.common.modes import ENGLISH, MATRIX, OFF, TITLES, VANILLA, answering

TRAIN = Path(__file__).parents[2] / "train"


@pytest.fixture(scope="module")
def models():
    fitted = patch_model(tiny_model("llama"))
    fitted.cc.transform_matrix = random_matrix(fitted, scale=50.0)
    return {"stock": tiny_model("llama"), "unfitted": patch_model(tiny_model("llama")), "fitted": fitted.eval()}


def test_modes_differ_in_what_the_model_reads(models):
    ids = torch.arange(2, 10)[None]
    first = {}
    for mode in (OFF, MATRIX, ENGLISH):
        with answering(models["fitted"], mode) as english:
            pivot = {"pivot_input_ids": ids + 20} if english else {}
            first[mode] = models["fitted"](ids, connection_index=torch.tensor([7]), **pivot).logits[0, -1]
            assert models["fitted"].cc.enabled == (mode != OFF)
            assert english == (mode == ENGLISH)
    assert models["fitted"].cc.enabled
    with answering(models["stock"], VANILLA):
        assert not torch.allclose(first[OFF], first[MATRIX])
    assert not torch.allclose(first[MATRIX], first[ENGLISH])
    assert torch.allclose(first[OFF], models["stock"].eval()(ids).logits[0, -1])


@pytest.mark.parametrize(
    ("model", "mode", "message"),
    [
        ("fitted", "connected", "mode: expected one of vanilla, off, matrix, english, got 'connected'"),
        ("fitted", VANILLA, "mode: vanilla is a model trained without .* the model was trained with the connection"),
        ("stock", OFF, "mode: off is the CC model .* the model was trained without the connection"),
        ("stock", MATRIX, "the model was trained without the connection"),
        ("unfitted", MATRIX, "mode: matrix needs a Transform Matrix"),
    ],
)
def test_modes_that_a_model_does_not_have(models, model, mode, message):
    with pytest.raises(ValueError, match=message), answering(models[model], mode):
        pass


def test_titles_say_what_the_words_mean():
    assert list(TITLES) == [VANILLA, OFF, MATRIX, ENGLISH]
    assert len(set(TITLES.values())) == 4


def test_every_field_of_the_configuration_is_an_option():
    options = {each.name: each for each in dataclasses.fields(ModelArguments)}
    types = typing.get_type_hints(CCConfig)
    for each in dataclasses.fields(CCConfig):
        option = options[each.name]
        assert (option.default, option.type) == (each.default, types[each.name])
        assert option.metadata["help"] == texts_of(CCConfig)[each.name] != ""
    given = {"inject_layer": 3, "temperature": 0.5, "hard": False, "pivot_grad": True}
    given |= {"simulated_share": 0.5, "connection_dropout": 0.25}
    assert connection_config(ModelArguments(**given)) == CCConfig(**given)
    assert set(given) == {each.name for each in dataclasses.fields(CCConfig)}


def test_texts_of_a_docstring():
    class Example:
        """First.

        Args:
            one: is the first
                of two.
            two: Second, `a: b`.

        Raises:
            three: none.
        """

    assert texts_of(Example) == {"one": "Is the first of two.", "two": "Second, `a: b`."}


def test_a_model_that_is_going_to_train_has_no_simulated_rows_yet():
    model = connect(tiny_model("llama"), CCConfig(simulated_share=0.5, inject_layer=1))
    assert (model.cc.config.simulated_share, model.cc.config.inject_layer) == (0.0, 1)


@pytest.mark.parametrize("path", sorted((TRAIN / "common").glob("*.py")), ids=lambda path: path.stem)
def test_docstring_examples(path):
    module = importlib.import_module(f"train.common.{path.stem}")
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0


@pytest.mark.parametrize("module", ["entries", "job", "statistics"])
def test_docstring_examples_of_the_experiment(module):
    result = doctest.testmod(importlib.import_module(f"train.experiment.{module}"))
    assert (result.failed, result.attempted > 0) == (0, True)

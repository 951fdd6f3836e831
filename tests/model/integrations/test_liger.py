"""Liger-Kernel before or after the patch, on classes or on the instance: same results, and no logits in training.

Its kernels run interpreted in a process of their own, which `test_kernels_interpreted` starts, or compiled on a GPU.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from liger_interpreted import INTERPRETED, teach_the_interpreter
from model_pairs import assert_same_gradients, at_end, batch, gradients, gumbel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import TrainingArguments

from benchmarks.measure.counting import peak_bytes
from cc_model import CCConfig, patch_model, report, unpatch_model
from cc_model.integrations.trainer import CCTrainer
from cc_model.testing import random_matrix, tiny_model

liger = pytest.importorskip("liger_kernel.transformers", reason="Liger is not installed (pip install liger-kernel)")

ON_GPU = torch.cuda.is_available()
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 512,
    "initializer_range": 0.15,
}
PARTS = ("rope", "rms_norm", "swiglu", "fused_linear_cross_entropy")
needs_kernels = pytest.mark.skipif(not (INTERPRETED or ON_GPU), reason="see test_kernels_interpreted")


@pytest.fixture(autouse=True)
def restore_transformers():
    """Liger puts its classes into the modules of transformers, also when it is told to patch one instance."""
    names = ("llama", "qwen2", "qwen3", "mistral")
    modules = [importlib.import_module(f"transformers.models.{name}.modeling_{name}") for name in names]
    before = [dict(vars(module)) for module in modules]
    forwards = [(value, value.forward) for kept in before for value in kept.values() if hasattr(value, "forward")]
    teach_the_interpreter()
    yield
    for module, kept in zip(modules, before):
        vars(module).update(kept)
    for cls, forward in forwards:
        if cls.forward is not forward:
            cls.forward = forward


def on_device(data):
    return {name: value.cuda() for name, value in data.items()} if ON_GPU else data


def small(model_type="llama"):
    model = tiny_model(model_type, **SMALL)
    return model.cuda() if ON_GPU else model


def patched(model, config=None, matrix=False):
    weight = patch_model(model, config).cc.decision_maker.weight
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    if matrix:
        model.cc.transform_matrix = random_matrix(model)
    return model


def with_liger(order, model_type="llama", parts=PARTS, config=None, matrix=False):
    """A patched model with Liger's kernels, put there before or after, on the classes or on the instance."""
    options = {name: name in parts for name in PARTS}
    apply = getattr(liger, f"apply_liger_kernel_to_{model_type}")
    if order == "classes, then patch":
        apply(**options)
        return patched(small(model_type), config, matrix)
    model = small(model_type)
    if order == "instance, then patch":
        apply(model=model, **options)
        return patched(model, config, matrix)
    apply(model=patched(model, config, matrix), **options)
    return model


def few_tokens():
    """An interpreted kernel takes its time with every token."""
    return on_device(batch(rows=2, main=6, pivot=5, prompt=3))


def step(model, **extra):
    model.train().zero_grad()
    output = model(**few_tokens(), gumbel_noise=gumbel(2, 2).to(model.device), **extra)
    output.loss.backward()
    return output, gradients(model)


ORDERS = ("classes, then patch", "instance, then patch", "patch, then instance")


@pytest.mark.parametrize("order", ORDERS)
def test_report_says_whose_feed_forward_runs(order):
    """On classes and without `swiglu` it is ours. On the instance it is Liger's, with our capture around it."""
    model = with_liger(order)
    theirs = "instance-level forward runs: LigerSwiGLUMLP.forward"
    assert (theirs in str(report(model))) == (order != "classes, then patch")
    assert report(model).layers[0].path == ("fused" if order == "classes, then patch" else "fallback")
    without = with_liger(order, parts=("rope", "rms_norm", "fused_linear_cross_entropy"))
    assert {layer.path for layer in report(without).layers} == {"fused"}


def test_unpatch_gives_the_module_of_liger_back():
    model = unpatch_model(with_liger("classes, then patch"))
    assert type(model.model.layers[0].mlp) is liger.LigerSwiGLUMLP


@needs_kernels
@pytest.mark.parametrize("order", ORDERS)
def test_training_step(order):
    config = CCConfig(pivot_grad=True)
    expected, gradients_expected = step(patched(small(), config))
    output, actual = step(with_liger(order, config=config))
    assert output.logits is None, "fused linear cross-entropy makes no logits in training"
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=2e-6)
    assert torch.equal(output.decision_weights, expected.decision_weights)
    assert_same_gradients(actual, gradients_expected, tolerance=5e-6)


@needs_kernels
def test_loss_counts_tokens_like_the_stock_one(architecture):
    """`num_items_in_batch`, which Trainer passes with gradient accumulation."""
    expected, gradients_expected = step(patched(small(architecture)), num_items_in_batch=50)
    model = with_liger("patch, then instance", architecture, parts=("fused_linear_cross_entropy",))
    output, actual = step(model, num_items_in_batch=50)
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=2e-6)
    assert_same_gradients(actual, gradients_expected, tolerance=5e-6)


@needs_kernels
@pytest.mark.parametrize("order", ORDERS)
def test_shared_pivots_and_labelled_tokens(order):
    """The fused loss takes the shifted labels of the labelled tokens, and still makes no logits."""
    data = few_tokens()
    rows = ((data["labels"][:, 1:] != -100).nonzero() * torch.tensor([6, 1], device=data["labels"].device)).sum(1)
    shared = {
        **data,
        "pivot_input_ids": data["pivot_input_ids"][:1],
        "pivot_attention_mask": data["pivot_attention_mask"][:1],
        "pivot_row": torch.zeros_like(rows[:2]),
        "loss_rows": torch.cat([rows, rows[:1] * 0 - 1]),
    }
    alone = {**data, "pivot_input_ids": data["pivot_input_ids"][[0, 0]]}
    alone["pivot_attention_mask"] = data["pivot_attention_mask"][[0, 0]]
    found = []
    for model, given in ((patched(small()), alone), (with_liger(order), shared)):
        model.train().zero_grad()
        output = model(**given, gumbel_noise=gumbel(2, 2).to(model.device))
        output.loss.backward()
        found.append((output, gradients(model)))
    assert found[1][0].logits is None
    torch.testing.assert_close(found[1][0].loss, found[0][0].loss, rtol=0, atol=2e-6)
    assert_same_gradients(found[1][1], found[0][1], tolerance=5e-6)


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation returns."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.nbytes for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.bytes = max([self.bytes, *sizes])
        return result


@needs_kernels
def test_no_logits_are_made():
    """The stock head makes B · T · V logits; without them no tensor is larger than the head's weight, V · d."""
    data = on_device(batch(main=40, prompt=30))
    largest = {}
    for name in ("stock", "liger"):
        model = patched(small())
        if name == "liger":
            liger.apply_liger_kernel_to_llama(model=model, rope=False, rms_norm=False, swiglu=False)
        with Largest() as mode:
            model.train()(**data).loss.backward()
        largest[name] = mode.bytes
    assert largest["stock"] >= 4 * 3 * 40 * 512
    assert largest["liger"] == 4 * 512 * 32


@needs_kernels
def test_peak_memory_of_a_training_step():
    """Many words and few tokens: logits and their gradients are most of what the stock step holds at once."""
    words, tokens = 8192, 2 * 64
    data = on_device(batch(rows=2, main=64, pivot=5))
    peaks = {}
    for name in ("stock", "liger"):
        model = patched(
            tiny_model("llama", **{**SMALL, "vocab_size": words, "use_cache": False}).to(data["labels"].device)
        )
        if name == "liger":
            liger.apply_liger_kernel_to_llama(model=model, rope=False, rms_norm=False, swiglu=False)
        for _ in range(2):
            model.train().zero_grad()
            peaks[name] = peak_bytes(lambda m=model: m(**data).loss.backward(), model.device)
    logits = 4 * tokens * words
    print({name: f"{peak / 2**20:.2f} MiB" for name, peak in peaks.items()}, f"logits {logits / 2**20:.2f} MiB")
    assert peaks["liger"] <= peaks["stock"] - 1.5 * logits


@needs_kernels
def test_evaluation_and_generation():
    model = with_liger("patch, then instance", parts=("rms_norm", "swiglu", "fused_linear_cross_entropy"), matrix=True)
    expected = patched(small(), matrix=True)
    ids = few_tokens()["input_ids"]
    with torch.no_grad():
        found, right = model.eval()(ids, **at_end(ids)).logits, expected.eval()(ids, **at_end(ids)).logits
        torch.testing.assert_close(found, right, rtol=0, atol=2e-5)
    options = {"max_new_tokens": 2, "do_sample": False}
    assert torch.equal(model.generate(ids, **options), expected.generate(ids, **options))


@needs_kernels
def test_trainer_with_use_liger_kernel(tmp_path):
    """Trainer applies Liger to the patched instance; evaluation passes `skip_logits` to its forward."""
    found = []
    for use in (False, True):
        model = patched(small())
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            report_to=[],
            use_cpu=not ON_GPU,
            disable_tqdm=True,
            max_steps=1,
            logging_steps=1,
            per_device_train_batch_size=2,
            prediction_loss_only=True,
            remove_unused_columns=False,
            save_strategy="no",
            use_liger_kernel=use,
            liger_kernel_config={"rope": False, "rms_norm": False},
        )
        rows = [{name: value[b] for name, value in few_tokens().items()} for b in range(2)]
        trainer = CCTrainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
        torch.manual_seed(0)
        trainer.train()
        found.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        found[-1].append(trainer.evaluate()["eval_loss"])
        assert ("instance-level forward" in str(report(model))) == use
        assert trainer.state.log_history[0]["decision/rows"] == 2
    assert found[1] == pytest.approx(found[0], abs=1e-4)


@pytest.mark.skipif(INTERPRETED or ON_GPU, reason="the kernels run in this process")
def test_kernels_interpreted():
    """Triton reads TRITON_INTERPRET when it is imported, so interpreted kernels need a process of their own."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", __file__, "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "1 skipped" in done.stdout, "only this test does not run there"

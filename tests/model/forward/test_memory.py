"""Peak memory of a training step: the English pass leaves its bank behind, and nothing else."""

from __future__ import annotations

import pytest
import torch
from model_pairs import batch, pair

from benchmarks.measure.counting import peak_bytes
from cc_model import CCConfig, save_memory

ROWS, TOKENS, PIVOT_TOKENS, LAYERS, WIDTH = 8, 192, 192, 6, 64
CPU = torch.device("cpu")
BANK = LAYERS * ROWS * WIDTH * 4  # bytes, fp32


def test_the_measure():
    """Two tensors of a MiB at once, a third after them, and a temporary within an operation's result."""

    def step():
        first, second = torch.ones(2**18), torch.ones(2**18)
        del first, second
        torch.ones(2**18)

    assert peak_bytes(step, CPU) == 2 * 2**20


def step_peak(model, data):
    """Peak of forward and backward of the second step, gradients included."""
    for _ in range(2):
        model.train().zero_grad()
        peak = peak_bytes(lambda: model(**data).loss.backward(), CPU)
    return peak


@pytest.fixture(scope="module")
def peaks():
    """The same rows: stock, patched without the English prompts, with them, and with a gradient through them."""
    data = batch(rows=ROWS, main=TOKENS, pivot=PIVOT_TOKENS)
    plain = {name: value for name, value in data.items() if not name.startswith("pivot")}
    options = {"num_hidden_layers": LAYERS, "use_cache": False}
    stock, model = pair("llama", **options)
    _, with_gradient = pair("llama", CCConfig(pivot_grad=True), **options)
    return {
        "stock": step_peak(stock, plain),
        "plain": step_peak(model, plain),
        "connected": step_peak(model, data),
        "pivot_grad": step_peak(with_gradient, data),
    }


@pytest.mark.parametrize("base", ["stock", "plain"])
def test_peak_is_the_plain_step_and_the_bank(peaks, base):
    """Within 2 %, although the English prompts are as long as the main rows."""
    print({name: f"{value / 2**20:.2f} MiB" for name, value in peaks.items()}, f"bank {BANK / 2**20:.2f} MiB")
    assert peaks["connected"] <= 1.02 * peaks[base] + BANK


def test_pivot_grad_keeps_the_activations_of_the_english_pass(peaks):
    """What the bound above would see, were the English pass to keep its graph."""
    assert peaks["pivot_grad"] > 1.5 * peaks["connected"]


def test_save_memory_leaves_one_activation_less_per_layer():
    """Of each but the layer in work, which has its product again while its backward runs."""
    data = batch(rows=ROWS, main=TOKENS, pivot=PIVOT_TOKENS)
    options = {"num_hidden_layers": LAYERS, "use_cache": False, "intermediate_size": 512}
    _, model = pair("llama", **options)
    before, after = step_peak(model, data), step_peak(save_memory(model), data)
    product = ROWS * TOKENS * 512 * 4
    print(f"{before / 2**20:.2f} MiB, {after / 2**20:.2f} MiB, a product {product / 2**20:.2f} MiB")
    assert before - after == pytest.approx((LAYERS - 1) * product, rel=0.05)

"""The Transform Matrix: against `lstsq`, streaming, options, report; errors stand in `test_fit_errors.py`."""

from __future__ import annotations

import gc

import pytest
import torch
from model_pairs import ARCHITECTURES, pair
from oracle import capture

from cc_model import fit_transform_matrix, patch_model
from cc_model.distributed import Processes
from cc_model.matrix.statistics import LeastSquares, Reservoir
from cc_model.testing import tiny_model


def pairs(count=30, rows=6, seed=0):
    """Batches of prompt pairs, right-padded on both sides."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, rows):
        size = min(rows, count - start)
        made = {
            "input_ids": torch.randint(256, (size, 9), generator=generator),
            "pivot_input_ids": torch.randint(256, (size, 7), generator=generator),
            "ignored": "columns",
        }
        for side, length in (("", 9), ("pivot_", 7)):
            mask = torch.ones(size, length, dtype=torch.long)
            for b in range(size):
                mask[b, length - b % 3 :] = 0
            made[f"{side}attention_mask"] = mask
        yield made


def stacked(stock, batches):
    """A and E `(L, N, d)` by the oracle."""
    sides = {"": [], "pivot_": []}
    with torch.no_grad():
        for batch in batches:
            for side, found in sides.items():
                mask = batch[f"{side}attention_mask"]
                found.append(capture(stock, batch[f"{side}input_ids"], mask, (mask.sum(1) - 1).tolist()))
    return torch.cat(sides[""], 1), torch.cat(sides["pivot_"], 1)


def lstsq(source, target):
    return torch.linalg.lstsq(source.double(), target.double(), driver="gelsd").solution.float()


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_equals_lstsq(model_type):
    stock, model = pair(model_type)
    fit_transform_matrix(model, pairs(), progress=False)
    source, target = stacked(stock, pairs())
    expected = lstsq(source.flatten(0, 1), target.flatten(0, 1))
    torch.testing.assert_close(model.cc.transform_matrix, expected, rtol=1e-4, atol=1e-5)


def test_rank_deficient_is_minimum_norm():
    stock, model = pair()
    report = fit_transform_matrix(model, pairs(count=8), progress=False)
    source, target = stacked(stock, pairs(count=8))
    expected = lstsq(source.flatten(0, 1), target.flatten(0, 1))
    torch.testing.assert_close(model.cc.transform_matrix, expected, rtol=1e-4, atol=1e-5)
    assert (report.rank, report.width) == (32, 64)
    assert report.overall.r2 == pytest.approx(1.0, abs=1e-4), "fewer rows than columns: an exact fit"


def test_per_layer():
    stock, model = pair()
    fit_transform_matrix(model, pairs(count=90), per_layer=True, progress=False)
    source, target = stacked(stock, pairs(count=90))
    assert tuple(model.cc.transform_matrix.shape) == (4, 64, 64)
    for layer in range(4):
        expected = lstsq(source[layer], target[layer])
        torch.testing.assert_close(model.cc.transform_matrix[layer], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("per_layer", [False, True])
def test_affine(per_layer):
    stock, model = pair()
    fit_transform_matrix(model, pairs(count=90), affine=True, per_layer=per_layer, progress=False)
    source, target = stacked(stock, pairs(count=90))
    for layer in range(4 if per_layer else 1):
        rows, wanted = (source[layer], target[layer]) if per_layer else (source.flatten(0, 1), target.flatten(0, 1))
        expected = lstsq(torch.cat([rows, torch.ones(len(rows), 1)], 1), wanted)
        matrix = model.cc.transform_matrix[layer] if per_layer else model.cc.transform_matrix
        bias = model.cc.transform_bias[layer] if per_layer else model.cc.transform_bias
        torch.testing.assert_close(matrix, expected[:-1], rtol=1e-3, atol=2e-4)
        torch.testing.assert_close(bias, expected[-1], rtol=1e-3, atol=2e-4)


def test_a_large_report_of_a_small_fit():
    """`report_rows` is a bound: what is allocated follows the prompts."""
    model = patch_model(tiny_model("llama"))
    report = fit_transform_matrix(model, pairs(), report_rows=10**9, progress=False)
    assert report.sample.startswith("120 rows of 30 prompts")
    reservoir = Reservoir(10**9, (1, 2))
    for count in (3, 1, 5):
        rows = torch.rand(1, count, 2)
        reservoir.add(rows, rows)
    assert reservoir.rows.shape == (2, 12, 1, 2)
    assert torch.equal(reservoir.share(Processes(None))[0][:, 4:], rows)


@pytest.mark.parametrize(
    ("count", "options", "warned"),
    [
        (30, {}, "120 activations for a matrix of 64 x 64"),
        (32, {}, None),  # 4 layers: 128 activations
        (30, {"ridge": 0.1}, None),
        (32, {"per_layer": True}, "32 activations for a matrix"),
    ],
)
def test_few_activations_are_warned_of(count, options, warned, caplog):
    fit_transform_matrix(patch_model(tiny_model("llama")), pairs(count), progress=False, **options)
    said = [record.getMessage() for record in caplog.records if "activations for a matrix" in record.getMessage()]
    assert len(said) == (warned is not None)
    assert warned is None or warned in said[0]


def test_fitting_again_without_affine_drops_the_bias():
    _, model = pair()
    fit_transform_matrix(model, pairs(), affine=True, progress=False)
    assert model.cc.transform_bias is not None
    fit_transform_matrix(model, pairs(), progress=False)
    assert model.cc.transform_bias is None


def test_ridge():
    stock, model = pair()
    fit_transform_matrix(model, pairs(), ridge=3.0, progress=False)
    source, target = (side.flatten(0, 1).double() for side in stacked(stock, pairs()))
    gram = source.T @ source + 3.0 * torch.eye(64, dtype=torch.float64)
    torch.testing.assert_close(model.cc.transform_matrix, torch.linalg.solve(gram, source.T @ target).float())


def test_batching_and_order_do_not_matter():
    _, model = pair()
    fit_transform_matrix(model, pairs(rows=6), progress=False)
    whole = model.cc.transform_matrix.clone()
    singles = [
        {name: value[b : b + 1] for name, value in batch.items() if name != "ignored"}
        for batch in pairs(rows=6)
        for b in range(batch["input_ids"].shape[0])
    ]
    fit_transform_matrix(model, reversed(singles), progress=False)
    torch.testing.assert_close(model.cc.transform_matrix, whole, rtol=1e-4, atol=1e-5)


def test_report_equals_its_definition():
    stock, model = pair()
    report = fit_transform_matrix(model, pairs(), progress=False)
    source, target = stacked(stock, pairs())
    mapped = source @ model.cc.transform_matrix
    cosine = torch.nn.functional.cosine_similarity
    for layer, quality in enumerate(report.layers):
        residual = (mapped[layer] - target[layer]).square()
        spread = (target[layer] - target[layer].mean(0)).square()
        assert quality.mse == pytest.approx(residual.mean().item(), rel=1e-4)
        assert quality.r2 == pytest.approx(1 - (residual.sum() / spread.sum()).item(), abs=1e-4)
        assert quality.cosine == pytest.approx(cosine(mapped[layer], target[layer], dim=-1).mean().item(), abs=1e-5)
        assert quality.cosine_before == pytest.approx(
            cosine(source[layer], target[layer], dim=-1).mean().item(), abs=1e-5
        )
    assert report.overall.mse == pytest.approx((mapped - target).square().mean().item(), rel=1e-4)
    assert "120 rows of 30 prompts (in-sample: pairs of the fit)" in str(report)
    assert str(report).count("\n") == 6


def test_holdout_is_not_fitted():
    _, model = pair()
    report = fit_transform_matrix(model, pairs(count=200), holdout=0.25, progress=False, seed=3)
    assert report.pairs + report.held_out == 200
    assert 30 <= report.held_out <= 70
    assert "held-out pairs" in report.sample
    in_sample = fit_transform_matrix(model, pairs(count=200), progress=False).overall.r2
    assert report.overall.r2 < in_sample, "unrelated prompts: what is not fitted is predicted worse"


def test_unusable_pairs_are_skipped_and_counted():
    _, model = pair()
    fit_transform_matrix(model, pairs(), progress=False)
    expected = model.cc.transform_matrix.clone()

    def spoiled():
        for batch in pairs():
            extra = {name: torch.cat([value, value[:2]]) for name, value in batch.items() if name != "ignored"}
            extra["pivot_attention_mask"][-1] = 0
            extra["connection_index"] = extra["attention_mask"].sum(1) - 1
            extra["connection_index"][-2] = -1
            yield extra

    report = fit_transform_matrix(model, spoiled(), progress=False)
    assert report.skipped == 10
    torch.testing.assert_close(model.cc.transform_matrix, expected, rtol=1e-5, atol=1e-6)


def storage_alive():
    """Bytes of all distinct tensor storages that Python can reach."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if type(item) is torch.Tensor and item.layout is torch.strided]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def test_memory_does_not_grow_with_the_number_of_pairs():
    """The storage alive before each batch stays what it was: nothing is stacked, no view keeps a batch."""
    _, model = pair()
    alive = []

    def watched():
        for batch in pairs(count=200, rows=5):
            alive.append(storage_alive())
            yield batch

    fit_transform_matrix(model, watched(), progress=False, report_rows=40)
    settled = alive[5:]  # by then the report's sample of 10 prompts is full
    one_batch = 4 * 5 * 64 * 4  # one captured bank, in bytes; the 40 batches hold 80
    assert max(settled) - min(settled) <= 2 * one_batch


def test_mode_and_connection_are_left_alone():
    _, model = pair(matrix=True)
    model.train()
    model.model.layers[1].eval()
    fit_transform_matrix(model, pairs(), progress=False)
    assert model.training
    assert not model.model.layers[1].training
    first = model.cc.transform_matrix.clone()
    fit_transform_matrix(model, pairs(), progress=False)
    assert torch.equal(model.cc.transform_matrix, first), "the matrix in use must not change what is captured"


def test_bf16_model_gets_a_bf16_matrix():
    _, model = pair()
    model.to(torch.bfloat16)
    fit_transform_matrix(model, pairs(), progress=False)
    assert model.cc.transform_matrix.dtype == torch.bfloat16
    assert torch.isfinite(model.cc.transform_matrix).all()


def test_progress_bar(capsys):
    _, model = pair()
    fit_transform_matrix(model, pairs())
    assert "fit Transform Matrix: 5batch" in capsys.readouterr().err


def test_activations_that_are_not_finite():
    model = patch_model(tiny_model())
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="input_ids: expected finite feed-forward activations"):
        fit_transform_matrix(model, pairs(), progress=False)
    assert model.cc.transform_matrix is None


def test_statistics_in_float64():
    """Large offsets: what fp32 sums would lose."""
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(1, 5000, 3, generator=generator, dtype=torch.float64) + 1e4
    truth = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    fit = LeastSquares(1, 3, torch.device("cpu"))
    for part in source.split(100, dim=1):
        fit.add(part, part @ truth)
    torch.testing.assert_close(fit.solve()[0][0], truth, rtol=1e-6, atol=1e-6)

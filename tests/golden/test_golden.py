"""The published implementation's numbers, reproduced. See README.md in this folder for what was recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from cc_model import CCConfig, connection_disabled, fit_transform_matrix, patch_model

TOLERANCE = 1e-5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FOLDER = Path(__file__).parent
ARCHITECTURES = sorted(path.name for path in FOLDER.iterdir() if (path / "model.safetensors").is_file())


@pytest.fixture(params=ARCHITECTURES)
def folder(request):
    return FOLDER / request.param


def recorded(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path, device=DEVICE)


def recorded_model(folder: Path, **options):
    """A patched model with the recorded weights."""
    weights = recorded(folder / "model.safetensors")
    decision = weights.pop("model.source_select.weight")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).eval()
    model.load_state_dict(weights)
    patch_model(model, CCConfig(**options))
    with torch.no_grad():
        model.cc.decision_maker.weight.copy_(decision)
    return model.to(DEVICE)


def training_inputs(step: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        "input_ids": step["input_ids"],
        "attention_mask": step["attention_mask"],
        "labels": step["labels"],
        "pivot_input_ids": step["input_ids_aux"],
        "connection_index": step["pos_main"],
        "pivot_index": step["pos_aux"],
        "gumbel_noise": step["gumbel_noise"],
    }


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected.reshape(actual.shape), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("record", "pivot_grad"), [("train", True), ("train_detached", False)])
def test_training_step(folder, record, pivot_grad):
    step, gradients = recorded(folder / "train.safetensors"), recorded(folder / f"{record}.safetensors")
    model = recorded_model(folder, pivot_grad=pivot_grad).train()
    output = model(**training_inputs(step))
    close(output.loss, step["loss"])
    close(output.logits, step["logits"])
    assert torch.equal(output.decision_weights, step["selection_onehot"])
    output.loss.backward()
    names = {name for name in gradients if name.startswith("grad.")}
    for name, parameter in model.named_parameters():
        key = "grad.model.source_select.weight" if name == "cc.decision_maker.weight" else f"grad.{name}"
        close(parameter.grad, gradients[key])
        names.remove(key)
    assert not names, f"recorded gradients without a parameter: {names}"


def test_hidden_states(folder):
    step = recorded(folder / "train.safetensors")
    model = recorded_model(folder).train()
    output = model(**training_inputs(step), output_hidden_states=True)
    close(output.hidden_states[1], step["hidden_layer0_fused"])
    close(output.hidden_states[-1], step["hidden_final_norm"])
    with connection_disabled(model):
        plain = model(**training_inputs(step), output_hidden_states=True)
    close(plain.hidden_states[1], step["hidden_layer0_prefusion"])
    close(plain.logits, step["vanilla_logits"])
    close(plain.loss, step["vanilla_loss"])


def test_edge_positions(folder):
    """Rows whose marker was missing or last: the recorded index, given explicitly, padding included."""
    step = recorded(folder / "train_edge.safetensors")
    model = recorded_model(folder).train()
    output = model(**training_inputs(step), output_hidden_states=True)
    close(output.loss, step["loss"])
    assert torch.equal(output.decision_weights, step["selection_onehot"])
    close(output.hidden_states[1], step["hidden_layer0_fused"])


@pytest.mark.parametrize("prefix", ["", "small."])
def test_transform_matrix(folder, prefix):
    record = recorded(folder / "matrix.safetensors")
    pick = {
        name: record[prefix + name] for name in ("src_ids", "tgt_ids", "src_len", "tgt_len", "src_pos", "tgt_pos", "X")
    }

    def batches():
        for n in range(pick["src_ids"].shape[0]):
            source, target = (pick[f"{side}_ids"][n : n + 1, : pick[f"{side}_len"][n]] for side in ("src", "tgt"))
            yield {
                "input_ids": source,
                "attention_mask": torch.ones_like(source),
                "pivot_input_ids": target,
                "pivot_attention_mask": torch.ones_like(target),
                "connection_index": pick["src_pos"][n : n + 1],
                "pivot_index": pick["tgt_pos"][n : n + 1],
            }

    model = recorded_model(folder)
    report = fit_transform_matrix(model, batches(), progress=False)
    close(model.cc.transform_matrix, pick["X"])
    rows = pick["src_ids"].shape[0] * model.config.num_hidden_layers
    assert report.rank == min(rows, model.config.hidden_size)


@pytest.mark.parametrize("prompt", ["p0", "p1", "p2"])
def test_generation(folder, prompt):
    record = recorded(folder / "infer.safetensors")
    model = recorded_model(folder)
    ids, index = record[f"{prompt}.input_ids"][None], record[f"{prompt}.pos"]
    options = {"max_new_tokens": 16, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    plain = model.generate(ids, **options)
    assert plain.sequences[0, ids.shape[1] :].tolist() == record[f"{prompt}.vanilla.tokens"].tolist()
    model.cc.transform_matrix = record["matrix_X"]
    output = model.generate(ids, connection_index=index, **options)
    assert output.sequences[0, ids.shape[1] :].tolist() == record[f"{prompt}.zero.tokens"].tolist()
    close(torch.cat(output.logits), record[f"{prompt}.zero.step_logits"])
    assert model.cc.prefills == "one prefill"


@pytest.mark.parametrize("prompt", ["p0", "p1", "p2"])
def test_inference_with_noise(folder, prompt):
    record = recorded(folder / "infer.safetensors")
    model = recorded_model(folder)
    model.cc.transform_matrix = record["matrix_X"]
    with torch.no_grad():
        output = model(
            record[f"{prompt}.input_ids"][None],
            connection_index=record[f"{prompt}.pos"],
            gumbel_noise=record[f"{prompt}.noise.gumbel_noise"],
        )
    close(output.logits[0, -1], record[f"{prompt}.noise.prefill_logits_last"])
    assert torch.equal(output.decision_weights, record[f"{prompt}.noise.selection_onehot"])

"""What the connection does before it is learned: the forced choice is the layer's row, added where it is said."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from tiny_llama import SCRATCH

from train.experiment.at_start import main, render
from train.experiment.data import load
from train.experiment.settings import Condition, read_settings
from train.experiment.training import make_model


@pytest.fixture
def config(tmp_path):
    entries = {"scratch": SCRATCH, "vocab_size": 400, "languages": ["en", "de"], "relations": ["currency"]}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**entries, "conditions": {"vanilla": {"method": "vanilla"}}}))
    return path


def answers_loss(model, batch, added_at=None, rows=None):
    """Nats per answer token, mean over rows, of the stock model; a hook adds `rows` to a feed-forward output."""
    hook = None
    if rows is not None:

        def add(module, inputs, output):
            changed = output.clone()
            changed[torch.arange(len(rows)), batch["connection_index"]] += rows
            return changed

        hook = model.model.layers[added_at].mlp.register_forward_hook(add)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    if hook is not None:
        hook.remove()
    labels = batch["labels"][:, 1:]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return (losses.sum(1) / (labels != -100).sum(1)).mean().item()


@torch.no_grad()
def test_changes_are_those_of_hooks(config, tmp_path):
    main([str(config), "--inject", "0", "1", "--questions", "6", "--out", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "at_start.json").read_text())
    settings = read_settings(config)
    data = load(settings, 0)
    model, collator = make_model(settings, Condition("vanilla"), data, 0)
    batch = collator(data.questions[:6])
    captured = {}
    hooks = [
        layer.mlp.register_forward_hook(lambda module, inputs, output, n=number: captured.__setitem__(n, output))
        for number, layer in enumerate(model.eval().model.layers)
    ]
    model(input_ids=batch["pivot_input_ids"], attention_mask=batch["pivot_attention_mask"])
    for hook in hooks:
        hook.remove()
    last = batch["pivot_attention_mask"].cumsum(1).argmax(1)
    english = {n: output[torch.arange(len(last)), last][batch["pivot_row"]] for n, output in captured.items()}
    off = answers_loss(model, batch)
    assert found["off"] == pytest.approx(off, abs=1e-3)
    for at in (0, 1):
        expected = [answers_loss(model, batch, at, english[layer]) - off for layer in (0, 1)]
        assert found["change"][str(at)] == pytest.approx(expected, abs=1e-3)
        assert max(map(abs, expected)) > 0.01
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "| row of layer | added at 0 | added at 1 |" in report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--inject", "9"], "inject_layer: expected a layer below 2, got 9"),
        (["--questions", "0"], "--questions: expected 1 or more, got 0"),
        (["--model", "somewhere"], "model: expected either model or scratch, got both"),
    ],
)
def test_wrong_options(config, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        main([str(config), "--out", str(tmp_path / "out"), *arguments])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_committed_report_says_what_was_measured():
    folder = Path(__file__).parents[2] / "docs" / "experiments" / "at_start"
    found = json.loads((folder / "at_start.json").read_text())
    assert (folder / "report.md").read_text(encoding="utf-8") == "\n".join(render(found)) + "\n"

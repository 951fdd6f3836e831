"""What the connection does to a model that has not learned to use it: every layer's English row, added at some layers.

    python -m train.experiment.at_start train/configs/experiment_distil_smollm2_cpu.yaml --inject 0 16 24 --out DIR

The model of an experiment's config answers held-out questions as it is. For each inject layer and
each captured layer the Decision Maker is made to choose that layer, and the report has the change of the right answers'
likelihood against the same model without the connection (nats per answer token, less is better). A model learns from
there: a row that costs several nats has first to be unlearned.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cc_model import CCConfig, connection_disabled, patch_model, pivot_bank, unpatch_model
from cc_model.data.columns import PIVOT_ARGUMENTS
from cc_model.files import write_text
from train.common.files import output_folder
from train.common.reports import markdown_table
from train.experiment.data import load
from train.experiment.job import answer_nll
from train.experiment.settings import Condition, Settings, read_settings
from train.experiment.training import make_model

SURE = 1e6  # noise that no logit outweighs


def measured(settings: Settings, inject: Sequence[int], questions: int, seed: int = 0) -> dict[str, Any]:
    """The likelihood without the connection, and its change for each inject and captured layer.

    Args:
        settings: of an experiment; their model, data and seeds' splits are used, none of their conditions.
        inject: layers to whose feed-forward output the row is added.
        questions: how many held-out questions are asked.
        seed: of the split, and of a new model's weights.

    Returns:
        `model`, `questions`; `off`: nats per answer token; `change`: by inject layer one number per captured layer.

    Raises:
        ValueError: an inject layer that the model does not have.
    """
    data = load(settings, seed)
    model, collator = make_model(settings, Condition("vanilla"), data, seed)
    batch = {name: value.to(model.device) for name, value in collator(data.questions[:questions]).items()}
    rows, layers = len(batch["input_ids"]), model.config.num_hidden_layers
    main = {name: value for name, value in batch.items() if name not in PIVOT_ARGUMENTS and name != "batch_shape"}
    found: dict[str, Any] = {"model": str(settings.model or "a new one"), "questions": rows, "change": {}}
    for layer in inject:
        patch_model(model, CCConfig(inject_layer=layer)).eval()
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=settings.bf16):
            bank = pivot_bank(model, batch)
            with connection_disabled(model):
                off = _mean(answer_nll(model, dict(main)))
            read = batch.get("pivot_row", torch.arange(rows, device=model.device))
            changes = []
            for captured in range(layers):
                noise = torch.zeros(rows, layers, device=model.device)
                noise[:, captured] = SURE
                reads: dict[str, Any] = {"pivot_bank": bank, "pivot_row": read, "gumbel_noise": noise}
                changes.append(round(_mean(answer_nll(model, {**main, **reads})) - off, 4))
        found["off"], found["change"][str(layer)] = round(off, 4), changes
        unpatch_model(model)
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def render(found: Mapping[str, Any]) -> list[str]:
    """The report's lines.

    Example:
        >>> lines = render({"model": "m", "questions": 2, "off": 1.5, "change": {"0": [0.25, -0.01]}})
        >>> lines[-2:]
        ['| 0 | +0.250 |', '| 1 | −0.010 |']
    """
    layers = range(len(next(iter(found["change"].values()))))
    rows = [
        (str(layer), *(f"{change[layer]:+.3f}".replace("-", "−") for change in found["change"].values()))
        for layer in layers
    ]
    return [
        "# What the connection does before it is learned",
        "",
        f"Model: {Path(found['model']).name}, as it is. {found['questions']} held-out questions; without the "
        f"connection the right answers have {found['off']:.3f} nats per token. The numbers are what the English row "
        "of a layer changes in that when it is added at another layer; less is better.",
        "",
        *markdown_table(("row of layer", *(f"added at {layer}" for layer in found["change"])), rows),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m train.experiment.at_start", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("config", help="YAML file of an experiment")
    parser.add_argument("--model", metavar="DIR", help="instead of the config's")
    parser.add_argument("--inject", type=int, nargs="+", default=[0], metavar="LAYER", help="where rows are added")
    parser.add_argument("--questions", type=int, default=48, help="how many are asked")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--out", required=True, metavar="DIR", help="where at_start.json and report.md are written")
    given = parser.parse_args(arguments)
    if given.questions < 1:
        parser.error(f"--questions: expected 1 or more, got {given.questions}")
    try:
        found = measured(read_settings(given.config, model=given.model), given.inject, given.questions, given.seed)
        folder = output_folder(Path(given.out), "out")
    except ValueError as error:
        parser.error(str(error))
    write_text(folder / "at_start.json", json.dumps(found) + "\n")
    write_text(folder / "report.md", "\n".join(render(found)) + "\n")
    print("\n".join(render(found)))


if __name__ == "__main__":
    main()

__all__ = ["main", "measured", "render"]

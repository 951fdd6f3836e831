"""`python -m benchmarks.families`: writes the table of docs/models.md from `SPECS` and tiny models of each family.

What a line says is asked from a tiny model: the classes are those that load its config, "fused" is its report, and the
way of generation is the one that a prompt of 40 tokens took, longer than the sliding windows of these models.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import transformers
from torch import nn

from cc_model import patch_model, report
from cc_model.specs import SPECS
from cc_model.testing import random_matrix, tiny_model

DOCUMENT = Path(__file__).parents[1] / "docs" / "models.md"
START, END = "<!-- families -->", "<!-- end of families -->"
SINCE = "5.17"  # the oldest supported; no family is younger
# Families whose own forward does not run in some versions.
LIMITS = {"llama4": "5.17, not 5.24: there its own forward fails, also without the connection"}
PROMPT = 40


def line(family: str) -> str:
    """One line of the table."""
    model = patch_model(tiny_model(family))
    layers = report(model).layers
    paths = {layer.path for layer in layers}
    reasons = sorted({layer.reason.replace(" through cc_kernels", "") for layer in layers})
    fused = "some layers" if len(paths) > 1 else "all layers" if paths == {"fused"} else "no"
    name = type(model).__name__
    since = LIMITS.get(family, SINCE)
    return f"| `{family}` | {name} | {fused}: {'; '.join(reasons)} | {_way(model)} | {since} |"


def _way(model: nn.Module) -> str:
    """How the prompt ran: one prefill, or two and why."""
    connected: object = model.cc
    model.cc.transform_matrix = random_matrix(model)  # type: ignore[union-attr]
    ids = torch.arange(3, 3 + PROMPT)[None]
    try:
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False, pad_token_id=0)  # type: ignore[operator]
    except AttributeError:
        return "see the last column"
    return str(connected.prefills)  # type: ignore[attr-defined]


def table() -> str:
    """The table in Markdown, and the version of transformers that it was made with."""
    lines = [
        f"Made with transformers {minor(transformers.__version__)}.",
        "",
        "| `model_type` | class | fused | generation, tiny model | transformers since |",
        "| --- | --- | --- | --- | --- |",
        *map(line, sorted(SPECS)),
    ]
    return "\n".join(lines)


def minor(version: str) -> str:
    """`5.24` of `5.24.0`."""
    return ".".join(version.split(".")[:2])


def written(document: str, made: str) -> str:
    """The document with `made` between its marks.

    Raises:
        ValueError: a mark is missing.
    """
    before, start, rest = document.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"document: expected the marks {START} and {END}")
    return f"{before}{START}\n{made}\n{END}{after}"


def main() -> None:
    """Write the document."""
    logging.disable(logging.WARNING)
    DOCUMENT.write_text(written(DOCUMENT.read_text(encoding="utf-8"), table()), encoding="utf-8")


if __name__ == "__main__":
    main()

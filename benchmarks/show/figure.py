"""What the plots of all kinds share: matplotlib without a display, colours, and files that say what they show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"vanilla": "0.6", "two-forwards": "0.75", "published": "#c44e52", "hooks": "#dd8452", "ours": "#4c72b0"}
OTHERS = "#55a868"


def colour_of(mode: str) -> str:
    """The colour of a mode, compiled or not.

    Example:
        >>> colour_of("ours+compile") == colour_of("ours") != colour_of("nnsight")
        True
    """
    return COLOURS.get(mode.removesuffix("+compile"), OTHERS)


def finish(figure: Any, path: Path, of: str | None = None) -> Path:
    """Write the figure, whole or not at all; `of` is kept in the file as its description."""
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, dpi=150, format="png", metadata={"Description": of} if of else None)
    plt.close(figure)
    partial.replace(path)
    return path


__all__ = ["COLOURS", "colour_of", "finish", "plt"]

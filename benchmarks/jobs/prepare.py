"""`--prepare DIR`: what jobs need beyond what is installed, in one folder that is small enough to be carried."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

MOST_BYTES = 60 * 2**20
ROWS = {"smollm2": "train/configs/experiment_smollm2.yaml", "llama": "train/configs/experiment_llama.yaml"}
DTYPE = "bfloat16"


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def prepare(folder: Path, most_bytes: int = MOST_BYTES) -> list[str]:
    """Write rows of the experiments (which need Babel) and, where it fits, the weights of SmolLM2; says what is there.

    Args:
        folder: is made.
        most_bytes: that all of it may take. Weights that do not fit are left out and told, with their size.

    Raises:
        ValueError: Babel is not installed, or the rows alone are too large.
    """
    from train.experiment.data import prepare as prepare_rows
    from train.experiment.settings import read_settings

    said = []
    for name, config in ROWS.items():
        prepare_rows(read_settings(config), folder / name / "rows")
        said.append(f"{folder / name / 'rows'}: rows of {config}")
    used = size_of(folder)
    if used > most_bytes:
        raise ValueError(f"prepare: expected rows of at most {most_bytes} bytes, got {used}")
    said.append(_weights(folder / "smollm2" / "model", most_bytes - used))
    said.append(f"{folder}: {size_of(folder) / 2**20:.1f} of {most_bytes / 2**20:.0f} MiB")
    return said


def find_weights() -> tuple[Path, int]:
    """The weights of SmolLM2 as they are installed, and how many numbers they are.

    Raises:
        ValueError: the package with the weights, or the one that reads them, is not installed.
    """
    from train.smollm2 import find_gguf

    found = find_gguf()
    if find_spec("gguf") is None:
        raise ValueError("gguf: expected the package gguf, which reads the file: pip install gguf")
    from gguf import GGUFReader

    return found, sum(int(tensor.n_elements) for tensor in GGUFReader(found).tensors)


def _weights(folder: Path, most_bytes: int) -> str:
    from train.smollm2 import convert

    try:
        gguf, numbers = find_weights()
    except ValueError as error:
        return f"SmolLM2 is left out: {error}"
    needed = 2 * numbers
    if needed > most_bytes:
        left = f"{most_bytes / 2**20:.0f} are left"
        return f"SmolLM2 is left out: {needed / 2**20:.0f} MiB in {DTYPE}, {left}; carry the folder {folder} otherwise"
    convert(gguf, folder, DTYPE)
    return f"{folder}: SmolLM2 in {DTYPE}"

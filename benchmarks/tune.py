"""`python -m benchmarks.tune --out FILE`: time the block sizes around those that the heuristics choose, on this GPU.

It changes nothing: the table says what every candidate takes, so that one sees how far the heuristic is from the best.
A person can then change the heuristic in `cc_kernels` and write the measurement beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure.timing import copies_for, device_time
from benchmarks.ops.cases import Case, disagreement
from cc_kernels.launch import blocks
from cc_kernels.ops.decision.config import TILE_BYTES


@dataclass(frozen=True)
class Knob:
    """A configuration function, where launchers look it up, and the candidates around one of its answers."""

    benchmark: str
    function: str
    modules: tuple[str, ...]
    candidates: Callable[[Any, tuple[Any, ...]], Iterator[Any]]


def _blocks_and_warps(chosen: Any, _: tuple[Any, ...]) -> Iterator[Any]:
    for factor in (0.5, 1, 2, 4):
        for num_warps in (2, 4, 8):
            yield replace(chosen, block=max(int(chosen.block * factor), 32), num_warps=num_warps)


def _bank(chosen: Any, arguments: tuple[Any, ...]) -> Iterator[Any]:
    _, _, width, element_size, *_ = arguments
    for block_width in (chosen.block_width, 2 * chosen.block_width, 4 * chosen.block_width):
        for block_rows in sorted({chosen.block_rows, max(chosen.block_rows // 2, 1), max(chosen.block_rows // 4, 1)}):
            for block_layers in sorted({chosen.block_layers, max(chosen.block_layers // 2, 1)}):
                if block_width * block_rows * block_layers * element_size <= TILE_BYTES:
                    for num_warps, stages in ((4, chosen.stages), (8, chosen.stages), (8, 2), (8, 3), (8, 5)):
                        yield replace(
                            chosen,
                            block_width=block_width,
                            block_rows=block_rows,
                            block_layers=block_layers,
                            width_blocks=blocks(width, block_width),
                            stages=stages,
                            num_warps=num_warps,
                        )


def _mix(chosen: Any, arguments: tuple[Any, ...]) -> Iterator[Any]:
    width = arguments[1]
    for block_width in (64, 128, 256, 512):
        for steps in (1, 2, 4):
            for num_warps in (4, 8):
                parts = blocks(width, steps * block_width)
                yield replace(chosen, block_width=block_width, steps=steps, parts=parts, num_warps=num_warps)


def _matrix_tiles(chosen: Any, _: tuple[Any, ...]) -> Iterator[Any]:
    for block_columns in (16, 32, 64, 128):
        for block_depth in (32, 64, 128, 256):
            for num_stages in (3, 5, 8):
                for num_warps in (4, 8):
                    if 2048 <= block_columns * block_depth <= 8192:
                        yield replace(
                            chosen,
                            block_columns=block_columns,
                            block_depth=block_depth,
                            num_stages=num_stages,
                            num_warps=num_warps,
                        )


KNOBS = (
    Knob("swiglu", "swiglu_config", ("swiglu",), _blocks_and_warps),
    Knob("capture_rows", "row_config", ("capture_rows",), _blocks_and_warps),
    Knob("add_rows", "row_config", ("add_rows",), _blocks_and_warps),
    Knob("capture_add_rows", "row_config", ("capture_add_rows",), _blocks_and_warps),
    Knob("transform_rows", "transform_rows_config", ("transform_rows",), _matrix_tiles),
    Knob("gate_up_swiglu", "gate_up_config", ("gate_up_swiglu",), _matrix_tiles),
    Knob("connect", "bank_config", ("decision.forward",), _bank),
    Knob("connect", "mix_config", ("decision.backward",), _mix),
)


@contextmanager
def forced(knob: Knob, answer: Callable[..., Any]) -> Iterator[None]:
    """Launchers ask `answer` instead of the heuristic inside the `with` block."""
    modules = [import_module(f"cc_kernels.ops.{name}") for name in knob.modules]
    heuristics = [getattr(module, knob.function) for module in modules]
    try:
        for module in modules:
            setattr(module, knob.function, answer)
        yield
    finally:
        for module, heuristic in zip(modules, heuristics):
            setattr(module, knob.function, heuristic)


def _answer(candidate: Any, *_: Any) -> Any:
    return candidate


def tune(knob: Knob, case: Case, device: torch.device) -> list[dict[str, Any]]:
    """One row per candidate, the heuristic's own first; none when the case does not ask for this configuration."""
    ours = case.implementations["cc_kernels"]
    heuristic = getattr(import_module(f"cc_kernels.ops.{knob.modules[0]}"), knob.function)
    asked: list[tuple[Any, ...]] = []

    def listen(*arguments: Any) -> Any:
        asked.append(arguments)
        return heuristic(*arguments)

    with forced(knob, listen):
        ours(*case.inputs(0))
    if not asked:  # a forward does not ask for the tiles of a backward
        return []
    chosen = heuristic(*asked[0])
    sets = [case.inputs(seed) for seed in range(copies_for(case.cost.bytes, device))]
    expected = case.reference(*case.inputs(0))
    rows = []
    for candidate in (chosen, *(c for c in knob.candidates(chosen, asked[0]) if c != chosen)):
        row = {"case": case.name, "knob": knob.function, "candidate": asdict(candidate)}
        with forced(knob, partial(_answer, candidate)):
            try:
                problem = disagreement(ours(*case.inputs(0)), expected)
                if problem is None:
                    row["us"] = asdict(device_time([partial(ours, *inputs) for inputs in sets], device))
                else:
                    row["refused"] = problem
            except Exception as error:  # a candidate that needs too much of something is no candidate
                row["refused"] = f"{type(error).__name__}: {error}"[:300]
        rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> int:
    """Write the table and print, for each case, the heuristic's time and the best one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the table, as JSON")
    parser.add_argument("--seconds", type=float, default=540, help="no further case starts after; %(default)s")
    parser.add_argument("--knobs", nargs="+", default=[knob.function for knob in KNOBS], metavar="KNOB", help="which")
    arguments = parser.parse_args(argv)
    unknown = set(arguments.knobs) - {knob.function for knob in KNOBS}
    if unknown:
        parser.error(f"--knobs: expected names of {[knob.function for knob in KNOBS]}, got {sorted(unknown)}")
    if not torch.cuda.is_available():
        parser.error("expected a GPU that torch can use, found none")
    device = torch.device("cuda", 0)
    table: list[dict[str, Any]] = []
    started = time.monotonic()
    for knob in (knob for knob in KNOBS if knob.function in arguments.knobs):
        for case in import_module(f"benchmarks.ops.{knob.benchmark}").cases(device, torch.bfloat16, False):
            if "cc_kernels" not in case.implementations or time.monotonic() - started > arguments.seconds:
                continue
            rows = tune(knob, case, device)
            if not rows:
                continue
            timed = [row for row in rows if "us" in row]
            best = min(timed, key=lambda row: row["us"]["median"])
            own = rows[0].get("us", {}).get("median", float("nan"))
            print(f"{case.name}: {own:.2f} us, best {best['us']['median']:.2f} us with {best['candidate']}", flush=True)
            table += rows
            arguments.out.write_text(json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

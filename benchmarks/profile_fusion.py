"""`python -m benchmarks.profile_fusion --model tiny --mode all`: training and inference of every way to connect.

Runs are interleaved (A B C A B C …), each mode is first compared with the hooks' result, and the record is saved after
each section. `--section` names: train, translations (train against the number of rows of each English prompt), infer,
curve (time to the first token against prompt length), static (infer with a static cache, whose decode steps
transformers compiles on a GPU), prefix (infer with all but 32 tokens of the prompt in the cache, as in a chat).
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines import GENERATING, MODES, STATIC, Batch, Mode, make_modes, random_batch
from benchmarks.measure.models import NAMES, build
from benchmarks.measure.record import facts, save
from benchmarks.measure.sources import contents
from benchmarks.profile.inference import first_token_curve, profile_generation
from benchmarks.profile.training import OPTIMIZERS, profile_training
from benchmarks.show.profile_fusion import plots
from benchmarks.show.terminal import show
from cc_model.compat import CACHE

SECTIONS = ("train", "translations", "infer", "curve", "static", "prefix")
NEW_OF_PREFIX = 32
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MODE_GROUPS = {
    "all": [kind.name for kind in MODES],
    "eager": [kind.name for kind in MODES if not kind.compiles],
    "compiled": [kind.name for kind in MODES if kind.compiles],
}


def say(message: str) -> None:
    """Progress, at once."""
    print(message, flush=True)


def chosen_modes(text: str) -> list[type[Mode]]:
    """The classes of a comma-separated list of names and groups; vanilla is always among them.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> [kind.name for kind in chosen_modes("ours,hooks")]
        ['vanilla', 'hooks', 'ours']
    """
    names = {"vanilla"}
    for name in text.split(","):
        if name not in MODE_GROUPS and name not in MODE_GROUPS["all"]:
            raise ValueError(f"mode: expected names of {[*MODE_GROUPS, *MODE_GROUPS['all']]}, got {name!r}")
        names |= set(MODE_GROUPS.get(name, [name]))
    return [kind for kind in MODES if kind.name in names]


def _lengths(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _device(name: str) -> str:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"expected cpu or cuda, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f"expected cpu on a machine without a GPU, got {name!r}")
    return name


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.profile_fusion", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    on_gpu = torch.cuda.is_available()
    made.add_argument("--model", default="tiny", help=f"{', '.join(NAMES)} (random weights), or a folder; tiny")
    made.add_argument("--mode", default="eager", help="names or groups, comma-separated: all, eager, compiled; eager")
    made.add_argument("--section", default="train,infer,curve", help=f"of {', '.join(SECTIONS)}; train,infer,curve")
    made.add_argument("--batch", type=int, default=4, help="rows of a training step; %(default)s")
    made.add_argument("--prompt", type=int, default=512, help="tokens of a prompt; %(default)s")
    made.add_argument("--answer", type=int, default=128, help="tokens of an answer; %(default)s")
    made.add_argument("--pivot", type=int, default=512, help="tokens of an English prompt; %(default)s")
    made.add_argument("--translations", type=int, default=1, help="rows of each English prompt in a step; %(default)s")
    made.add_argument("--axis", type=_lengths, default=[1, 2, 4, 8, 22], help="of the section translations")
    made.add_argument("--infer-batch", type=int, default=1, help="prompts generated for at once; %(default)s")
    made.add_argument("--new-tokens", type=int, default=17, help="generated for each prompt; %(default)s")
    made.add_argument("--lengths", type=_lengths, default=[64, 128, 256, 512, 1024, 2048], help="of the curve")
    made.add_argument("--layers", type=int, help="fewer decoder layers than the model has")
    made.add_argument("--dtype", choices=DTYPES, default="bf16" if on_gpu else "fp32", help="%(default)s")
    made.add_argument("--device", type=_device, default="cuda" if on_gpu else "cpu", help="%(default)s")
    made.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw", help="%(default)s")
    made.add_argument("--pivot-grad", action="store_true", help="let gradients flow through the English pass")
    made.add_argument("--rounds", type=int, default=10, help="at most; %(default)s")
    made.add_argument("--seconds", type=float, default=float("inf"), help="about how long all of it may take")
    made.add_argument("--seed", type=int, default=0, help="of weights and tokens; %(default)s")
    made.add_argument("--trace", type=Path, metavar="DIR", help="write a Chrome/Perfetto trace per mode")
    made.add_argument("--out", type=Path, metavar="FILE", help="the record, as JSON")
    made.add_argument("--plots", type=Path, metavar="DIR", help="write PNG plots")
    return made


class Profile:
    """The model, the modes and what has been measured so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        self.started = time.monotonic()
        self.record: dict[str, Any] = {
            "kind": "profile_fusion",
            "facts": facts(self.device),
            "arguments": {
                name: value
                for name, value in vars(arguments).items()
                if value is not None and value != float("inf") and not isinstance(value, Path)
            },
        }
        say(f"{self.record['facts']['device']}; building {arguments.model}")
        self.model: Any = build(arguments.model, self.device, DTYPES[arguments.dtype], arguments.layers, arguments.seed)
        self.kinds = chosen_modes(arguments.mode)
        self.record["content"] = contents(arguments.section.split(","))
        self.record["parameters"] = sum(parameter.numel() for parameter in self.model.parameters())

    def modes(self, among: tuple[type[Mode], ...] = MODES) -> list[Mode]:
        """The chosen modes that are `among` some."""
        kinds = [kind for kind in self.kinds if kind in among]
        return make_modes(kinds, self.model, self.arguments.pivot_grad, self.arguments.seed)

    def batch(self, rows: int, prompt: int, translations: int = 1) -> Batch:
        """Random rows, `translations` of each English prompt."""
        given, config = self.arguments, self.model.config
        return random_batch(
            rows,
            prompt,
            given.answer,
            given.pivot,
            config.vocab_size,
            config.num_hidden_layers,
            self.device,
            given.seed,
            translations,
        )

    def deadline(self, sections_left: int) -> float:
        """When the next section should end, were the time that is left divided equally."""
        left = self.arguments.seconds - (time.monotonic() - self.started)
        return time.monotonic() + left / sections_left

    def keep(self, section: str, found: Any) -> None:
        """Remember what a section has found, and save the record."""
        self.record[section] = found
        if self.arguments.out is not None:
            save(self.arguments.out, self.record)

    def train(self, deadline: float, trace: str | None) -> dict[str, Any]:
        """Training steps."""
        given = self.arguments
        found = profile_training(
            self.modes(),
            self.batch(given.batch, given.prompt, given.translations),
            self.device,
            given.optimizer,
            given.rounds,
            deadline,
            trace,
            progress=say,
            keep=partial(self.keep, "train"),
        )
        absent = {kind.name: {"refused": kind.unavailable} for kind in self.kinds if not kind.available}
        return {**found, "modes": {**found["modes"], **absent}}

    def translations(self, deadline: float, trace: str | None) -> list[dict[str, Any]]:
        """Training steps against the number of translations of each English prompt."""
        given = self.arguments
        modes, points = self.modes(), []
        for number, count in enumerate(given.axis):
            until = time.monotonic() + (deadline - time.monotonic()) / (len(given.axis) - number)
            batch = self.batch(given.batch, given.prompt, count)
            say(f"  {count} translations")
            points.append(
                profile_training(modes, batch, self.device, given.optimizer, given.rounds, until, progress=say)
            )
            self.keep("translations", points)
        return points

    def prefix(self, deadline: float, trace: str | None) -> dict[str, Any]:
        """Generation with all but the last tokens of the prompt in the cache."""
        new = min(NEW_OF_PREFIX, self.arguments.prompt // 2)
        ids = self.batch(self.arguments.infer_batch, self.arguments.prompt).prompt[:, :-new]
        with torch.no_grad():
            cache = self.model(ids, use_cache=True)[CACHE]
        return self.infer(deadline, trace, section="prefix", **{CACHE: cache})

    def infer(self, deadline: float, trace: str | None, section: str = "infer", **options: Any) -> dict[str, Any]:
        """Generation."""
        given = self.arguments
        batch = self.batch(given.infer_batch, given.prompt)
        return profile_generation(
            self.modes(STATIC if options else GENERATING),
            batch.prompt,
            batch.noise,
            self.device,
            given.new_tokens,
            given.rounds,
            deadline,
            trace,
            progress=say,
            keep=partial(self.keep, section),
            **options,
        )

    def curve(self, deadline: float, trace: str | None) -> list[dict[str, Any]]:
        """Time to the first token against prompt length."""
        given = self.arguments
        noise = self.batch(given.infer_batch, 2).noise
        return first_token_curve(
            self.modes(GENERATING),
            lambda length: self.batch(given.infer_batch, length).prompt,
            given.lengths,
            noise,
            self.device,
            max(given.rounds // 2, 3),
            deadline,
            progress=say,
        )

    def run(self) -> int:
        """All sections; how many failed."""
        static = partial(self.infer, section="static", cache_implementation="static")
        work: dict[str, Callable[..., Any]] = {
            "train": self.train,
            "translations": self.translations,
            "infer": self.infer,
            "curve": self.curve,
            "static": static,
            "prefix": self.prefix,
        }
        sections = self.arguments.section.split(",")
        trace = None if self.arguments.trace is None else str(self.arguments.trace)
        if trace is not None:
            self.arguments.trace.mkdir(parents=True, exist_ok=True)
        failed = 0
        for number, name in enumerate(sections):
            say(f"[{time.monotonic() - self.started:5.0f} s] {name}")
            try:
                self.keep(name, work[name](self.deadline(len(sections) - number), trace))
            except Exception as error:  # recorded, so that the other sections still run
                traceback.print_exc()
                self.keep(name, {"error": f"{type(error).__name__}: {error}"[:1000]})
                failed += 1
        self.record["seconds"] = time.monotonic() - self.started
        return failed


def main(argv: list[str] | None = None) -> int:
    """Profile, save, show and plot; 1 when a section failed."""
    command = parser()
    arguments = command.parse_args(argv)
    unknown = set(arguments.section.split(",")) - set(SECTIONS)
    if unknown:
        command.error(f"--section: expected names of {', '.join(SECTIONS)}, got {', '.join(sorted(unknown))}")
    try:
        chosen_modes(arguments.mode)
        profile = Profile(arguments)
    except ValueError as error:
        command.error(str(error))
    failed = profile.run()
    if arguments.out is not None:
        save(arguments.out, profile.record)
    show(profile.record)
    if arguments.plots is not None:
        say(f"plots: {', '.join(map(str, plots(profile.record, arguments.plots)))}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

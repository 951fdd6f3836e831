"""The command line: `python -m train.experiment CONFIG --out DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cc_kernels.backend import BACKENDS
from train.common.console import open_console, say
from train.common.modes import VANILLA
from train.experiment.data import prepare
from train.experiment.pool import read_results, run_all
from train.experiment.report import write_report
from train.experiment.settings import read_settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the report; or prepare the data; or only write the report."""
    console = open_console()
    parser = argparse.ArgumentParser(
        prog="python -m train.experiment",
        description="Compare plain fine-tuning with CC-Tuning on equal data, steps and seeds, and write a report with "
        "plots and intervals. Results are kept as they end; the same command continues.",
    )
    parser.add_argument("config", help="YAML file, see train/configs/experiment_cpu.yaml")
    parser.add_argument("--out", metavar="DIR", help="folder for results.jsonl, report.md and the plots")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time; default: 1")
    parser.add_argument("--stop-after", type=float, metavar="SECONDS", help="start no job later than this")
    parser.add_argument("--model", metavar="DIR", help="folder of the weights, instead of the config's")
    parser.add_argument("--data", metavar="DIR", help="prepared data, instead of the config's")
    parser.add_argument("--steps", type=int, help="instead of the config's")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the config's")
    parser.add_argument("--backend", choices=BACKENDS, help="kernels, instead of the config's; auto: Triton on a GPU")
    parser.add_argument(
        "--only", nargs="+", metavar="CONDITION", help="these conditions, and with them vanilla and their teachers"
    )
    parser.add_argument("--models", metavar="DIR", help="keep each trained model there, without a matrix")
    parser.add_argument("--prepare", metavar="DIR", help="only write the rows there, for a machine without Babel")
    parser.add_argument("--report", action="store_true", help="only write the report of what is in --out")
    options = parser.parse_args(arguments)
    try:
        settings = read_settings(
            options.config,
            model=options.model,
            data=options.data,
            steps=options.steps,
            seeds=options.seeds,
            backend=options.backend,
        )
        wanted = list(settings.conditions)
        if options.only:
            unknown = sorted(set(options.only) - set(settings.conditions))
            if unknown:
                raise ValueError(f"only: expected some of {', '.join(settings.conditions)}, got {unknown}")
            teachers = [settings.conditions[name].teacher for name in options.only]
            wanted = [name for name in wanted if name in (VANILLA, *options.only, *teachers)]
        if options.prepare:
            for path in prepare(settings, options.prepare):
                say(console, str(path))
            return
        if not options.out:
            raise ValueError("out: expected --out DIR, got none")
        if options.report:
            results = read_results(options.out, settings)
        else:
            results = run_all(settings, options.out, options.jobs, options.stop_after, console, wanted, options.models)
            if not results:
                raise ValueError("no job has ended: there is nothing to report, and what failed is told above")
        say(console, f"report: {write_report(settings, results, Path(options.out))}")
    except ValueError as error:
        raise SystemExit(f"train.experiment: {error}") from error


if __name__ == "__main__":
    main()

"""`python -m cc_kernels.aot`: compile every kernel for every target and print what the code needs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

from cc_kernels.aot.compiling import Report
from cc_kernels.aot.targets import TARGETS
from cc_kernels.aot.variants import DTYPES, OPS, compile_all
from cc_kernels.launch import HAS_TRITON, INTERPRETED, triton

_HEADER = (
    f"{'kernel':<28} {'dtype':<9} {'target':<7} {'warps':>5} {'regs':>5} {'spill':>5} {'shared':>7} {'occup.':>6} "
    f"{'ld128/ld':>9} {'st128/st':>9} {'mma':>4}  constants"
)


def _line(report: Report) -> str:
    constants = " ".join(f"{name}={value}" for name, value in report.constants.items())
    loads = f"{report.wide_loads}/{report.wide_loads + report.narrow_loads}"
    stores = f"{report.wide_stores}/{report.wide_stores + report.narrow_stores}"
    return (
        f"{report.kernel:<28} {report.dtype:<9} {report.target:<7} {report.num_warps:>5} {report.registers:>5} "
        f"{report.spills:>5} {report.shared:>7} {report.occupancy:>6.0%} {loads:>9} {stores:>9} "
        f"{report.tensor_core:>4}  {constants}" + "".join(f"  PROBLEM: {problem}" for problem in report.problems)
    )


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cc_kernels.aot", description=__doc__)
    parser.add_argument("--targets", default=",".join(TARGETS), help="comma-separated, of %(default)s")
    parser.add_argument("--ops", default=",".join(OPS), help="comma-separated, of %(default)s")
    parser.add_argument("--dtypes", default="float32,float16,bfloat16", help="comma-separated, of %(default)s")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes; all processors by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the reports there")
    arguments = parser.parse_args(argv)
    known = {"targets": list(TARGETS), "ops": list(OPS), "dtypes": [str(d).removeprefix("torch.") for d in DTYPES]}
    for name, names in known.items():
        chosen = getattr(arguments, name).split(",")
        for item in chosen:
            if item not in names:
                parser.error(f"--{name}: expected names of {','.join(names)}, got {item!r}")
        setattr(arguments, name, chosen)
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Print the table; 1 when a kernel does not compile, spills, or needs more shared memory than its target has."""
    arguments = _arguments(argv)
    if not HAS_TRITON or INTERPRETED:
        print("expected triton, and TRITON_INTERPRET unset: an interpreted kernel cannot be compiled", file=sys.stderr)
        return 2
    print(f"triton {triton.__version__}\n{_HEADER}")
    reports: list[Report] = []
    failures: list[str] = []
    pairs = [(target, dtype) for target in arguments.targets for dtype in arguments.dtypes]
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        work = [pool.submit(compile_all, target, dtype, tuple(arguments.ops)) for target, dtype in pairs]
        for future in work:
            some, failed = future.result()
            reports += some
            failures += failed
            print("\n".join([*map(_line, some), *(f"FAILED {failure}" for failure in failed)]), flush=True)
    problems = sum(bool(report.problems) for report in reports)
    print(f"{len(reports)} kernels compiled, {len(failures)} failed, {problems} with problems")
    if arguments.json is not None:
        content = {"triton": triton.__version__, "failures": failures, "kernels": [asdict(r) for r in reports]}
        arguments.json.write_text(json.dumps(content, indent=1, default=str) + "\n")
    return int(bool(failures) or problems > 0)


if __name__ == "__main__":
    raise SystemExit(main())

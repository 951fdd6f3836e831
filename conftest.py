"""What pytest leaves out, what its garbage collection leaves out, and the record of versions that the tests held with.

Modules whose optional library is not installed cannot be imported for their examples.
"""

import gc
from importlib.util import find_spec
from pathlib import Path

_OPTIONAL = {
    "lm_eval": ["cc_model/integrations/lm_eval.py", "cc_model/integrations/lm_eval_vllm.py"],
    "vllm": ["cc_model/integrations/vllm/models.py"],
}
collect_ignore = [path for library, paths in _OPTIONAL.items() if not find_spec(library) for path in paths]


def pytest_addoption(parser):
    """`--record-versions FILE`, see `benchmarks.measure.versions`."""
    parser.addoption("--record-versions", type=Path, metavar="FILE", help="add this run to a record of versions")


def pytest_collection_finish(session):
    """Libraries and thousands of tests stay to the end, so no collection looks through them again.

    accelerate and Trainer collect after each step or file, which took most of the time of some tests.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config):
    """Let the end of the process collect all of it; some libraries report what is left then."""
    gc.unfreeze()


def pytest_terminal_summary(terminalreporter, config):
    """Record a run in which nothing failed."""
    path = config.getoption("--record-versions")
    if path is None:
        return
    counts = {outcome: len(terminalreporter.stats.get(outcome, ())) for outcome in ("passed", "skipped")}
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error") or not counts["passed"]:
        terminalreporter.write_line(f"--record-versions: nothing recorded in {path}, because not every test held")
        return
    from benchmarks.measure.versions import add_run

    run = add_run(path, [str(argument) for argument in config.args], **counts)
    terminalreporter.write_line(f"--record-versions: {run} in {path}")

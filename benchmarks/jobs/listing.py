"""The jobs of `python -m benchmarks.gpu`, as data, in order of value.

A command is a module with a `main`, and its arguments. In them `{folder}` is a folder of the job's own and `{prepared}`
what was prepared elsewhere; `--out FILE --seconds N` are added where `timed` says that the module knows them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True)
class Job:
    """One question and the program that answers it.

    Args:
        name: of the job.
        answers: what one knows afterwards.
        seconds: what it takes on an H100, its start included.
        parts: of `benchmarks.measure.sources`, the code that its numbers depend on.
        command: on a GPU.
        smoke: on a CPU, in miniature.
        needs: a folder of what was prepared, without which the job is left out.
        least: seconds that are enough for an answer, where more give a better one.
        timed: whether the command takes `--out FILE --seconds N`; otherwise it leaves one JSON file in `{folder}`.
    """

    name: str
    answers: str
    seconds: int
    parts: tuple[str, ...]
    command: str
    smoke: str
    needs: str = ""
    timed: bool = True
    least: int = 0

    @property
    def fewest_seconds(self) -> int:
        """With less time left it is not started, because it would end without an answer."""
        return self.least or self.seconds * 2 // 3


_TESTS, _OPS, _FUSION = "benchmarks.jobs.kernel_tests", "benchmarks.ops.__main__", "benchmarks.profile_fusion"
_PROCESSES = 14  # all tests took 74 s with so many on 16 cores: most of their time is compiling, on the CPU
_STUDY = "benchmarks.jobs.experiment"
_TINY = "--model tiny --layers 2 --prompt 16 --answer 4 --pivot 8 --batch 2 --rounds 3 --new-tokens 3 --lengths 8"
_TINY_STUDY = f"{_STUDY} train/configs/experiment_cpu.yaml --steps 2 --seeds 0 --only vanilla"


def _tests(name: str, answers: str, seconds: int, part: str, path: str) -> Job:
    smoke = f"{_TESTS} {path} --smoke"
    return Job(name, answers, seconds, (part,), f"{_TESTS} {path} --processes {_PROCESSES}", smoke)


def _profile(name: str, answers: str, seconds: int, section: str, arguments: str, least: int = 0) -> Job:
    """Every eager mode that there is, unless the arguments choose others."""
    smoke = f"{_FUSION} {_TINY} --section {section}"
    command = f"{_FUSION} {arguments} --section {section}"
    return Job(name, answers, seconds, (section,), command, smoke, least=least)


def _ops(name: str, answers: str, seconds: int, *ops: str) -> Job:
    command = f"{_OPS} {' '.join(ops)}"
    return Job(name, answers, seconds, ops, command, f"{command} --smoke")


def _study(name: str, answers: str, seconds: int, needs: str, arguments: str) -> Job:
    command = f"{_STUDY} {arguments} --data {{prepared}}/{needs.split('/')[0]}/rows"
    return Job(name, answers, seconds, ("experiment",), command, _TINY_STUDY, needs, least=60)


_LISTED = (
    _tests("golden", "are the published numbers right on the device", 20, "golden", "tests/golden"),
    _tests("kernel-tests", "are the kernels right, compiled", 80, "tests", "tests/kernels"),
    _tests(
        "model-tests",
        "do CUDA graphs, blocks as one function and few tokens compute the same",
        50,
        "model-tests",
        "tests/model",
    ),
    _profile(
        "step-1b",
        "a 1B training step, 8 × 640 tokens, 4 translations of each English prompt, in every mode",
        75,
        "train",
        "--model 1b --batch 8 --translations 4",
    ),
    _profile("first-token-1b", "first token and decode steps at 1B", 45, "infer", "--model 1b"),
    _profile(
        "static-1b", "the same with a static cache, by CUDA graphs", 85, "static", "--model 1b --new-tokens 33", 75
    ),
    _ops("connect", "`connect`, forward and with backward, beside hooks", 60, "connect"),
    _ops("add-rows", "`add_rows` in place, beside ATen", 20, "add_rows"),
    _ops("capture-add-rows", "`capture_add_rows_` of serving, beside ATen", 20, "capture_add_rows"),
    _ops("swiglu", "`swiglu` and `geglu` in both directions, beside torch.compile", 90, "swiglu", "geglu"),
    Job(
        "host-time",
        "what one call of an op costs the host",
        25,
        ("host",),
        "benchmarks.host_time --out {folder}",
        "benchmarks.host_time --dry --out {folder}",
        timed=False,
    ),
    _profile(
        "step-8b",
        "an 8B training step, 2 × 640 tokens, in every mode",
        75,
        "train",
        "--model 8b --batch 2 --optimizer sgd --rounds 8",
    ),
    _profile("first-token-8b", "first token and decode steps at 8B", 60, "infer", "--model 8b --rounds 6"),
    _profile("compiled-1b", "a 1B step, compiled layers", 120, "train", "--model 1b --batch 8 --mode compiled", 100),
    _ops("streamed", "kernels that stream weights", 60, "transform_rows", "gate_up_swiglu", "capture_rows"),
    # Its tests failed on an H100, where its first tiles take 10 s each to compile: it stands behind what is used.
    _ops("gate-up-matmul", "does the candidate win against library matmuls", 60, "gate_up_matmul"),
    Job(
        "train-run-1b",
        "the losses of a run with the kernels and without",
        75,
        ("run",),
        "benchmarks.train_run --model 1b",
        "benchmarks.train_run --model tiny --layers 2 --prompt 16 --steps 4",
    ),
    _study(
        "experiment-smollm2",
        "does a teacher that reads English help a plain SmolLM2-135M, beside fair baselines",
        450,
        "smollm2/model",
        "train/configs/experiment_distil_smollm2.yaml --model {prepared}/smollm2/model --jobs 12",
    ),
    _study(
        "experiment-llama",
        "does the connection help a small Llama from scratch on held-out facts",
        200,
        "llama",
        "train/configs/experiment_llama.yaml --jobs 12",
    ),
)
# A job stands here as soon as its command exists.
JOBS: tuple[Job, ...] = tuple(job for job in _LISTED if find_spec(job.command.split()[0]) is not None)

__all__ = ["JOBS", "Job"]

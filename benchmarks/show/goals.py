"""What was aimed at, as data, and the table that puts beside each goal what the newest records say."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from benchmarks.show.library import Library, Stored
from benchmarks.show.table import Number, Table

Pair = tuple[str, str | None]  # a number's name, and that of the number that it is divided by


@dataclass(frozen=True)
class Goal:
    """One goal: the worst of some numbers, or of ratios within one record, is to reach a bound.

    Args:
        what: in words.
        bound: to be reached.
        on: `cpu` or `gpu`.
        pairs: names of the numbers; none where nothing measures the goal yet.
        at_least: whether the bound is a lower one.
        unit: how numbers are written: `%`, `µs`, `×` or nothing.
        held_by: a test that holds the goal at every run, in place of a measurement.
    """

    what: str
    bound: float
    on: str = "gpu"
    pairs: tuple[Pair, ...] = ()
    at_least: bool = False
    unit: str = ""
    held_by: str = ""

    def write(self, value: float) -> str:
        """A number in the goal's unit.

        Example:
            >>> Goal("a share", 0.9, unit="%").write(0.873), Goal("a time", 12, unit="µs").write(10.31)
            ('87.3 %', '10.3 µs')
        """
        if self.unit == "%":
            return f"{value:.1%}".replace("%", " %")
        return f"{value:.1f} {self.unit}" if self.unit == "µs" else f"{value:.3g} {self.unit}".rstrip()

    def is_met(self, value: float) -> bool:
        """Whether `value` reaches the bound."""
        return value >= self.bound if self.at_least else value <= self.bound


def _all(names: str, over: str | None = None, **of: tuple[object, ...]) -> tuple[Pair, ...]:
    """A pair for each choice of the values that stand in braces.

    Example:
        >>> _all("op {d}, ours", "op {d}, hooks", d=(1, 2))
        (('op 1, ours', 'op 1, hooks'), ('op 2, ours', 'op 2, hooks'))
    """
    choices = [dict(zip(of, values)) for values in product(*of.values())]
    return tuple((names.format(**choice), over.format(**choice) if over else None) for choice in choices)


_SWIGLU = "swiglu 4096x{inner} {way}, "
_INNER = (14336, 18944)
_CONNECT = "connect L=32 K=16 d=4096 {way}, "
_BOTH = ("forward+backward", "forward+backward, bank too")
_STREAMED = tuple(f"{rows} of {shape}" for shape in ("14336x4096", "8192x2048", "18944x3584") for rows in (1, 16))
_CPU_STEP, _PER = "tiny-8k, train 16 x 128, pivot 96", " per prompt, ours, ratio"
_STEPS = ("1b, train 8 x 640, pivot 512", "8b, train 2 x 640, pivot 512")

GOALS: tuple[Goal, ...] = (
    Goal(
        "golden vectors: forward, gradients, matrix; tokens equal", 1e-5, "cpu", held_by="tests/golden/test_golden.py"
    ),
    Goal("first token ÷ plain, 512 tokens, one row", 1.05, "cpu", _all("small, infer 1 x 512, ours, ratio")),
    Goal(
        "training step ÷ what FLOPs predict",
        1.05,
        "cpu",
        _all("tiny, train 2 x 512, pivot 384, ours-plain, ratio to prediction"),
    ),
    Goal("synchronisations added to a training forward", 0, "cpu", held_by="tests/model/forward/test_counts.py"),
    Goal("non-view ops added to two forwards of 32 layers", 84, "cpu", held_by="tests/model/forward/test_counts.py"),
    Goal(
        "peak of the matrix fit, 10,000 pairs ÷ 3,000",
        1.05,
        "cpu",
        _all("fit of 10000 pairs, streaming, bytes", "fit of 3000 pairs, streaming, bytes"),
    ),
    Goal("spills of kernels compiled ahead of time (a part of them)", 0, "cpu", held_by="tests/kernels/test_aot.py"),
    Goal(
        "step ÷ stock step, 8 translations per English prompt", 0.88, "cpu", _all(f"{_CPU_STEP}, 8 translations{_PER}")
    ),
    Goal("step ÷ stock step, no English prompt shared", 1.00, "cpu", _all(f"{_CPU_STEP}, ours, ratio")),
    Goal(
        "host time of a training forward of 16 and 32 layers − two stock ones, per layer, ours ÷ hooks",
        1.00,
        "cpu",
        _all("{n} layers, cc_model, dry, host_us_per_layer", "{n} layers, hooks, dry, host_us_per_layer", n=(16, 32)),
    ),
    Goal(
        "host time of a training forward of 16 and 32 layers, pivot pass as a CUDA graph, ours ÷ hooks",
        1.00,
        "cpu",
        _all("{n} layers, cc_model, pivot graph, dry, host_us", "{n} layers, hooks, dry, host_us", n=(16, 32)),
    ),
    Goal(
        "host time to the first token − stock, in decode steps, 24 layers",
        1.15,
        "cpu",
        _all("generate, 24 layers, cc_model, dry, added_steps"),
    ),
    Goal(
        "host time of a decode step ÷ stock, 24 layers",
        1.03,
        "cpu",
        _all("generate, 24 layers, cc_model, dry, step_ratio"),
    ),
    Goal("answers of vLLM equal to those of `generate`", 1.00, "cpu", _all("serve small, answers equal"), True, "%"),
    Goal(
        "`swiglu` forward and backward, share of the copy bandwidth",
        0.90,
        pairs=_all(f"{_SWIGLU}cc_kernels, share_of_copy", inner=_INNER, way=("forward", "backward")),
        at_least=True,
        unit="%",
    ),
    Goal(
        "`swiglu` ÷ torch.compile",
        1.00,
        pairs=_all(
            f"{_SWIGLU}cc_kernels, device_us",
            f"{_SWIGLU}torch.compile, device_us",
            inner=_INNER,
            way=("forward", "backward", "forward+backward"),
        ),
    ),
    Goal(
        "`swiglu` ÷ Liger",
        1.00,
        pairs=_all(
            f"{_SWIGLU}cc_kernels, device_us",
            f"{_SWIGLU}liger, device_us",
            inner=_INNER,
            way=("forward", "forward+backward"),
        ),
    ),
    Goal("`connect` forward", 12, pairs=_all(f"{_CONNECT}cc_kernels, device_us", way=("forward",)), unit="µs"),
    Goal(
        "`connect` with backward: hooks ÷ ours",
        5,
        pairs=_all(f"{_CONNECT}eager hooks, device_us", f"{_CONNECT}cc_kernels, device_us", way=_BOTH),
        at_least=True,
        unit="×",
    ),
    Goal(
        "`connect` with backward: torch.compile of hooks ÷ ours",
        1.5,
        pairs=_all(f"{_CONNECT}torch.compile of hooks, device_us", f"{_CONNECT}cc_kernels, device_us", way=_BOTH),
        at_least=True,
        unit="×",
    ),
    Goal(
        "`transform_rows`, 16 rows, d=4096, share of the read bandwidth",
        0.70,
        pairs=_all("transform_rows 16x4096, cc_kernels, share_of_read"),
        at_least=True,
        unit="%",
    ),
    Goal(
        "`transform_rows`, 16 rows, d ≥ 8192, share of the read bandwidth",
        0.85,
        pairs=_all("transform_rows 16x{d}, cc_kernels, share_of_read", d=(8192, 16384)),
        at_least=True,
        unit="%",
    ),
    Goal(
        "`transform_rows`, eager: the published way ÷ ours",
        20,
        pairs=_all("transform_rows 16x4096, published, eager_us", "transform_rows 16x4096, cc_kernels, eager_us"),
        at_least=True,
        unit="×",
    ),
    Goal(
        "`gate_up_swiglu`, 1 and 16 tokens, share of the read bandwidth",
        0.85,
        pairs=_all("gate_up_swiglu {case}, cc_kernels, share_of_read", case=_STREAMED),
        at_least=True,
        unit="%",
    ),
    Goal(
        "`gate_up_swiglu` ÷ one concatenated matmul and swiglu",
        1.00,
        pairs=_all(
            "gate_up_swiglu {case}, cc_kernels, device_us",
            "gate_up_swiglu {case}, one concatenated matmul + swiglu, device_us",
            case=_STREAMED,
        ),
    ),
    Goal(
        "first token − plain, in decode steps, dynamic cache, 1B",
        1.1,
        pairs=_all("1b, infer 1 x 512, ours, added_steps"),
    ),
    Goal(
        "first token − plain, in decode steps, static cache, 1B",
        1.1,
        pairs=_all("1b, static 1 x 512, ours, added_steps"),
    ),
    Goal(
        "step ÷ stock step, 1B, 4 translations per English prompt, without a CUDA graph",
        0.92,
        pairs=_all(f"{_STEPS[0]}, 4 translations{_PER}"),
    ),
    Goal(
        "the same with the English pass as a CUDA graph, as train.sft runs it",
        0.92,
        pairs=_all(f"{_STEPS[0]}, 4 translations{_PER.replace('ours', 'ours-graph')}"),
    ),
    Goal(
        "peak memory of a step ÷ stock, 1B, 4 translations per English prompt",
        0.75,
        pairs=_all(
            f"{_STEPS[0]}, 4 translations{_PER.replace('ratio', 'peak_bytes')}",
            f"{_STEPS[0]}, 4 translations per prompt, vanilla, peak_bytes",
        ),
    ),
    Goal(
        "step ÷ stock step, 8B, 8 translations per English prompt",
        1.00,
        pairs=_all(f"{_STEPS[1].replace('2 x', '8 x')}, 8 translations{_PER}"),
    ),
    *(
        Goal(
            f"{what} of a training step, ours ÷ {other}, {steps.split(',')[0].upper()}",
            1.00,
            pairs=_all(f"{steps}, ours, {key}", f"{steps}, {other}, {key}"),
        )
        for steps in _STEPS
        for what, key in (("time", "seconds"), ("peak memory", "peak_bytes"))
        for other in ("hooks", "published")
    ),
)


@dataclass(frozen=True)
class Reading:
    """What a record says about a goal: the worst value, of how many of the goal's pairs, and of which record."""

    value: float
    pairs: int
    part: str
    stored: Stored


def _value(pair: Pair, numbers: dict[str, Number]) -> float | None:
    name, over = pair
    if name not in numbers or (over is not None and not (over in numbers and numbers[over].value)):
        return None
    return numbers[name].value / (numbers[over].value if over is not None else 1)


def reading(goal: Goal, library: Library) -> Reading | None:
    """What the newest record says that has any of the goal's numbers; None where none has.

    Both numbers of a ratio are of one record: a quotient of two runs would compare two machines, too.
    """
    found: list[Reading] = []
    for stored, numbers in library.numbers(goal.on):
        values = [(value, numbers[pair[0]].part) for pair in goal.pairs if (value := _value(pair, numbers)) is not None]
        if values:
            worst = min(values) if goal.at_least else max(values)
            found.append(Reading(worst[0], len(values), worst[1], stored))
    return max(found, key=lambda one: one.stored.age(one.part), default=None)


def missed(goal: Goal, library: Library) -> Reading | None:
    """The reading of a goal that was measured and missed."""
    found = reading(goal, library)
    return None if found is None or goal.is_met(found.value) else found


def goal_table(library: Library) -> Table:
    """Goal, bound, measured, met or missed, and by which record."""
    rows = []
    for goal in GOALS:
        bound = f"{'≥' if goal.at_least else '≤'} {goal.write(goal.bound)}"
        row = [goal.what, "CPU" if goal.on == "cpu" else "GPU", bound]
        found = reading(goal, library)
        if goal.held_by:
            rows.append([*row, "a test", "held", f"`{goal.held_by}`"])
        elif found is None:
            rows.append([*row, "–", "not measured", ""])
        else:
            some = "" if found.pairs == len(goal.pairs) else f" ({found.pairs} of {len(goal.pairs)} shapes)"
            verdict = "met" if goal.is_met(found.value) else "**missed**"
            rows.append([*row, f"{goal.write(found.value)}{some}", verdict, found.stored.provenance(found.part)])
    return Table("", ["goal", "on", "bound", "measured", "", "record, commit"], rows)


__all__ = ["GOALS", "Goal", "Reading", "goal_table", "missed", "reading"]

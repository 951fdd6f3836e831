"""The README's table: what a reader asks first, each line from the newest record that has it."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.show.library import CHANGED, Library, Stored
from benchmarks.show.table import Number, Table


@dataclass(frozen=True)
class Headline:
    """A line: a number of ours and the same number of other ways, all from one record.

    Args:
        what: in words.
        number: the name of the number, with `{}` where the implementation stands.
        ours: the implementation's name.
        others: names of other implementations, with what to call them; those that a record lacks are left out.
        unit: after each number, and how many digits: `µs`, `ms` or `×`.
        share: the name of a share of the bandwidth to add to ours.
        on: `gpu` or `cpu`.
    """

    what: str
    number: str
    ours: str
    others: dict[str, str]
    unit: str = "µs"
    share: str = ""
    on: str = "gpu"

    def write(self, value: float) -> str:
        """A number in the unit.

        Example:
            >>> Headline("", "", "", {}).write(10232.4), Headline("", "", "", {}, unit="×").write(1.2071)
            ('10,232 µs', '1.21 ×')
        """
        if self.unit == "×":
            return f"{value:.2f} ×"
        return f"{value:,.1f} {self.unit}" if value < 1000 else f"{value:,.0f} {self.unit}"


_HOOKS = {"eager hooks": "hooks", "torch.compile of hooks": "torch.compile of hooks"}
_STEP = {"two-forwards": "two plain forwards", "hooks": "hooks", "published": "the published way"}
_PROMPT = {"hooks": "hooks", "published": "the published way"}

HEADLINES: tuple[Headline, ...] = (
    Headline(
        "`connect`, 32 layers, 16 rows, d=4096: forward",
        "connect L=32 K=16 d=4096 forward, {}, device_us",
        "cc_kernels",
        _HOOKS,
    ),
    Headline(
        "the same, forward and backward",
        "connect L=32 K=16 d=4096 forward+backward, {}, device_us",
        "cc_kernels",
        _HOOKS,
    ),
    Headline(
        "`transform_rows`, 16 rows, d=4096",
        "transform_rows 16x4096, {}, device_us",
        "cc_kernels",
        {"eager": "library matmul"},
        share="transform_rows 16x4096, cc_kernels, share_of_read",
    ),
    Headline(
        "the same, called eagerly",
        "transform_rows 16x4096, {}, eager_us",
        "cc_kernels",
        {"eager": "library matmul", "published": "the published way"},
    ),
    Headline(
        "`gate_up_swiglu`, 16 tokens of Llama-3.1-8B",
        "gate_up_swiglu 16 of 14336x4096, {}, device_us",
        "cc_kernels",
        {"one concatenated matmul + swiglu": "one concatenated matmul and `swiglu`"},
        share="gate_up_swiglu 16 of 14336x4096, cc_kernels, share_of_read",
    ),
    Headline(
        "`swiglu`, 4,096 tokens of Llama-3.1-8B, forward",
        "swiglu 4096x14336 forward, {}, device_us",
        "cc_kernels",
        {"torch.compile": "torch.compile", "liger": "Liger", "eager": "eager"},
    ),
    Headline(
        "the same, forward and backward",
        "swiglu 4096x14336 forward+backward, {}, device_us",
        "cc_kernels",
        {"torch.compile": "torch.compile", "liger": "Liger", "eager": "eager"},
    ),
    Headline(
        "training step of a 1B model ÷ plain step, 4 translations of each English prompt",
        "1b, train 8 x 640, pivot 512, 4 translations per prompt, {}, ratio",
        "ours-graph",
        {"ours": "without the CUDA graph", "vanilla-loss-only": "plain with the same head", **_STEP},
        "×",
    ),
    Headline(
        "training step of an 8B model ÷ plain step, an English prompt for each row",
        "8b, train 2 x 640, pivot 512, {}, ratio",
        "ours-graph",
        {"ours": "without the CUDA graph", "vanilla-loss-only": "plain with the same head", **_STEP},
        "×",
    ),
    Headline("first token of a 1B model ÷ plain, eager", "1b, infer 1 x 512, {}, ratio", "ours", _PROMPT, "×"),
    Headline(
        "training step of a tiny model ÷ plain step, 8 translations of each English prompt, the head on labels",
        "tiny-8k, train 16 x 128, pivot 96, 8 translations per prompt, {}, ratio",
        "ours",
        {"vanilla-loss-only": "plain with the same head", **_STEP},
        "×",
        on="cpu",
    ),
    Headline(
        "the same, each row with a prompt of its own",
        "tiny-8k, train 16 x 128, pivot 96, {}, ratio",
        "ours",
        {"vanilla-loss-only": "plain with the same head", **_STEP},
        "×",
        on="cpu",
    ),
    Headline(
        "the same, 2 longer rows with the head on every token",
        "tiny, train 2 x 512, pivot 384, {}, ratio",
        "ours",
        _STEP,
        "×",
        on="cpu",
    ),
    Headline("first token of a small model ÷ plain", "small, infer 1 x 512, {}, ratio", "ours", _PROMPT, "×", on="cpu"),
)


def _newest(line: Headline, library: Library) -> tuple[Stored, dict[str, Number]] | None:
    name = line.number.format(line.ours)
    found = [(stored, numbers) for stored, numbers in library.numbers(line.on) if name in numbers]
    return max(found, key=lambda pair: pair[0].age(pair[1][name].part), default=None)


def headline_table(library: Library) -> Table:
    """One row per headline that a record has numbers for."""
    rows = []
    for line in HEADLINES:
        found = _newest(line, library)
        if found is None:
            continue
        stored, numbers = found
        ours = numbers[line.number.format(line.ours)]
        share = f", {numbers[line.share].value:.0%} of the read bandwidth" if line.share in numbers else ""
        named = {line.number.format(name): title for name, title in line.others.items()}
        others = [f"{title} {line.write(numbers[name].value)}" for name, title in named.items() if name in numbers]
        where = f"{stored.device}, {stored.commit}{'' if stored.is_current(ours.part) else CHANGED}"
        rows.append([line.what, f"{line.write(ours.value)}{share}".replace("%", " %"), ", ".join(others), where])
    return Table("", ["", "ours", "others", "on, of commit"], rows)


__all__ = ["HEADLINES", "Headline", "headline_table"]

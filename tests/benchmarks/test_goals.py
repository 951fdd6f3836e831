"""Goals beside what the newest records say: the newest code first, the worst shape, ratios within one record."""

from __future__ import annotations

import json

import pytest

from benchmarks.measure.record import ROOT
from benchmarks.measure.sources import content
from benchmarks.show import goals, headlines
from benchmarks.show.goals import GOALS, Goal, goal_table, reading
from benchmarks.show.library import CHANGED, Library

PAIRS = (
    ("op a, cc_kernels, device_us", "op a, hooks, device_us"),
    ("op b, cc_kernels, device_us", "op b, hooks, device_us"),
)
GOAL = Goal("ours ÷ hooks", 1.0, pairs=PAIRS)


def row(case, implementation, microseconds):
    return {"case": case, "implementation": implementation, "device_us": {"median": microseconds}}


def record(*rows, digest="old", committed="", part="swiglu"):
    """A record of a GPU: rows of case, implementation and time."""
    facts = {"device": "a GPU", "driver": "1", "commit": f"c{committed}", "committed": committed}
    return {"kind": "ops", "facts": facts, "content": {part: digest}, "ops": {part: [row(*of) for of in rows]}}


@pytest.fixture
def library(tmp_path):
    def made(**records):
        for name, content_ in records.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content_))
        return Library(tmp_path)

    return made


SLOW = (("op a", "cc_kernels", 3.0), ("op a", "hooks", 2.0))
FAST = (("op a", "cc_kernels", 1.0), ("op a", "hooks", 2.0))


def test_the_present_code_counts_before_a_later_commit(library):
    found = reading(GOAL, library(a=record(*FAST, digest=content("swiglu")), b=record(*SLOW, committed="2026-02-01")))
    assert found.value == 0.5
    assert CHANGED not in found.stored.provenance("swiglu")


def test_of_old_code_the_later_commit_counts(library):
    found = reading(GOAL, library(b=record(*FAST, committed="2026-01-01"), a=record(*SLOW, committed="2026-02-01")))
    assert found.value == 1.5
    assert found.stored.provenance("swiglu") == f"`a`, c2026-02-01{CHANGED}"


def test_a_ratio_is_of_one_record(library):
    """Ours of one run is never divided by the hooks of another."""
    assert reading(GOAL, library(a=record(FAST[0]), b=record(SLOW[1]))) is None


def test_the_worst_shape_counts(library):
    both = library(a=record(*FAST, ("op b", "cc_kernels", 4.0), ("op b", "hooks", 2.0)))
    assert reading(GOAL, both).value == 2.0
    at_least = Goal("hooks ÷ ours", 1.0, pairs=tuple((b, a) for a, b in PAIRS), at_least=True)
    assert reading(at_least, both).value == 0.5
    assert not at_least.is_met(0.5)


def test_the_table_says_met_missed_held_and_not_measured(library, monkeypatch):
    some = library(a=record(*FAST), b=record(("op c", "cc_kernels", 13.0)))
    chosen = (
        GOAL,
        Goal("time of c", 12, pairs=(("op c, cc_kernels, device_us", None),), unit="µs"),
        Goal("counted", 0, "cpu", held_by="tests/a.py"),
        Goal("later", 0.5),
        Goal("on a CPU", 1.0, "cpu", pairs=PAIRS),
    )
    monkeypatch.setattr(goals, "GOALS", chosen)
    assert [row[3:5] for row in goal_table(some).rows] == [
        ["0.5 (1 of 2 shapes)", "met"],
        ["13.0 µs", "**missed**"],
        ["a test", "held"],
        ["–", "not measured"],
        ["–", "not measured"],
    ]
    assert goals.missed(chosen[0], some) is None
    assert goals.missed(chosen[1], some).value == 13.0


def test_records_inside_a_run_are_read_and_smoke_tests_are_not(library):
    run = {"kind": "gpu", "smoke": False, "facts": {"committed": "2026-03-01", "device": "a CPU"}}
    job = {"state": "done", "seconds": 1.0, "record": record(*FAST)}
    del job["record"]["facts"]["committed"]
    assert reading(GOAL, library(a={**run, "smoke": True, "jobs": {"x": job}})) is None
    found = reading(GOAL, library(a={**run, "jobs": {"x": job}}))
    assert found.stored.name == "a/x"
    assert found.stored.facts["committed"] == "2026-03-01"


def test_what_holds_a_goal_exists():
    held = [goal.held_by for goal in GOALS if goal.held_by]
    assert held
    assert all((ROOT / path).is_file() for path in held)
    assert all(not (goal.held_by and goal.pairs) for goal in GOALS)


def test_names_of_goals_and_headlines_are_those_of_records():
    """A number that no record has could be a misspelt one: goals that are measured read every one of their numbers."""
    library = Library()
    known = {name for on in ("cpu", "gpu") for _, numbers in library.numbers(on) for name in numbers}
    for goal in GOALS:
        if reading(goal, library) is not None:
            assert {name for pair in goal.pairs for name in pair if name} <= known, goal.what
    lines = [line.number.format(line.ours) for line in headlines.HEADLINES]
    assert set(lines) <= known
    assert {line.share for line in headlines.HEADLINES if line.share} <= known

"""What an experiment compares: a YAML file as checked dataclasses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from cc_kernels.backend import BACKENDS
from cc_model import CCConfig
from train.common.files import read_yaml
from train.common.modes import VANILLA
from train.experiment.entries import entry

CC, BOTH, TRUTH = "cc", "both", "truth"
METHODS = (VANILLA, CC, BOTH)
FIT_OPTIONS: dict[str, type] = {"ridge": float, "per_layer": bool, "affine": bool, "pairs": int}


@dataclass(frozen=True)
class Condition:
    """One way to train.

    Args:
        method: `"vanilla"`, `"cc"`, or `"both"`: a plain model that reads the English question and then the question,
            in one context, in training and when it is asked.
        config: fields of `cc_model.CCConfig`; with `simulated_share` the training uses `SimulatedTraining`.
        ramp: of `cc_model.integrations.trainer.SimulatedTraining`.
        refit_steps: of the same.
        teacher: the condition whose answers to the prompts of half A are trained on, too; or `"truth"`: the right ones.
        keep: share of the teacher's answers that is trained on: the likeliest; None for all.
        top: learn the teacher's distributions along its answers, with so many tokens of each; None: their text.
        text_weight: with `top`, α of `train.distillation.targets`.
    """

    method: str = CC
    config: Mapping[str, Any] = field(default_factory=dict)
    ramp: float = 0.5
    refit_steps: int = 25
    teacher: str | None = None
    keep: float | None = None
    top: int | None = None
    text_weight: float = 0.0

    def __post_init__(self) -> None:
        """Check."""
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {self.method!r}")
        CCConfig.from_dict(dict(self.config))
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"ramp: expected a share from 0 to 1, got {self.ramp}")
        if self.refit_steps < 0:
            raise ValueError(f"refit_steps: expected 0 or more, got {self.refit_steps}")
        if self.keep is not None and (self.teacher in (None, TRUTH) or not 0 < self.keep <= 1):
            raise ValueError(
                f"keep: expected a share above 0 and at most 1 of a teacher's answers, got {self.keep} of teacher "
                f"{self.teacher}"
            )
        if self.top is not None and (self.teacher in (None, TRUTH) or self.method != VANILLA or self.top < 1):
            raise ValueError(
                f"top: expected a positive number, of a vanilla student with a teacher, got {self.top} with method "
                f"{self.method} and teacher {self.teacher}"
            )
        if not 0 <= self.text_weight <= 1 or (self.text_weight and self.top is None):
            raise ValueError(f"text_weight: expected a share from 0 to 1, with top, got {self.text_weight}")


@dataclass(frozen=True)
class Settings:
    """Everything that the numbers depend on.

    Args:
        conditions: by name; `"vanilla"` is what the others are compared with.
        maps: by name, options of `fit_transform_matrix` and `pairs`; each is fitted to the models of `maps_of`.
        model: folder of pretrained weights; or
        scratch: fields of a new model, with `vocab_size` tokens.
        data: folder that `python -m train.experiment --prepare` wrote; None builds the rows from CLDR.
        languages, relations, held_out: of `train.data.cldr`.
        seeds: each gives split, data order, first weights and noise.
        backend: of `cc_kernels.use_backend`.
        bf16: train and evaluate under autocast to bfloat16; weights and optimizer stay fp32.
        questions: most held-out questions that are asked.
    """

    conditions: Mapping[str, Condition]
    maps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    maps_of: str = "cc"
    model: str | None = None
    scratch: Mapping[str, Any] | None = None
    vocab_size: int = 4096
    data: str | None = None
    languages: tuple[str, ...] = ("en", "de", "es", "fr", "ja", "ko", "ru", "zh")
    relations: tuple[str, ...] = ("currency", "official_language")
    held_out: float = 0.2
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 300
    batch_size: int = 16
    learning_rate: float = 1e-4
    max_length: int = 256
    workers: int = 0
    backend: str = "auto"
    bf16: bool = False
    fit_pairs: int = 1000
    refit_pairs: int = 300
    questions: int = 500
    eval_batch_size: int = 128

    def __post_init__(self) -> None:
        """Check what later steps would find out too late."""
        if VANILLA not in self.conditions:
            raise ValueError(f"conditions: expected one named 'vanilla', got {', '.join(self.conditions) or 'none'}")
        if (self.model is None) == (self.scratch is None):
            raise ValueError("model: expected either model or scratch, got " + ("both" if self.model else "neither"))
        if self.maps and self.maps_of not in self.conditions:
            raise ValueError(f"maps_of: expected one of {', '.join(self.conditions)}, got {self.maps_of!r}")
        for name, condition in self.conditions.items():
            self._check_teacher(name, condition.teacher)
        for name, options in self.maps.items():
            unknown = sorted(set(options) - set(FIT_OPTIONS))
            if unknown:
                raise ValueError(f"maps: {name}: expected some of {', '.join(FIT_OPTIONS)}, got {unknown}")
            if options.get("ridge", 0) < 0 or options.get("pairs", 1) < 1:
                raise ValueError(f"maps: {name}: expected ridge from 0 on and pairs above 0, got {dict(options)}")
        if not self.seeds or min(self.seeds) < 0:
            raise ValueError(f"seeds: expected one or more numbers from 0 on, got {list(self.seeds)}")
        for name in _ABOVE_0:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}")
        if self.workers < 0:
            raise ValueError(f"workers: expected 0 or more, got {self.workers}")
        if self.backend not in BACKENDS:
            raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {self.backend!r}")

    def _check_teacher(self, name: str, teacher: str | None) -> None:
        able = [TRUTH, *(other for other, condition in self.conditions.items() if condition.teacher is None)]
        if teacher is not None and teacher not in able:
            raise ValueError(f"conditions: {name}: teacher: expected one of {', '.join(able)}, got {teacher!r}")

    @property
    def taught(self) -> bool:
        """Whether a condition has a teacher. Then all answer the prompts of half A, and halves are told apart."""
        return any(condition.teacher for condition in self.conditions.values())

    def fingerprint(self, name: str) -> str:
        """A short hash of every setting on which the results of the condition `name` depend.

        Two runs with the same hash and the same seed give the same numbers, so a kept result with this hash is not
        computed again. Left out is what changes no number: the other conditions, the list of seeds (a result names its
        own), the folder of the data, the number of workers and the backend.
        """
        fields = {key: value for key, value in dataclasses.asdict(self).items() if key not in _NOT_PART_OF_A_RESULT}
        if not self.bf16:  # results from before it was an option keep their fingerprint
            del fields["bf16"]
        condition = self.conditions[name]
        fields["condition"] = dataclasses.asdict(condition)
        if not self.taught:  # as above
            del fields["condition"]["teacher"]
        elif condition.teacher not in (None, TRUTH):
            fields["teacher"] = dataclasses.asdict(self.conditions[str(condition.teacher)])
        for part in (fields["condition"], fields.get("teacher", {})):
            for option, value in _LATER.items():
                if part.get(option) == value:  # as above
                    part.pop(option, None)
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


_OWN = tuple(each.name for each in dataclasses.fields(Condition) if each.name != "config")
_ABOVE_0 = (
    *("steps", "batch_size", "learning_rate", "max_length", "vocab_size"),
    *("fit_pairs", "refit_pairs", "questions", "eval_batch_size"),
)
_LATER = {"keep": None, "top": None, "text_weight": 0.0}
_NOT_PART_OF_A_RESULT = ("conditions", "seeds", "data", "workers", "backend")


def read_settings(path: str | Path, **overrides: Any) -> Settings:
    """The settings of a YAML file.

    Args:
        path: the file.
        overrides: fields that replace the file's; None leaves the file's.

    Raises:
        ValueError: no such file, an unknown or a wrong entry.
    """
    entries = read_yaml(path)
    entries |= {name: value for name, value in overrides.items() if value is not None}
    _refuse_unknown("config", entries, Settings)
    conditions = {}
    for name, options in entry("conditions", entries.pop("conditions", None) or {}, Mapping[str, Any]).items():
        given = entry(f"conditions: {name}", options or {}, Mapping[str, Any])
        try:
            conditions[name] = _condition(given)
        except (ValueError, TypeError) as error:
            raise ValueError(f"conditions: {name}: {error}") from error
    kinds = get_type_hints(Settings)
    checked = {name: entry(name, value, kinds[name]) for name, value in entries.items()}
    for name, options in checked.get("maps", {}).items():
        for option in FIT_OPTIONS.keys() & options:
            options[option] = entry(f"maps: {name}: {option}", options[option], FIT_OPTIONS[option])
    return Settings(conditions=conditions, **checked)


def _condition(given: Mapping[str, Any]) -> Condition:
    """A condition: its own entries, and those of `CCConfig` beside them."""
    kinds = {**get_type_hints(CCConfig), **get_type_hints(Condition), "config": Any}
    checked = {name: entry(name, value, kinds.get(name, Any)) for name, value in given.items()}
    own = {name: checked.pop(name) for name in list(checked) if name in _OWN}
    return Condition(config=checked, **own)


def _refuse_unknown(what: str, entries: Mapping[str, Any], kind: type) -> None:
    known = {each.name for each in dataclasses.fields(kind)}
    for name in entries:
        if name not in known:
            raise ValueError(f"{what}: unknown entry {name!r}; expected some of {', '.join(sorted(known))}")


__all__ = ["BOTH", "CC", "TRUTH", "Condition", "Settings", "read_settings"]

"""Answers on disk, written as they come, so that an interrupted run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cc_model.files import write_text
from train.common.files import json_lines, read_records
from train.distillation.teacher import Answer, Targets

ANSWERS, OPTIONS = "answers.jsonl", "answers_options.json"
PROMPTS = ("instruction", "instruction_en", "messages", "messages_en")


class AnswerFile:
    """The answers of one teacher to one list of prompts, in `answers.jsonl`.

    A line has the number of its row, the row's prompt columns, `output`, `log_likelihood`, `ended` and `targets`, where
    there are some. It is written with its batch; a line that was not written to its end is answered again. Before the
    first answer nothing is written: a teacher that cannot answer leaves the folder as it was.

    Args:
        folder: of the file.
        rows: the prompts.
        options: what the answers depend on besides; kept in `answers_options.json`.
        anew: forget what is there.

    Raises:
        ValueError: the file holds answers to other prompts, or of other options; the message names the first.

    Example:
        >>> import tempfile
        >>> folder, rows = tempfile.mkdtemp(), [{"instruction": "Land?"}, {"instruction": "Geld?"}]
        >>> AnswerFile(folder, rows, {"teacher": "runs/cc"}).add({1: Answer("Yen", -0.25)})
        >>> kept = AnswerFile(folder, rows, {"teacher": "runs/cc"})
        >>> kept.answers, kept.missing
        ({1: Answer(text='Yen', log_likelihood=-0.25, ended=True, targets=None)}, [0])
    """

    def __init__(
        self, folder: str | Path, rows: Sequence[Mapping[str, Any]], options: Mapping[str, Any], anew: bool = False
    ) -> None:
        self.path, self.rows = Path(folder) / ANSWERS, rows
        self.options, self.answers = dict(options), dict[int, Answer]()
        if not anew and self.path.is_file() and b"\n" in self.path.read_bytes():
            self._check_options(options)
            self._read()

    @property
    def missing(self) -> list[int]:
        """Numbers of the rows without an answer."""
        return [number for number in range(len(self.rows)) if number not in self.answers]

    def add(self, answers: Mapping[int, Answer]) -> None:
        """Write a batch; the first one takes the place of what was there."""
        if not self.answers:
            self.path.write_bytes(b"")
            write_text(self.path.with_name(OPTIONS), json.dumps(self.options, indent=1) + "\n")
        lines = [
            {
                "row": number,
                **_prompt(self.rows[number]),
                "output": answer.text,
                "log_likelihood": answer.log_likelihood,
                "ended": answer.ended,
                **({} if answer.targets is None else {"targets": answer.targets._asdict()}),
            }
            for number, answer in answers.items()
        ]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json_lines(lines))
        self.answers |= answers

    def _check_options(self, options: Mapping[str, Any]) -> None:
        path = self.path.with_name(OPTIONS)
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for name, value in options.items():
            if before.get(name) != value:
                raise ValueError(
                    f"{name}: the answers in {self.path} were written with {before.get(name)!r}, now it is {value!r}; "
                    "go on with the same, answer anew with --overwrite, or choose another folder"
                )

    def _read(self) -> None:
        whole = self.path.read_bytes()
        if not whole.endswith(b"\n"):
            self.path.write_bytes(whole[: whole.rfind(b"\n") + 1])
        for where, line in read_records(self.path, "answers"):
            number = line["row"]
            if not 0 <= number < len(self.rows) or _prompt(line) != _prompt(self.rows[number]):
                raise ValueError(
                    f"prompts: {where} of {self.path} answers another prompt than row {number} of these; go on with "
                    "the same prompts, answer anew with --overwrite, or choose another folder"
                )
            targets = Targets(**line["targets"]) if "targets" in line else None
            self.answers[number] = Answer(line["output"], line["log_likelihood"], line["ended"], targets)


def _prompt(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in PROMPTS if row.get(name) is not None}


__all__ = ["ANSWERS", "AnswerFile"]

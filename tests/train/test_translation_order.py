"""The program that measures what windows of translations do to the loss, with two languages and two steps."""

import re

from train.experiment import translation_order


def test_translations_read_fewer_prompts(monkeypatch, capsys):
    monkeypatch.setattr(translation_order, "LANGUAGES", ("en", "de", "fr"))
    monkeypatch.setattr(translation_order, "VOCABULARY", 400)
    translation_order.main(["--translations", "2", "--seeds", "1", "--steps", "2"])
    shown = capsys.readouterr().out
    table = dict(re.findall(r"^\| (\w.*?) \|.*\| ([\d.]+) \|$", shown, re.MULTILINE))
    assert list(table) == ["shuffled", "2 translations together"]
    assert float(table["2 translations together"]) < float(table["shuffled"]) <= 16
    assert len(re.findall(r"^seed 0, .*: training loss \d\.\d+, held out \d\.\d+$", shown, re.MULTILINE)) == 2

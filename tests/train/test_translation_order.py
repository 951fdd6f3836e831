"""The measurement of what windows of translations do to the loss, on two steps."""

from __future__ import annotations

from train import translation_order


def test_measures_each_order(monkeypatch, capsys):
    monkeypatch.setattr(
        translation_order,
        "MODEL",
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    )
    monkeypatch.setattr(translation_order, "LANGUAGES", ("en", "de", "fr", "es"))
    translation_order.main(["--translations", "3", "--seeds", "2", "--steps", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == [
        f"seed {seed}, {order}" for seed in (0, 1) for order in ("shuffled", "3 translations together")
    ]
    rows = [line.strip("| ").split(" | ") for line in lines[6:]]
    assert [row[0] for row in rows] == ["shuffled", "3 translations together"]
    assert all("±" in cell for row in rows for cell in row[1:3])
    assert float(rows[1][3]) < float(rows[0][3]) <= 16, "fewer English prompts per step"

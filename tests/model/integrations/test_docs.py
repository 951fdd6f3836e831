"""The Python snippets of docs/integrations.md run, in their order, in one namespace."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

DOCUMENT = Path(__file__).parents[3] / "docs" / "integrations.md"
SECTIONS = re.split(r"^## ", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = {
    "TRL": "trl",
    "Preference training": "trl",
    "PEFT": "peft",
    "Quantised linears": "bitsandbytes",
    "Liger": "liger_kernel",
}


def test_snippets(tmp_path, monkeypatch):
    """In one test, because a snippet uses what those before it have defined."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for section in SECTIONS:
        title, _, text = section.partition("\n")
        title = title.strip("# ")
        if title in NEEDS and find_spec(NEEDS[title]) is None:
            continue
        snippets = SNIPPET.findall(text)
        assert snippets, f"{title}: no snippet"
        for snippet in snippets:
            exec(compile(snippet, f"{DOCUMENT.name}: {title}", "exec"), names)

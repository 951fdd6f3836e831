"""The Python snippets of docs/integrations.md run, in their order, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[3] / "docs" / "integrations.md"
SECTIONS = re.split(r"^## ", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = {"TRL": "trl", "PEFT": "peft", "Quantised linears": "bitsandbytes", "Liger": "liger_kernel"}


@pytest.fixture(scope="module")
def namespace(tmp_path_factory):
    """What the snippets so far have defined, and the folder in which they write."""
    return {}, tmp_path_factory.mktemp("snippets")


@pytest.mark.parametrize("section", range(len(SECTIONS)), ids=[text.splitlines()[0].strip("# ") for text in SECTIONS])
def test_snippets(section, namespace, monkeypatch):
    title, _, text = SECTIONS[section].partition("\n")
    if title in NEEDS:
        pytest.importorskip(NEEDS[title])
    names, folder = namespace
    monkeypatch.chdir(folder)
    snippets = SNIPPET.findall(text)
    assert snippets, f"{title}: no snippet"
    for snippet in snippets:
        exec(compile(snippet, f"{DOCUMENT.name}: {title}", "exec"), names)

"""What the documents show runs: the README's and the FAQ's Python, and every command that any of them names."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from word_tokenizers import ROW, make_tokenizer

from cc_model import CCConfig, patch_model
from cc_model.forward.simulated_call import SimulatedCall
from cc_model.specs import SPECS, ModelSpec
from cc_model.testing import random_matrix, tiny_model

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"python -m ((?:train|benchmarks|cc_model|cc_kernels)[\w.]*)((?:\\\n|[^`\n])*)")


def snippets(path):
    return PYTHON.findall((ROOT / path).read_text(encoding="utf-8"))


def test_readme(monkeypatch, tmp_path):
    """As written, but for the hub: a tiny model and a tokenizer of words stand in for Llama-3.1-8B."""
    (source,) = snippets("README.md")
    tokenizer = make_tokenizer("llama3")
    tokenizer.padding_side = "left"
    asked = []

    def model(name, dtype):
        asked.append(name)
        return tiny_model("llama", vocab_size=len(tokenizer)).to(dtype)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda name, padding_side: asked.append(name) or tokenizer)
    monkeypatch.chdir(tmp_path)
    names = {"rows": [ROW] * 20}
    with monkeypatch.context() as patched:
        patched.setattr(AutoModelForCausalLM, "from_pretrained", model)
        loading, rest = source.split("\ntokenizer = ", 1)
        exec(compile(loading, "README.md", "exec"), names)
    names["model"].train()  # as Trainer leaves it
    connected, stock = [], SimulatedCall.note_prefills
    noted = lambda self, ways: connected.append(ways.obstacle) or stock(self, ways)  # noqa: E731
    monkeypatch.setattr(SimulatedCall, "note_prefills", noted)
    exec(compile("tokenizer = " + rest, "README.md", "exec"), names)
    assert asked == ["meta-llama/Llama-3.1-8B"] * 2
    assert names["model"].cc.transform_matrix is not None
    assert connected == [None]  # once, without an obstacle to one prefill
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "my-model").config.vocab_size == len(tokenizer)


def test_faq():
    repair, backend = snippets("docs/faq.md")
    model = patch_model(tiny_model("llama"), CCConfig(inject_layer=1))
    model.cc.transform_matrix = random_matrix(model)
    learned = {name: value.clone() for name, value in model.cc.state_dict().items()}
    exec(compile(repair, "faq.md", "exec"), {"model": model})
    assert model.cc.config.inject_layer == 1
    assert model.cc.state_dict().keys() == learned.keys()
    assert all(torch.equal(value, learned[name]) for name, value in model.cc.state_dict().items())
    names = {}
    exec(compile(backend, "faq.md", "exec"), names)
    assert torch.equal(names["out"], torch.zeros(2, 8))


def test_adding_a_model(monkeypatch):
    (source,) = snippets("docs/adding-a-model.md")
    monkeypatch.setitem(SPECS, "mymodel", None)
    exec(compile(source, "adding-a-model.md", "exec"), {"SPECS": SPECS, "ModelSpec": ModelSpec})
    assert SPECS["mymodel"] == SPECS["llama"]


def commands():
    for document in DOCUMENTS:
        for module, rest in COMMAND.findall(document.read_text(encoding="utf-8")):
            yield pytest.param(module, rest, id=f"{document.name}: {module}")


def source_of(module):
    """The text of a module, or of the whole package that it runs."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"no module {module}"
    path = Path(spec.origin)
    files = path.parent.rglob("*.py") if path.name == "__init__.py" else path.parent.glob("*.py")
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


@pytest.mark.parametrize(("module", "rest"), list(commands()))
def test_commands_exist(module, rest):
    """The module is there, its options are known to it, and a config that it is given exists."""
    source = source_of(module)
    if (
        module == "cc_model.integrations.lm_eval"
    ):  # lm-eval's own command line; tests/train/test_evaluation_docs.py runs it
        return
    words = shlex.split(re.split(r"[|;#)]| and | for ", rest.replace("\\\n", " "))[0].replace("'", ""), comments=True)
    for option in (word.partition("=")[0] for word in words if word.startswith("--")):
        name = option.removeprefix("--")
        assert f'"{option}"' in source or re.search(rf"\b{name.replace('-', '_')}\b", source), (
            f"{module} has no {option}"
        )
    for config in (word for word in words if re.fullmatch(r"train/configs/.*\.yaml", word)):
        assert (ROOT / config).is_file(), f"{config} does not exist"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    """Relative links and pictures of a document exist."""
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"

"""Every name of vLLM that the plugin uses stands in `names.NAMES`, where it is checked before anything is changed."""

from __future__ import annotations

import ast
import hashlib
import inspect
import logging
from pathlib import Path

import pytest
import torch

import cc_model.integrations.vllm as package
from cc_model.integrations.vllm.names import NAMES, SOME_VERSIONS

FILES = ("front", "models", "plugin", "requests", "runner", "scheduler")  # the others know nothing of vLLM
LISTED = {
    name.partition("(")[0] for part in [*NAMES.values(), SOME_VERSIONS] for names in part.values() for name in names
}
PLACES = {place.replace(":", ".") for part in NAMES.values() for place in part}
STANDARD = (dict, list, str, type, torch.Tensor, torch.nn.Module, logging.Logger, inspect.Signature, hashlib.sha256())
COMMON = {"_replace", "arguments", "read_text"}.union(*map(dir, STANDARD))
OURS = {
    *("_counters", "addend", "again", "apply_", "attempt", "begin", "connected", "decision_maker", "finish", "forget"),
    *("from_json", "hasher", "inc", "inject_layer", "layers", "module", "name", "of_layer", "plan", "tensor_parallel"),
    *("to_device", "waits", "weight"),
}


def used(tree):
    """The names of attributes that a file reads or writes, and what it imports of vLLM."""
    modules = {
        alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if not (isinstance(root, ast.Name) and root.id in modules):  # torch.ops, functools.cache
                yield node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) in ("getattr", "hasattr", "wrap"):
            yield from (given.value for given in node.args[1:2] if isinstance(given, ast.Constant))


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", FILES)
def test_each_name_is_listed(file):
    tree = ast.parse((Path(package.__file__).parent / f"{file}.py").read_text())
    known = LISTED | COMMON | OURS
    unknown = {name for name in used(tree) if name not in known and not name.lstrip("_").startswith("cc")}
    assert not unknown, "list names of vLLM in names.NAMES, names of ours here"
    assert {*imported(tree)} <= PLACES


def test_a_name_that_is_not_listed_is_found():
    tree = ast.parse(
        "from vllm.new import Thing\ndef f(request):\n    request.a._renamed[0].get(getattr(request, 'b'))"
    )
    assert {*used(tree)} == {"a", "_renamed", "get", "b"}
    assert [*imported(tree)] == ["vllm.new.Thing"]


def test_ours_and_theirs_do_not_meet():
    assert not OURS & LISTED

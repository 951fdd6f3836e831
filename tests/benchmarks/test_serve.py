"""`benchmarks.serve`, with a stand-in for vLLM's engines; tests/serving runs it with vLLM."""

from __future__ import annotations

import json
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch

from benchmarks import serve
from benchmarks.measure.sources import contents
from benchmarks.show.serve import failures, numbers, tables
from cc_model import connection_disabled

SMALL = ["--model", "tiny", "--layers", "2", "--requests", "5", "--tokens", "3", "--prompts", "4", "9", "--batch", "2"]


class Engine:
    """One token per request and step; the last request's first step gives none, as one that is captured does."""

    def __init__(self, model):
        self.model, self.running = model, {}
        self.llm_engine = self

    def add_request(self, name, prompt, params):
        ids = torch.tensor([prompt["prompt_token_ids"]])
        with connection_disabled(self.model) if params.extra_args == {"cc": False} else torch.no_grad():
            tokens = self.model.generate(ids, do_sample=False, max_new_tokens=params.max_tokens)[0, ids.shape[1] :]
        self.running[name] = [tokens.tolist(), -1 if len(self.running) == 4 else 0]

    def has_unfinished_requests(self):
        return bool(self.running)

    def step(self):
        for name, (tokens, step) in list(self.running.items()):
            self.running[name][1] += 1
            if step + 1 == len(tokens):
                del self.running[name]
            yield SimpleNamespace(request_id=name, outputs=[SimpleNamespace(token_ids=tokens[: step + 1])])


@pytest.fixture
def ways(monkeypatch):
    """All five, of one connected model; SamplingParams is a plain record."""
    monkeypatch.setitem(serve.sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))
    model = serve.connected_model("tiny", 2)
    stock = serve.build("tiny", torch.device("cpu"), torch.float32, 2)
    engines = serve.Serve(Engine(model), {"cc": False}), serve.Serve(Engine(model), {"cc": False})
    made = serve.Generate(stock, 2), serve.Generate(model, 2), *engines, serve.Serve(Engine(model))
    return dict(zip(serve.WAYS, made))


def test_it_measures_and_compares(ways, tmp_path, monkeypatch, capsys):
    seen = {}

    def watched(name):
        return lambda prompts, *others: seen.setdefault(name, []).append(prompts) or ways[name](prompts, *others)

    ways_ = {"generate, plain": ways["generate, plain"]} | {name: watched(name) for name in serve.WAYS[1:]}
    monkeypatch.setattr(serve, "ways_of", lambda arguments, folder: ways_)
    out = tmp_path / "new" / "serve.json"
    arguments = serve.parser().parse_args([*SMALL, "--rounds", "3", "--out", str(out)])
    assert serve.run(arguments, "1.2.3") == 0
    record = json.loads(out.read_text())
    assert record["equal"] == {"plain": 5, "connected": 5, "differ": 5}
    assert (record["facts"]["vllm"], record["content"]) == ("1.2.3", contents(["serve"]))
    assert list(record["ways"]) == list(serve.WAYS)
    for row in record["ways"].values():
        assert row["seconds"]["samples"] == 3
        assert row["requests_per_second"]["median"] == pytest.approx(5 / row["seconds"]["median"])
        assert row["tokens_per_second"]["median"] == pytest.approx(15 / row["seconds"]["median"])
        assert 0 < row["first_token"]["median"] < row["seconds"]["high"]
    assert record["ways"][serve.PLAIN]["ratio"]["median"] == 1
    assert seen["vLLM, plain"] == seen["vLLM, connected"], "all ways answer the same prompts"
    rounds = [prompts for prompts in seen["vLLM, plain"] if len(prompts) == 5]
    assert len(rounds) == 4
    assert all(a != b for a, b in combinations(rounds, 2)), "each round has new ones"
    assert "requests/s, 1.000 of the time of vLLM, plain" in capsys.readouterr().out


def test_tokens_that_differ_are_a_failure(ways, monkeypatch):
    ways["vLLM, connected"] = ways["vLLM, plain"]
    monkeypatch.setattr(serve, "ways_of", lambda arguments, folder: ways)
    assert serve.run(serve.parser().parse_args([*SMALL, "--rounds", "1"]), "1.2.3") == 1


def test_first_tokens_come_batch_by_batch(ways):
    """At each batch's first token; of an engine at each request's."""
    ticks = iter(range(100))
    prompts = serve.prompts_of(5, (4, 9), 100, seed=0)
    assert ways["generate, connected"](prompts, 3, lambda: next(ticks))[1] == [0, 0, 1, 1, 2]
    assert ways["vLLM, connected"](prompts, 3, lambda: next(ticks))[1] == [3, 4, 5, 6, 11]


def test_table():
    spread = {"median": 0.5, "low": 0.25, "high": 1.0}
    row = dict.fromkeys(("requests_per_second", "tokens_per_second", "ratio", "first_token", "alone"), spread)
    given = {"model": "tiny", "requests": 5, "prompts": [4, 9], "tokens": 3, "batch": 2}
    record = {"facts": {"device": "a CPU", "vllm": "1.2.3"}, "arguments": given, "clock": "process"}
    record |= {"equal": {"plain": 5, "connected": 4}, "ways": {serve.PLAIN: {**row, "alone_ratio": spread}}}
    (table,) = tables(record)
    assert "tiny, fp32, a CPU, by the process's own time: 5 requests at once, prompts of 4 to 9 tokens" in table.title
    cells = ["0.50", "0", "0.500 (0.250–1.000)", "500", "500.00 (250.00–1000.00)", "0.500 (0.250–1.000)"]
    assert table.rows == [[serve.PLAIN, *cells]]
    assert failures(record) == ["connected: 4 of 5 answers equal generate's"]
    assert [number.name for number in numbers(record)][:2] == [
        "serve tiny, answers equal",
        "serve tiny, vLLM, plain, requests_per_second",
    ]
    assert next(numbers(record)).value == 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--requests", "0"], "--requests: expected 1 or more, got 0"),
        (["--layers", "0"], "--layers: expected 1 or more, got 0"),
        (["--prompts", "9", "4"], "--prompts: expected 1 ≤ from ≤ to, got [9, 4]"),
        ([], "expected vLLM to be installed, found none; make serving"),
        (["--model", "2b"], "invalid choice: '2b'"),
    ],
)
def test_refuses(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(serve, "packages_distributions", lambda: {})
    monkeypatch.setattr(serve.os, "environ", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        serve.main(arguments)
    assert message in capsys.readouterr().err


def test_refuses_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SystemExit):
        serve.main([])
    assert "expected a machine without a GPU" in capsys.readouterr().err

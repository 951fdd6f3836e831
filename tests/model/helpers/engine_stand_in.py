"""Stands in for vLLM where it is not installed: the same requests and outputs, computed by transformers."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cc_model import connection_disabled, from_pretrained

STARTED: list[StandIn] = []


class StandIn:
    """Like `vllm.LLM`: a connected model if it is told so, and a plain one else."""

    def __init__(self, model: str, dtype: str, max_model_len: int, hf_overrides: Any = None, **further: Any) -> None:
        self.connects = bool(hf_overrides)
        load: Any = from_pretrained if self.connects else AutoModelForCausalLM.from_pretrained
        self.model = load(Path(model), dtype=getattr(torch, dtype)).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.length, self.options = max_model_len, {"hf_overrides": hf_overrides, **further}
        self.closed, self.asked = 0, []
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self.shutdown))
        STARTED.append(self)

    def shutdown(self) -> None:
        self.closed += 1

    @torch.no_grad()
    def generate(self, prompts: list[dict[str, list[int]]], params: list[Any], use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        self.asked.append(len(prompts))
        return [self._one(prompt["prompt_token_ids"], each) for prompt, each in zip(prompts, params, strict=True)]

    def _one(self, prompt: list[int], params: Any) -> Any:
        assert len(prompt) < self.length, "vLLM refuses it"
        wish = params.extra_args
        assert (wish is not None) == self.connects
        ids = torch.tensor([prompt])
        if not self.connects:
            return self._answer(ids, params, {})
        if wish == {"cc": False}:
            with connection_disabled(self.model):
                return self._answer(ids, params, {})
        return self._answer(ids, params, {"connection_index": torch.tensor([wish["cc_index"]])})

    def _answer(self, ids: torch.Tensor, params: Any, inputs: dict[str, Any]) -> Any:
        if hasattr(params, "allowed_token_ids"):
            rows = [None, *self.model(ids, **inputs).logits[0].float().log_softmax(-1)]
            *read, last = zip(rows, [*ids[0].tolist(), params.allowed_token_ids[0]])
            prompt = [None if row is None else _told(row, token) for row, token in read]
            given = SimpleNamespace(logprobs=[_told(*last)], token_ids=[last[1]])
            return SimpleNamespace(
                prompt_logprobs=prompt if hasattr(params, "prompt_logprobs") else None, outputs=[given]
            )
        options = {"max_new_tokens": params.max_tokens, "repetition_penalty": params.repetition_penalty}
        options |= {"eos_token_id": params.stop_token_ids or None, "pad_token_id": 0, "do_sample": False}
        tokens = self.model.generate(ids, **inputs, **options)[0, ids.shape[1] :].tolist()
        texts = [self.tokenizer.decode(tokens[: end + 1]) for end in range(len(tokens))]
        ends = [end for end, text in enumerate(texts) if any(stop in text for stop in params.stop)]
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens[: ends[0] + 1] if ends else tokens)])


def _told(row: torch.Tensor, token: int) -> dict[int, Any]:
    return {token: SimpleNamespace(logprob=float(row[token]), rank=int((row >= row[token]).sum()))}


def stand_in(monkeypatch: Any) -> list[StandIn]:
    """Until the test ends `import vllm` gives the stand-in; the engines that start are listed."""
    STARTED.clear()
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=StandIn, SamplingParams=SimpleNamespace))
    return STARTED

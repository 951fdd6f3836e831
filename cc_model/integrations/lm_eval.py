"""lm-eval: the model type `cc`, which answers and scores with the connection.

    python -m cc_model.integrations.lm_eval run --model cc --model_args pretrained=my-model \\
        --tasks xstorycloze_ar --apply_chat_template --batch_size 16

The command is lm-eval's own, with all its options, and knows one model type more. Needs the extra `eval`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Any

import torch
from lm_eval.api.registry import model_registry
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

import cc_model
from cc_model.connection.state import connection_disabled
from cc_model.data.encoding import Encoder
from cc_model.data.published_positions import detect_template, published_position
from cc_model.scoring import ChoiceScore, score_choices

logger = logging.getLogger("cc_model")

Request = tuple[tuple[str, str], list[int], list[int]]  # (context, continuation), and the ids of both
UNSUPPORTED = ("peft", "delta", "autogptq", "gptqmodel", "gguf_file")


class _Loader:
    """Stands in for `AutoModelForCausalLM` where lm-eval loads a model."""

    from_pretrained = staticmethod(cc_model.from_pretrained)


class ConnectedLM(HFLM):
    """lm-eval's Hugging Face model, for a patched model: what it reads as a prompt, the model connects.

    - Generation connects once, at the prompt's last token, in one prefill.
    - Log-likelihoods too: the connection sits at the last prompt token, and all choices of a prompt share one prefill
      (`cc_model.scoring.score_choices`). A request without a prompt raises, because there is nothing to connect.
    - With `--apply_chat_template` prompts are written as `ParallelCollator` writes them, so a model reads what it was
      trained on, also without a chat template (`User: …` / `Assistant:`). No character of the prompt, such as a
      line break at its end, is moved into the answer, which lm-eval does otherwise.

    Args:
        pretrained: folder or hub name of what a patched model's `save_pretrained` wrote; or a model, patched or not.
        connection: False evaluates the plain model. Can be switched on the instance, `lm.connection = False`.
        position: `"last"`, or `"published"` for models trained with `ParallelCollator(position="published")`.
        system: text of a system turn, as in `ParallelCollator`.
        options: of `lm_eval.models.huggingface.HFLM`: `batch_size`, `device`, `dtype`, `max_length`, `tokenizer`, …

    Raises:
        ValueError: there is no Transform Matrix (with `connection=True`), or an option that replaces the model.

    Example:
        >>> from lm_eval.api.instance import Instance
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> from cc_model import patch_model
        >>> from cc_model.testing import random_matrix, tiny_model
        >>> words = {"<unk>": 0, "</s>": 1, "User": 2, "Assistant": 3, ":": 4, "Hauptstadt": 5, "Paris": 6, "Rom": 7}
        >>> core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        >>> core.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")
        >>> model = patch_model(tiny_model("llama"))
        >>> model.cc.transform_matrix = random_matrix(model)
        >>> lm = ConnectedLM(model, tokenizer=tokenizer)
        >>> prompt = lm.apply_chat_template([{"role": "user", "content": "Hauptstadt"}])
        >>> prompt
        'User: Hauptstadt\\nAssistant:'
        >>> pair = [Instance("loglikelihood", {}, (prompt, choice), i) for i, choice in enumerate(("Paris", "Rom"))]
        >>> [score < 0 for score, _ in lm.loglikelihood(pair, disable_tqdm=True)]
        [True, True]
    """

    AUTO_MODEL_CLASS: Any = _Loader

    def __init__(
        self,
        pretrained: Any,
        connection: bool = True,
        position: str = "last",
        system: str | None = None,
        **options: Any,
    ) -> None:
        given = [name for name in UNSUPPORTED if options.get(name)]
        if given:
            raise ValueError(f"{given[0]}: not supported by the model type 'cc'; load the model and pass it itself")
        if position not in ("last", "published"):
            raise ValueError(f"position: expected 'last' or 'published', got {position!r}")
        super().__init__(pretrained, backend="causal", **options)
        self.encoder = Encoder(self.tokenizer, system, self.chat_template_args)
        self.template = detect_template(self.tokenizer.get_vocab()) if position == "published" else None
        self.answer_prefix: str | None = None
        self.connection = connection
        self.progress: Callable[[int], Any] | None = None  # called with the number of requests done; replaces the bars

    @property
    def connection(self) -> bool:
        """Whether the connection is made."""
        return self._connection

    @connection.setter
    def connection(self, connect: bool) -> None:
        if connect and not self._can_connect():
            raise ValueError(
                "connection: expected a patched model with a Transform Matrix (fit_transform_matrix), got "
                f"{type(self.model).__name__} without one; connection=False evaluates the plain model"
            )
        self._connection = connect

    def _can_connect(self) -> bool:
        return hasattr(self.model, "cc") and self.model.cc.transform_matrix is not None

    def mode(self) -> AbstractContextManager[Any]:
        """The plain model inside `with`, unless the connection is to be made."""
        return nullcontext() if self.connection or not hasattr(self.model, "cc") else connection_disabled(self.model)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A prompt as the collator writes it."""
        if not add_generation_prompt:
            return super().apply_chat_template(chat_history, add_generation_prompt)
        if self.answer_prefix is None:
            self.answer_prefix = self._answer_prefix()
            self.add_bos_token = False  # the text holds its special tokens
        return self.encoder.render(chat_history)

    def _answer_prefix(self) -> str:
        """What stands between a prompt and its answer in training, such as the space after `Assistant:`."""
        question, answer = {"role": "user", "content": "q"}, "answer"
        prompt = self.encoder.render([question])
        whole = self.encoder.render([question, {"role": "assistant", "content": answer}], prompt=False)
        return whole[len(prompt) : whole.index(answer, len(prompt))] if whole.startswith(prompt) else ""

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of both; the prompt's are those of the prompt alone, whose last token is connected."""
        if self.answer_prefix is not None:
            continuation = self.answer_prefix + continuation.lstrip()
        prompt = self.tok_encode(context)
        whole = self.tok_encode(context + continuation)
        if whole[: len(prompt)] == prompt and len(whole) > len(prompt):
            return prompt, whole[len(prompt) :]
        return prompt, self.tok_encode(continuation, add_special_tokens=False)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """`(log-probability, is greedy)` of each request's continuation after its context."""
        empty = [request for request in requests if request.args[0] == ""]
        if empty and self.connection:
            raise ValueError(
                f"context: expected a prompt to connect, got an empty one in task {empty[0].task_name!r}, which scores "
                "whole sentences; use a task that asks, or connection=False"
            )
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm or self.progress is not None)

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None, **_: Any
    ) -> list[tuple[float, bool]]:
        scores: list[ChoiceScore | None] = [None] * len(requests)
        rows = override_bs or (self._detect_batch_size() if self.batch_size == "auto" else int(self.batch_size))
        with tqdm(total=len(requests), desc="log-likelihoods", disable=disable_tqdm or self.rank != 0) as bar:
            for batch in batched(requests, rows):
                choices = [[requests[number][2] for number in group] for group in batch]
                prompts = [self._kept(requests[group[0]][1], given) for group, given in zip(batch, choices)]
                found = self._score(prompts, choices)
                done = [number for group in batch for number in group]
                for number, score in zip(done, (score for row in found for score in row)):
                    scores[number] = score
                    self.cache_hook.add_partial("loglikelihood", requests[number][0], tuple(score))
                (self.progress or bar.update)(len(done))
        return [(score.logprob, score.greedy) for score in scores if score is not None]

    def _score(self, prompts: list[list[int]], choices: list[list[list[int]]]) -> list[list[ChoiceScore]]:
        with self.mode():
            return score_choices(self.model, prompts, choices, self._indices(prompts))

    def _kept(self, prompt: list[int], choices: Sequence[list[int]]) -> list[int]:
        """The end of a prompt that fits beside its longest choice, whose last token is never read."""
        room = self.max_length - max(map(len, choices)) + 1
        if room < 1:
            raise ValueError(f"max_length: expected more than the {self.max_length} tokens of a choice")
        if len(prompt) > room:
            logger.warning("a prompt of %d tokens lost its beginning; %d fit beside the choices", len(prompt), room)
        return prompt[-room:]

    def _indices(self, prompts: Sequence[Sequence[int]]) -> list[int] | None:
        """Where each prompt connects; None for the last token, or for the plain model."""
        if self.template is None or not self.connection:
            return None
        indices = [published_position(prompt, *self.template) for prompt in prompts]
        for index, prompt in zip(indices, prompts):
            if not 0 <= index < len(prompt):
                raise ValueError(f"position: 'published' finds no token in a prompt of {len(prompt)}; use 'last'")
        return indices

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of texts without a prompt: the plain model's."""
        if self.connection:
            raise ValueError("loglikelihood_rolling: a text has no prompt to connect; use connection=False")
        with self.mode():
            return super().loglikelihood_rolling(requests, disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Batched generation, connected once per prompt."""
        return super().generate_until(requests, disable_tqdm=disable_tqdm or self.progress is not None)

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **generation: Any) -> Any:
        mask = generation["attention_mask"].bool()
        indices = self._indices([row[keep].tolist() for row, keep in zip(context, mask)])
        if indices is not None:
            starts = (~mask).sum(dim=1)  # left padding
            generation["connection_index"] = torch.tensor(indices, device=context.device) + starts
        with self.mode():
            tokens = super()._model_generate(context, max_length, stop, **generation)
        if self.progress is not None:
            self.progress(context.shape[0])
        return tokens


def batched(requests: Sequence[Request], rows: int) -> Iterator[list[list[int]]]:
    """Numbers of requests, grouped by prompt, in batches of prompts whose forwards have at most `rows` rows.

    The longest prompts come first, so that running out of memory happens at the start. A prompt whose choices are one
    token each takes one row, otherwise one row per choice.

    Example:
        >>> requests = [(("", ""), [1], [5]), (("", ""), [1, 2], [5, 6]), (("", ""), [1, 2], [7]), (("", ""), [1], [8])]
        >>> list(batched(requests, rows=2))
        [[[1, 2]], [[0, 3]]]
    """

    def prompt(number: int) -> tuple[int, list[int]]:
        return -len(requests[number][1]), requests[number][1]

    batch: list[list[int]] = []
    taken = 0
    for _, group in groupby(sorted(range(len(requests)), key=prompt), key=prompt):
        numbers = list(group)
        single = all(len(requests[number][2]) == 1 for number in numbers)
        needed = 1 if single else len(numbers)
        if batch and taken + needed > rows:
            yield batch
            batch, taken = [], 0
        batch.append(numbers)
        taken += needed
    if batch:
        yield batch


def main() -> None:
    """lm-eval's command line, with the model type `cc`."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if "cc" not in model_registry:  # by name: as a script this module is `__main__`, and not the one that is imported
    model_registry.register("cc", target="cc_model.integrations.lm_eval:ConnectedLM")

if __name__ == "__main__":
    main()

__all__ = ["ConnectedLM", "main"]

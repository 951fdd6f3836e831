"""A teacher's token distributions as targets: what it would also have said at each token of its answer.

For token t of an answer the teacher has the distribution p_t, given prompt and the answer's tokens before t. Its k
likeliest tokens are kept, and the others as one bucket R. With the student's distribution q_t, which reads no English:

    KL_t = Σ_{i in top k} p_t(i) log(p_t(i) / q_t(i)) + p_t(R) log(p_t(R) / q_t(R))        p_t(R) = 1 − Σ p_t(i)

    loss = 1/N (Σ_{labelled tokens} CE_t + Σ_{tokens of answers} [α CE_t + (1 − α) KL_t])

N is the number of tokens of all labels, as in the stock loss; α = 1 learns the text alone. Logarithms are fp32.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cc_model.data.collator import ParallelCollator
from cc_model.data.positions import IGNORE_INDEX
from cc_model.integrations.trainer import STOCK_KEYS, CCTrainer
from train.distillation.selection import taught_rows
from train.distillation.teacher import Answer, Targets

COLUMN = "target"  # of a row: the number of its targets
ROWS, TOP, LOG_PROBS = "target_rows", "target_top", "target_log_probs"  # of a batch


@torch.no_grad()
def answer_targets(
    model: Any, collator: ParallelCollator, rows: Sequence[Mapping[str, Any]], top: int = 8, pivot: bool = True
) -> list[Targets]:
    """The teacher's distributions along the answers that stand in the rows, by one forward of them all.

    Args:
        model: in evaluation mode; a CC model reads the rows' English prompts.
        collator: that it was trained with.
        rows: with answers, as `train.distillation.selection.taught_rows` gives them.
        top: k; at most the vocabulary without one token.
        pivot: read the English prompts; a model without the connection never does.

    Raises:
        ValueError: `top` is below 1.

    Example:
        >>> from cc_model.testing import tiny_model
        >>> from train.common.models import new_tokenizer
        >>> rows = [{"instruction": "Hauptstadt?", "output": "Paris"}]
        >>> collator = ParallelCollator(new_tokenizer(rows, 300))
        >>> [found] = answer_targets(tiny_model("llama", vocab_size=300).eval(), collator, rows, top=4)
        >>> collator.tokenizer.decode(found.tokens[:-1]), len(found.top) == len(found.tokens), len(found.top[0])
        ('Paris', True, 4)
    """
    if top < 1:
        raise ValueError(f"top: expected a positive number, got {top}")
    alone = copy.copy(collator)
    alone.packed = alone.loss_only = False
    batch = alone(rows)
    labels = batch.pop("labels")[:, 1:]
    if not (pivot and hasattr(model, "cc")):
        batch = {name: value for name, value in batch.items() if name in STOCK_KEYS}
    logits = model(**{name: value.to(model.device) for name, value in batch.items()}).logits[:, :-1]
    found = []
    for row, tokens in zip(logits, labels):
        answered = tokens != IGNORE_INDEX
        values, ids = row[answered.to(row.device)].float().log_softmax(-1).topk(min(top, row.shape[-1] - 1))
        rounded = [[round(value, 4) for value in line] for line in values.tolist()]
        found.append(Targets(tokens[answered].tolist(), ids.tolist(), rounded))
    return found


def with_targets(
    model: Any,
    collator: ParallelCollator,
    rows: Sequence[Mapping[str, Any]],
    answers: Mapping[int, Answer],
    top: int = 8,
    pivot: bool = True,
) -> dict[int, Answer]:
    """Answers by the number of their row, with targets where an answer can be learned: it is not empty, and ended.

    Arguments and errors are those of `answer_targets`; `rows` are all prompts.

    Example:
        >>> from cc_model.testing import tiny_model
        >>> from train.common.models import new_tokenizer
        >>> rows = [{"instruction": "Hauptstadt?"}, {"instruction": "Geld?"}]
        >>> teacher, collator = tiny_model("llama", vocab_size=300).eval(), ParallelCollator(new_tokenizer(rows, 300))
        >>> found = with_targets(teacher, collator, rows, {0: Answer("Paris", -0.1), 1: Answer("", -0.1)}, top=4)
        >>> found[0].targets is None, found[1].targets is None
        (False, True)
    """
    usable = [number for number, answer in answers.items() if answer.text and answer.ended]
    if not usable:
        return dict(answers)
    asked = taught_rows([rows[number] for number in usable], [answers[number] for number in usable])
    found = dict(zip(usable, answer_targets(model, collator, asked, top, pivot), strict=True))
    return {number: answer._replace(targets=found.get(number)) for number, answer in answers.items()}


def divergence(logits: Tensor, top: Tensor, log_probs: Tensor) -> Tensor:
    """`KL_t` of the module's docstring for each of N tokens, `(N,)` fp32.

    Args:
        logits: `(N, V)` of the student, any float dtype.
        top: `(N, k)` int64, k < V.
        log_probs: `(N, k)` fp32, the teacher's.

    Example:
        >>> same = torch.tensor([[0.5, 0.3, 0.2]]).log()
        >>> round(divergence(same, torch.tensor([[0, 1]]), same[:, :2]).item(), 6)
        0.0
    """
    own = logits.float().log_softmax(-1)
    rest = own.scatter(1, top, -torch.inf).logsumexp(-1)
    share = log_probs.exp()
    left = (1 - share.sum(-1)).clamp(min=0)
    return (share * (log_probs - own.gather(1, top))).sum(-1) + torch.xlogy(left, left) - left * rest


class TargetCollator:
    """Batches of a plain model, with the targets of those rows that have some.

    A row's column `target` is the number of its targets; without the column it has none. A batch then also has
    `target_rows` `(N,)`, the flattened tokens whose next token is one of an answer, `target_top` `(N, k)` and
    `target_log_probs` `(N, k)`.

    Args:
        collator: a `PlainCollator`.
        targets: by number.

    Raises:
        ValueError: on use: the answer's tokens are not those of the targets.

    Example:
        >>> from cc_model.integrations.trainer import PlainCollator
        >>> from train.common.models import new_tokenizer
        >>> row = {"instruction": "Geld?", "output": "Yen"}
        >>> tokenizer = new_tokenizer([row], 300)
        >>> tokens = [*tokenizer("Yen", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        >>> targets = Targets(tokens, [[token] for token in tokens], [[-0.1] for _ in tokens])
        >>> batch = TargetCollator(PlainCollator(ParallelCollator(tokenizer)), [targets])([{**row, "target": 0}])
        >>> batch["labels"].flatten()[batch["target_rows"] + 1].tolist() == tokens
        True
    """

    def __init__(self, collator: Any, targets: Sequence[Targets | None]) -> None:
        self.collator, self.targets = collator, targets

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch."""
        batch = dict(self.collator(features))
        width = batch["labels"].shape[1]
        rows, top, log_probs = [], [], []
        for place, feature in enumerate(features):
            found = self.targets[feature[COLUMN]] if COLUMN in feature else None
            if found is None:
                continue
            labels = batch["labels"][place]
            at = (labels != IGNORE_INDEX).nonzero()[:, 0]
            count = min(len(at), len(found.tokens))  # `max_length` may have cut the end of either's answer
            at = at[:count]
            if labels[at].tolist() != found.tokens[:count]:
                raise ValueError(
                    f"targets: expected an answer of the tokens {found.tokens[:count]}, the student's tokenizer gives "
                    f"{labels[at].tolist()}; teacher and student need the same tokenizer and chat template"
                )
            rows.append(place * width + at - 1)
            top.append(torch.tensor(found.top[:count]))
            log_probs.append(torch.tensor(found.log_probs[:count]))
        if rows:
            batch |= {ROWS: torch.cat(rows), TOP: torch.cat(top), LOG_PROBS: torch.cat(log_probs)}
        return batch


class TargetTrainer(CCTrainer):
    """A trainer of a plain student on rows of which some have targets; its loss is that of the module's docstring.

    Args:
        targets: for each row of `train_dataset` its targets, or None.
        text_weight: α, in [0, 1].
        kwargs: of `CCTrainer`, with a `PlainCollator`, whose batches are not packed.

    Raises:
        ValueError: not one entry for each row, a weight out of its range, a CC model, packed rows, several GPUs in one
            process, or an answer of other tokens than its targets; on a step, a model that gives no logits.

    Example:
        >>> import tempfile
        >>> from functools import partial
        >>> from cc_model.testing import tiny_model
        >>> from train.common.arguments import SftArguments
        >>> from train.common.models import new_tokenizer
        >>> from train.common.training import make_trainer
        >>> rows = [{"instruction": "Geld?", "output": "Yen"}, {"instruction": "Land?", "output": "Japan"}]
        >>> collator = ParallelCollator(new_tokenizer(rows, 300))
        >>> teacher, student = (tiny_model("llama", vocab_size=300) for _ in range(2))
        >>> targets = [None, *answer_targets(teacher.eval(), collator, rows[1:])]
        >>> arguments = SftArguments(tempfile.mkdtemp(), max_steps=1, use_cpu=True, save_strategy="no")
        >>> kind = partial(TargetTrainer, targets=targets, text_weight=0.5)
        >>> trainer = make_trainer(student, collator, rows, arguments, title=None, kind=kind)
        >>> _ = trainer.train()
        >>> trainer.state.global_step
        1
    """

    def __init__(self, *, targets: Sequence[Targets | None], text_weight: float = 0.0, **kwargs: Any) -> None:
        rows, collator = kwargs["train_dataset"], kwargs["data_collator"]
        if len(targets) != len(rows):
            raise ValueError(f"targets: expected one entry for each of {len(rows)} rows, got {len(targets)}")
        if not 0 <= text_weight <= 1:
            raise ValueError(f"text_weight: expected a share from 0 to 1, got {text_weight}")
        if hasattr(kwargs["model"], "cc") or collator.collator.packed or kwargs["args"].n_gpu > 1:
            raise ValueError(
                "targets: expected a plain student (--method vanilla), rows that are not packed and one GPU for each "
                "process, got another training; learn the text of the answers instead"
            )
        numbers = list(range(len(rows)))
        numbered = isinstance(rows, list)
        rows = [{**row, COLUMN: n} for row, n in zip(rows, numbers)] if numbered else rows.add_column(COLUMN, numbers)
        collate = TargetCollator(collator, targets)
        for number, found in enumerate(targets):
            if found is not None:  # before the first step
                collate([rows[number]])
        super().__init__(**{**kwargs, "train_dataset": rows, "data_collator": collate})
        self.text_weight = text_weight

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The stock loss; at the tokens of answers, `1 − α` of the cross-entropy gives way to the divergence."""
        stock = {name: value for name, value in inputs.items() if name not in (ROWS, TOP, LOG_PROBS)}
        loss, outputs = super().compute_loss(model, stock, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if ROWS in inputs:
            if outputs.logits is None:
                raise ValueError(
                    "logits: expected those of the model for its targets, got none: leave fused losses out"
                )
            flat, labels = outputs.logits.flatten(0, 1)[inputs[ROWS]], stock["labels"].flatten()[inputs[ROWS] + 1]
            text = torch.nn.functional.cross_entropy(flat.float(), labels, reduction="sum")
            change = divergence(flat, inputs[TOP], inputs[LOG_PROBS]).sum() - text
            count = (stock["labels"] != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
            loss = loss + (1 - self.text_weight) * change / count
        return (loss, outputs) if return_outputs else loss


__all__ = ["COLUMN", "TargetCollator", "TargetTrainer", "answer_targets", "divergence", "with_targets"]

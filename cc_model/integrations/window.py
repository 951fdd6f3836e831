"""`WindowTrainer`: one pivot pass for all micro-batches of an accumulation window.

The weights do not change between the micro-batches of one optimizer step, so neither do the activations of an English
prompt. The trainer therefore reads each distinct prompt of a window once, in a few large parts, before the first of its
micro-batches, and gives every micro-batch the bank in the place of its pivots:

    per micro-batch    A passes over B prompts each       A micro-batches of B rows
    per window         ceil(Σ tokens / bound) passes over the distinct prompts

Needs accelerate, as `transformers.Trainer` does. `import cc_model` does not import this module.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from accelerate.data_loader import DataLoaderDispatcher
from torch import Tensor
from transformers import Trainer, TrainerCallback

from cc_model.connection.notices import say_once
from cc_model.connection.state import CrossLingualConnection, connection_of
from cc_model.data.columns import PIVOT_COLUMNS, check_connection_arguments, check_whole
from cc_model.data.translation_sampler import TranslationSampler, english_keys
from cc_model.distributed import Processes, in_one_piece
from cc_model.forward.bank import pivot_bank

logger = logging.getLogger("cc_model")


class Prompt(NamedTuple):
    """An English prompt without its padding: equal ones are read once."""

    tokens: tuple[int, ...]
    attended: tuple[bool, ...]
    captured: int  # the index of the token that is captured


class Window:
    """The micro-batches of one optimizer step, and the English prompts that they read.

    Args:
        batches: micro-batches as the collator made them; those with `pivot_input_ids` are read through the bank.

    Attributes:
        reads: a micro-batch has pivot tensors, with or without a usable prompt in them.
        prompts: each distinct prompt once, shorter ones first.
        left: prompts are padded on the left.
        tokens: B · T of the largest micro-batch.
    """

    def __init__(self, batches: list[Any]) -> None:
        read = [(batch, _prompts_of(batch)) for batch in batches if _has_prompts(batch)]
        self.reads = bool(read)
        self.left = any(_starts_with_padding(batch) for batch, _ in read)
        distinct = {prompt for _, prompts in read for prompt in prompts if prompt is not None}
        self.prompts = sorted(distinct, key=lambda prompt: (len(prompt.tokens), prompt))
        self.tokens = max((_main_tokens(batch) for batch, _ in read), default=0)
        place: dict[Prompt | None, int] = {prompt: row for row, prompt in enumerate(self.prompts)}
        # The batches are kept as well: an id belongs to one object only as long as that object lives.
        self._rows = {id(batch): (batch, [place.get(prompt, -1) for prompt in prompts]) for batch, prompts in read}

    def holds(self, batch: Any) -> bool:
        """Whether `batch` is one of these micro-batches, by identity, and has English prompts."""
        return id(batch) in self._rows

    def parts(self, tokens: int) -> list[dict[str, Tensor]]:
        """Arguments of `cc_model.pivot_bank`, in the order of `prompts`: padded, of at most `tokens` tokens each.

        A prompt that is longer than that is a part of its own.
        """
        parts: list[list[Prompt]] = []
        for prompt in self.prompts:  # the longest of a part comes last
            if parts and (len(parts[-1]) + 1) * len(prompt.tokens) <= tokens:
                parts[-1].append(prompt)
            else:
                parts.append([prompt])
        return [_padded(part, self.left) for part in parts]

    def through_bank(self, batch: Any, bank: Tensor) -> dict[str, Any]:
        """The micro-batch `batch` with `bank` `(L, P, d)` in the place of its pivots."""
        _, rows = self._rows[id(batch)]
        kept = {name: value for name, value in batch.items() if name not in PIVOT_COLUMNS}
        given = batch.get("pivot_row")
        own = torch.tensor(rows, dtype=torch.int64, device=batch["pivot_input_ids"].device)
        if given is not None:  # −1, and what is out of range, reads nothing
            valid = (given >= 0) & (given < own.shape[0])
            own = torch.where(valid, own[given.long().clamp(0, own.shape[0] - 1)], -1)
        return {**kept, "pivot_bank": bank, "pivot_row": own}


class WindowTrainer(Trainer):
    """Trainer that reads the English prompts of an accumulation window once, and can draw windows of translations.

        V[l, p] = f_l[p]      for the distinct prompts p of all A micro-batches, before the first of them

    The loss and all gradients are those of a pivot pass per micro-batch: no weight changes within a window. Where the
    forward itself draws (attention dropout, an adapter's dropout), a prompt draws once for the window instead of once
    for each row that reads it. Gumbel noise, `simulated_share` and `connection_dropout` are drawn per row as ever.

    A part of the pass has at most `pivot_tokens` tokens. It keeps no activations for a backward, so with the default it
    needs less memory than the micro-batch itself. The prompts of a window are compared on the host, for which it waits
    once per window; Trainer itself waits once per micro-batch (`logging_nan_inf_filter`).

    Under DDP each process reads the prompts of its own micro-batches. Under FSDP2 and ZeRO-3 all processes run the same
    number of parts, whether or not their rows have English prompts.

    With `CCConfig(pivot_grad=True)` the pass belongs to the backward of each micro-batch, so every micro-batch runs its
    own, which is said once. So it is with `simulated_share=1`, which needs no pass, in `connection_disabled`, for a
    model that is not patched, and under `nn.DataParallel`. Evaluation is Trainer's.

    Args:
        args: of Trainer, by position.
        pivot_tokens: most tokens (rows × longest row) of one part of the pivot pass; None: B · T of the window's
            largest micro-batch.
        translations_per_batch: rows of each English prompt that follow each other, see
            `cc_model.data.translation_sampler.TranslationSampler`; None: Trainer's own order. Rows have the columns of
            `ParallelCollator`.
        kwargs: of Trainer.

    Raises:
        TypeError, ValueError: an argument is no positive integer. On training, ValueError: accelerate cuts batches
            whose pivots or labelled tokens are shared (`dispatch_batches`, the default for an `IterableDataset`, on
            several processes), or `translations_per_batch` comes with such a data set or another sampling strategy.

    Example:
        >>> import tempfile
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PrinterCallback, PreTrainedTokenizerFast, TrainingArguments
        >>> from cc_model import ParallelCollator, patch_model
        >>> from cc_model.testing import tiny_model
        >>> core = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "hola": 2, "hello": 3}, unk_token="<unk>"))
        >>> core.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
        >>> rows = [{"instruction": "hola", "instruction_en": "hello", "output": "mundo"}] * 8
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer = WindowTrainer(
        ...         model=patch_model(tiny_model("llama", num_hidden_layers=2)),
        ...         args=TrainingArguments(
        ...             folder, max_steps=1, gradient_accumulation_steps=4, per_device_train_batch_size=2,
        ...             remove_unused_columns=False, save_strategy="no", report_to="none", disable_tqdm=True,
        ...             use_cpu=True,
        ...         ),
        ...         train_dataset=rows,
        ...         data_collator=ParallelCollator(tokenizer, share_pivots=True, loss_only=True),
        ...     )
        ...     _ = trainer.remove_callback(PrinterCallback)
        ...     _ = trainer.train()
        >>> trainer.pivot_parts, trainer.pivot_rows  # four micro-batches of two rows: one pass over one prompt
        (1, 1)
    """

    def __init__(
        self, *args: Any, pivot_tokens: int | None = None, translations_per_batch: int | None = None, **kwargs: Any
    ) -> None:
        for name, value in (("pivot_tokens", pivot_tokens), ("translations_per_batch", translations_per_batch)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise TypeError(f"{name}: expected an integer or None, got {type(value).__name__}")
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, or None, got {value}")
        super().__init__(*args, **kwargs)
        self.pivot_tokens = pivot_tokens
        self.translations_per_batch = translations_per_batch
        self._epochs = _SetEpoch()
        self.add_callback(self._epochs)
        self.pivot_parts = self.pivot_rows = 0  # parts that ran and prompts in them, since the trainer was made
        self._window: Window | None = None
        self._bank: Tensor | None = None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The stock micro-batches of a window, whose prompts are looked through."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._bank = None
        self._window = Window(batches) if self._reads_windows() else None
        return batches, items

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The stock step. The first one of a window runs its pivot pass."""
        if self._window is not None:
            if self._bank is None and self._reads_windows():
                self._bank = self._read(model, self._window)
            if self._bank is not None and self._window.holds(inputs):
                inputs = self._window.through_bank(inputs, self._bank)
        return super().training_step(model, inputs, *args, **kwargs)

    def get_train_dataloader(self) -> Any:
        """The stock loader, unless it would cut what cannot be cut."""
        loader = super().get_train_dataloader()
        shared = [name for name in ("share_pivots", "loss_only") if getattr(self.data_collator, name, False)]
        if shared and isinstance(loader, DataLoaderDispatcher) and self.accelerator.num_processes > 1:
            raise ValueError(
                f"dispatch_batches: expected False with ParallelCollator({shared[0]}=True), whose batches cannot be "
                "cut for several processes, got True (accelerate's default for an IterableDataset); use "
                "TrainingArguments(accelerator_config={'dispatch_batches': False}), or the collator without "
                + " and ".join(shared)
            )
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The stock sampler, or windows of translations."""
        if self.translations_per_batch is None:
            return super()._get_train_sampler(train_dataset)
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        strategy = getattr(self.args, "train_sampling_strategy", "random")
        if not hasattr(rows, "__len__") or strategy != "random":
            got = "an IterableDataset" if not hasattr(rows, "__len__") else f"train_sampling_strategy={strategy!r}"
            raise ValueError(f"translations_per_batch: expected a data set with a length, in random order, got {got}")
        sampler = TranslationSampler(
            english_keys(rows),
            self.translations_per_batch,
            self.args.train_batch_size,
            batches=self.args.gradient_accumulation_steps,
            processes=self.args.world_size,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )
        self._epochs.sampler = sampler
        return sampler

    def _reads_windows(self) -> bool:
        """Whether a pivot pass for the whole window takes the place of those of its micro-batches."""
        connection = self._connection()
        if connection is None or not connection.enabled or connection.config.simulated_share == 1:
            return False
        if self.args.n_gpu > 1:
            reason = "nn.DataParallel, which cuts a bank; use one process per GPU (torchrun, accelerate launch)"
        elif connection.config.pivot_grad:
            reason = "pivot_grad=True, whose pivot pass belongs to the backward of its micro-batch"
        else:
            return True
        if say_once(connection, "no window"):
            logger.warning("each micro-batch runs a pivot pass of its own, because of %s", reason)
        return False

    def _connection(self) -> CrossLingualConnection | None:
        model: Any = self.model
        try:
            return connection_of(model)
        except ValueError:
            return None

    def _read(self, model: Any, window: Window) -> Tensor | None:
        """The bank `(L, P, d)` of a window's prompts; one row that nobody reads when there are none."""
        whole = in_one_piece(model)
        if whole and not window.reads:
            return None
        model.train()
        optimizer: Any = self.optimizer
        if callable(getattr(optimizer, "train", None)):  # one that trains other weights than it evaluates
            optimizer.train()
        parts = window.parts(window.tokens if self.pivot_tokens is None else self.pivot_tokens)
        filler = {"pivot_input_ids": torch.zeros(1, 1, dtype=torch.int64)}
        count = max(len(parts), 1)
        if not whole:  # each part gathers parameters from all processes
            count = max(Processes().gather(count))
        banks = []
        for part in [*parts, *[filler] * (count - len(parts))]:
            with self.accelerator.autocast():  # the wrapper that does it in a step is not part of this pass
                banks.append(pivot_bank(model, part).bank)
        self.pivot_parts += count
        self.pivot_rows += len(window.prompts)
        return torch.cat(banks[: max(len(parts), 1)], dim=1)


class _SetEpoch(TrainerCallback):
    """Tells the sampler which epoch begins: after a resume on several processes accelerate's loader does not."""

    sampler: TranslationSampler | None = None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Epochs are counted from 0, and `state.epoch` is the number of those done."""
        if self.sampler is not None:
            self.sampler.set_epoch(int(state.epoch or 0))


def _has_prompts(batch: Any) -> bool:
    return isinstance(batch, Mapping) and isinstance(batch.get("pivot_input_ids"), Tensor)


def _main_tokens(batch: Any) -> int:
    tokens = batch.get("input_ids")
    return (tokens if tokens is not None else batch["inputs_embeds"][..., 0]).numel()


def _starts_with_padding(batch: Any) -> bool:
    mask = batch.get("pivot_attention_mask")
    return mask is not None and bool(((mask[:, 0] == 0) & (mask != 0).any(dim=1)).any())


def _prompts_of(batch: Any) -> list[Prompt | None]:
    """The prompts of a micro-batch without padding; None for a row that has none or an index out of range.

    Raises:
        TypeError, ValueError: as the forward does, which does not get to see these tensors.
    """
    check_whole(batch)
    given = {name: batch.get(name) for name in (*PIVOT_COLUMNS, "pivot_row")}
    entries = given["pivot_input_ids"] if given["pivot_row"] is None else given["pivot_row"]
    check_connection_arguments(given, len(entries), layers=0)
    ids, mask, index = (batch.get(name) for name in PIVOT_COLUMNS)
    attended = (torch.ones_like(ids) if mask is None else mask != 0).bool().tolist()
    captured = [None] * len(attended) if index is None else index.tolist()
    return [_prompt(*row) for row in zip(ids.tolist(), attended, captured, strict=True)]


def _prompt(tokens: list[int], attended: list[bool], index: int | None) -> Prompt | None:
    if True not in attended:
        return None
    first, last = attended.index(True), len(attended) - 1 - attended[::-1].index(True)
    index = last if index is None else index
    if not 0 <= index < len(tokens):
        return None
    first, end = min(first, index), max(last, index) + 1
    return Prompt(tuple(tokens[first:end]), tuple(attended[first:end]), index - first)


def _padded(prompts: list[Prompt], left: bool) -> dict[str, Tensor]:
    width = max(len(prompt.tokens) for prompt in prompts)
    ids, mask, index = [], [], []
    for prompt in prompts:
        padding = [0] * (width - len(prompt.tokens))
        tokens, attended = list(prompt.tokens), list(map(int, prompt.attended))
        ids.append(padding + tokens if left else tokens + padding)
        mask.append(padding + attended if left else attended + padding)
        index.append(prompt.captured + (len(padding) if left else 0))
    return dict(zip(PIVOT_COLUMNS, map(torch.tensor, (ids, mask, index)), strict=True))


__all__ = ["WindowTrainer"]

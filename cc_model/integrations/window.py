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
from typing import Any

import torch
from accelerate.data_loader import DataLoaderDispatcher
from torch import Tensor
from transformers import Trainer, TrainerCallback

from cc_model.connection.notices import say_once
from cc_model.connection.state import CrossLingualConnection, connection_of
from cc_model.data.pivot_window import PivotWindow
from cc_model.data.translation_sampler import TranslationSampler, english_keys
from cc_model.distributed import Processes, in_one_piece
from cc_model.forward.bank import pivot_bank

logger = logging.getLogger("cc_model")


class WindowTrainer(Trainer):
    """Trainer that reads the English prompts of an accumulation window once, and can draw windows of translations.

        V[l, p] = f_l[p]      for the distinct prompts p of all A micro-batches, before the first of them

    The loss and all gradients are those of a pivot pass per micro-batch: no weight changes within a window. Where the
    forward itself draws (attention dropout, an adapter's dropout, NEFTune), a prompt draws once for the window instead
    of once for each row that reads it. Gumbel noise, `simulated_share` and `connection_dropout` are drawn per row.

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
            several processes), or `translations_per_batch` comes with such a data set, another sampling strategy, or
            `split_batches` on several processes.

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
        self._window: PivotWindow | None = None
        self._bank: Tensor | None = None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The stock micro-batches of a window, whose prompts are looked through."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._bank = None
        self._window = PivotWindow(batches) if self._reads_windows() else None
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
        if self.accelerator.split_batches and self.args.world_size > 1:
            raise ValueError(
                "translations_per_batch: expected accelerate to give whole batches to each of several processes, got "
                "split_batches=True, which takes translations apart"
            )
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

    def _read(self, model: Any, window: PivotWindow) -> Tensor | None:
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


__all__ = ["WindowTrainer"]

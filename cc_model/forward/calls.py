"""A call: what one forward of a patched model does with the decoder body.

The causal language model (`cc_model.patching.causal_lm`) knows labels and arguments, so it makes the call. The decoder
body runs it, so that the stock head, loss and output code of transformers runs once, on the body's result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from cc_kernels import capture_rows
from cc_model.connection.state import CrossLingualConnection
from cc_model.data.positions import last_tokens
from cc_model.forward.head import SHIFTED
from cc_model.forward.passes import LayerSlot

BodyOutput = ModelOutput
"""What a decoder body returns: an output class of its architecture's own, with `last_hidden_state` and a cache."""

Body = Callable[..., BodyOutput]
"""The stock forward of the decoder body; `cc_pass` in its keyword arguments reaches every layer."""


class PlainCall:
    """A forward without a connection, decided on purpose.

    Attributes:
        loss_rows: `(K,)` flattened tokens that head and loss read, −1 for padding; None: all tokens.
    """

    loss_rows: Tensor | None = None

    def run(self, body: Any, stock: Body, named: dict[str, Any]) -> BodyOutput:
        """The stock forward."""
        return stock(**named)

    def result(self, body: Any, stock: Body, named: dict[str, Any]) -> BodyOutput:
        """What `run` returns, with the last hidden state `(1, K, d)` where head and loss read K tokens alone."""
        if self.loss_rows is None:
            return self.run(body, stock, named)
        named.pop(SHIFTED, None)  # meant for the loss; some families and a head of TRL take it out themselves
        output = self.run(body, stock, named)
        hidden = flatten(hidden_of(output))
        output.last_hidden_state = capture_rows(hidden, self.loss_rows.to(hidden.device))[None]
        return output


class ConnectedCall(PlainCall):
    """What the two connected calls share.

    Args:
        connection: the model's `cc` module.
        slots: the slots of all layers.
        shape: (B, T) of the tokens.
        index: `(B,)` connection index within the tokens of this call, or the one of all rows; None for the last
            attended token.
        noise: Gumbel noise `(B, L)`; None draws it in training and decides without noise otherwise.
    """

    def __init__(
        self,
        connection: CrossLingualConnection,
        slots: list[LayerSlot],
        shape: tuple[int, int],
        index: Tensor | int | None = None,
        noise: Tensor | None = None,
    ) -> None:
        self.connection = connection
        self.slots = slots
        self.rows, self.length = shape
        self.index = index
        self.noise = noise
        self.decision_weights: Tensor | None = None

    def connection_index(self, named: dict[str, Any], device: torch.device) -> Tensor:
        """`(B,)` on `device`: the given index, or the last attended token."""
        if isinstance(self.index, int):
            return torch.full((self.rows,), self.index, device=device)
        if self.index is not None:
            return self.index.to(device)
        mask = named.get("attention_mask")
        mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        return last_tokens(mask, self.rows, self.length, device)

    def decide(self, bank: Tensor, embeds: Tensor, rows: Tensor | None, **transform: Tensor | None) -> Tensor:
        """The update `(B, d)`; `decision_weights` `(B, L)` are kept, with zeros for rows that are skipped.

        Args:
            bank: `(L, P, d)`.
            embeds: `(B, d)` at the connection index.
            rows: `(B,)` row of the bank that each row reads, −1 for a row that is skipped; None: row b reads row b.
            transform: matrix and bias of `DecisionMaker.forward`.
        """
        connection, device = self.connection, bank.device
        noise = None if self.noise is None else self.noise.to(device)
        if noise is None and connection.training:
            noise = connection.gumbel_noise(embeds.shape[0], device)
        maker = connection.decision_maker
        rows = None if rows is None else rows.to(device)
        update, self.decision_weights = maker(bank, embeds.to(device), noise, connection.config, rows, **transform)
        return update


def token_embeddings(body: Any, named: dict[str, Any]) -> Tensor:
    """Input embeddings `(B, T, d)` of the call, given or looked up."""
    embeds = named.get("inputs_embeds")
    return embeds if embeds is not None else body.get_input_embeddings()(named["input_ids"])


def with_embeddings(body: Any, named: dict[str, Any], embeds: Tensor) -> dict[str, Any]:
    """The call with `embeds` in the place of its ids.

    Gemma 4 reads a second embedding, of each layer, by the ids, and would search them in `embeds` otherwise.
    """
    given = {**named, "input_ids": None, "inputs_embeds": embeds}
    text = getattr(body, "language_model", body)
    ids = named.get("input_ids")
    if ids is not None and getattr(text, "hidden_size_per_layer_input", None):
        given["per_layer_inputs"] = text.get_per_layer_inputs(ids, None)
    return given


def flatten(hidden: Tensor) -> Tensor:
    """`(B, T, d)` as `(B * T, d)`."""
    return hidden.reshape(-1, hidden.shape[-1])


def hidden_of(output: BodyOutput) -> Tensor:
    """The last hidden state `(B, T, d)`, which the decoder body always returns."""
    return output["last_hidden_state"]


def asks_for(name: str, body: Any, named: dict[str, Any]) -> bool:
    """Whether the call wants `output_hidden_states` or `output_attentions`, by its argument or else the config's."""
    value = named.get(name)
    return bool(getattr(body.config, name, False) if value is None else value)


def keeps_cache(body: Any, named: dict[str, Any]) -> bool:
    """Whether the call leaves a cache behind, its own or one that the body makes, by `use_cache` or else the config."""
    use_cache = named.get("use_cache")
    return bool(body.config.get_text_config(decoder=True).use_cache if use_cache is None else use_cache)


def input_shape(named: dict[str, Any]) -> tuple[int, int]:
    """(B, T) of a call's `input_ids` or `inputs_embeds`."""
    tokens = named.get("input_ids")
    rows, length = (tokens if tokens is not None else named["inputs_embeds"]).shape[:2]
    return rows, length

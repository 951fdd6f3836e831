"""What one running `generate` knows: which tokens have been seen, and where the connection belongs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cc_model.forward.passes import active


class GenerationState:
    """Follows the forwards of one `generate` call, so that it connects once, in the forward that holds the index.

    Positions count from the start of the whole sequence, tokens in a given cache included.

    Args:
        owner: the model that generates; forwards of other models in the same thread are not this call's.
        start: number of tokens already in the cache.
        index: `(B,)` connection index; −1 for a row without a connection.
        bounds: smallest and largest connection index; an empty range when no row connects.
        pivot: arguments of `PivotCall`, when the English prompt is given.
    """

    def __init__(
        self,
        owner: Any,
        start: int,
        index: Tensor,
        bounds: tuple[int, int],
        pivot: dict[str, Any] | None = None,
    ) -> None:
        self.owner = owner
        self.position = start
        self.index = index
        self.first_index, self.last_index = bounds
        self.pivot = pivot
        self.compile_config: Any = None  # how transformers compiles the decode steps, once it has said so
        self.done = False  # compiled decode steps read this flag only, not positions that differ from call to call

    def enter(self, length: int, cached: bool) -> int | None:
        """The position of the first of `length` tokens about to run, when they hold a connection index; else None.

        Without a cache every forward runs all tokens, and each of them connects at the same place.
        """
        if not cached:
            return 0
        if self.done:
            return None
        start = self.position
        self.position = start + length
        self.done = self.position > self.last_index
        holds_index = start <= self.last_index and self.first_index < self.position
        return start if holds_index else None

    def local_index(self, window: int, rows: int) -> Tensor:
        """`(rows,)` connection index within the tokens that start at `window`; rows are repeated for beams."""
        return self.index.repeat_interleave(rows // self.index.shape[0]) - window


def current_generation(owner: Any) -> GenerationState | None:
    """The running `generate` of `owner` in this thread."""
    state = getattr(active, "generation", None)
    return state if state is not None and state.owner is owner else None

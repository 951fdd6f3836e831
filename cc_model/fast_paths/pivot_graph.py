"""Passes that only capture, recorded as CUDA graphs: one launch of the host in the place of hundreds.

On a fast GPU the host launches the kernels of a pivot pass over a few English prompts more slowly than the GPU runs
them. A CUDA graph is recorded once, for tensors at fixed places, and then launched as a whole. So prompts are copied
into buffers of a few sizes, the buckets: P rounded up to a power of two, S to a multiple of 64. What is added is
masked, and its rows of the result are cut off.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cc_model.fast_paths.cuda_graph import CudaGraph
from cc_model.specs import body_of, unwrap

logger = logging.getLogger("cc_model")

ATTRIBUTE = "cc_pivot_graphs"
COLUMNS = 64
MOST_IN_VAIN = 4
PASSES_PER_CAPTURE = 16  # at least, where a recording has to go for another; a capture costs four passes


class Buffers:
    """The fixed places of one bucket.

    Attributes:
        ids: `(P, S)` int64.
        attended: `(P, S)` bool; False at padding.
        positions: `(1, S)`, 0 to S − 1, as a pivot pass without position ids has them.
        tokens: `(P,)` the captured ones of the flattened `(P * S)`, always in range.
    """

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        self.ids = torch.zeros(rows, columns, dtype=torch.int64, device=device)
        self.attended = torch.zeros(rows, columns, dtype=torch.bool, device=device)
        self.positions = torch.arange(columns, device=device)[None]
        self.tokens = torch.arange(rows, device=device) * columns

    def fill(self, ids: Tensor, mask: Tensor | None, tokens: Tensor) -> None:
        """Copy prompts `(P, S)` into the first rows and columns.

        What earlier ones left is in other rows, or after these, where causal attention does not look.
        """
        rows, length = ids.shape
        self.ids[:rows, :length].copy_(ids)
        self.attended[:rows, :length] = True if mask is None else mask != 0
        added = self.ids.shape[1] - length
        self.tokens[:rows].copy_(tokens + torch.arange(rows, device=tokens.device) * added)

    @property
    def nbytes(self) -> int:
        """Their size."""
        return self.ids.nbytes + self.attended.nbytes + self.positions.nbytes + self.tokens.nbytes


class PivotGraphs:
    """The recorded passes of one decoder body. A copy, and a pickled one, has the same limit and no recordings.

    Args:
        most_buckets: how many are kept; the least recently used one goes.

    Attributes:
        captures, replays: how many there were.
        reason: why the last pass was not a replay; None when it was one.
        failure: why no recording is tried any more.
    """

    def __init__(self, most_buckets: int) -> None:
        self.most_buckets = most_buckets
        self.recorded: OrderedDict[tuple[Any, ...], tuple[Buffers, CudaGraph, Tensor]] = OrderedDict()
        self.captures = self.replays = 0
        self.reason: str | None = None
        self.failure: str | None = None
        self._state: tuple[Any, ...] = ()
        self._vain = self._replays_before = 0  # states in a row that served one pass; replays before the present one
        self._since_capture = 0  # passes
        self._pool: Any = None
        self._stream: Any = None
        self._lock = threading.Lock()

    def __reduce__(self) -> Any:
        """Recordings hold addresses of one model's memory."""
        return type(self), (self.most_buckets,)

    def run(
        self,
        state: tuple[Any, ...],
        kind: tuple[Any, ...],
        prompts: tuple[Tensor, Tensor | None, Tensor],
        call: Callable[[Buffers], Tensor],
    ) -> Tensor | None:
        """The bank `(L, P, d)` of the prompts, in memory of its own; None where the pass is not recorded.

        Args:
            state: what the recordings are valid for; all are dropped when it is another than before.
            kind: what else distinguishes recordings, such as the dtype of autocast.
            prompts: ids `(P, S)`, mask `(P, S)` or None, and captured tokens `(P,)`, flat, all in range.
            call: the pass over the prompts in the buffers; its result `(L, rows of the bucket, d)`.
        """
        ids = prompts[0]
        rows, columns = bucket(*ids.shape)
        with self._lock, torch.inference_mode(False), torch.no_grad():
            self._in_order(ids.device)
            if state != self._state and not self._renew(state):
                return None
            key = (rows, columns, *kind)
            found = self.recorded.pop(key, None)
            self._since_capture += 1
            full = len(self.recorded) >= self.most_buckets
            if found is None and full and self._since_capture < PASSES_PER_CAPTURE:
                self.reason = f"{self.most_buckets} other buckets are recorded, and shapes change often"
                return None
            buffers = Buffers(rows, columns, ids.device) if found is None else found[0]
            buffers.fill(*prompts)
            if found is None:
                found = self._record(buffers, call)
                if found is None:
                    return None
            self.recorded[key] = found
            found[1].replay()
            self.replays += 1
            return found[2][:, : ids.shape[0]].clone()

    def _renew(self, state: tuple[Any, ...]) -> bool:
        """Drop what was recorded for another state. False: that state changes so often that recording is a loss."""
        self.forget()
        self._vain = self._vain + 1 if self.replays - self._replays_before == 1 else 0
        self._state, self._replays_before = state, self.replays
        if self._vain == MOST_IN_VAIN:
            self._give_up("adapters or the memory of the weights change from pass to pass")
        return self.failure is None

    def _give_up(self, failure: str) -> None:
        self.forget()
        self.failure = failure
        logger.warning("pivot graph: %s; passes run without one from now on", failure)

    def _record(self, buffers: Buffers, call: Callable[[Buffers], Tensor]) -> tuple[Buffers, CudaGraph, Tensor] | None:
        while len(self.recorded) >= self.most_buckets:
            self.recorded.popitem(last=False)
        device = buffers.ids.device
        if not self.recorded:  # a pool gives its memory back when its last recording is gone
            self._pool = CudaGraph.new_pool(device)
        graph = CudaGraph(device, self._pool)
        try:
            result = graph.capture(lambda: call(buffers))
        except (
            RuntimeError
        ) as error:  # of PyTorch or CUDA; were it the model's own, the pass without a graph has it, too
            self._give_up(f"the capture failed with {type(error).__name__}: {str(error).splitlines()[0]}")
            return None
        self.captures += 1
        self._since_capture = 0
        return buffers, graph, result

    def _in_order(self, device: torch.device) -> None:
        """Buffers and pool are used again only after the last replay, on whichever stream that was."""
        if device.type != "cuda":
            return
        stream = torch.cuda.current_stream(device)
        if self._stream is not None and self._stream != stream:
            stream.wait_stream(self._stream)
        self._stream = stream

    def forget(self) -> None:
        """Drop all recordings and their memory."""
        self.recorded.clear()
        self._pool = None

    @property
    def nbytes(self) -> int:
        """The memory of all recordings: their buffers, and the pool with results and intermediate tensors."""
        pool = 0 if self._pool is None else self._pool.nbytes
        return pool + sum(buffers.nbytes for buffers, _, _ in self.recorded.values())

    def __str__(self) -> str:
        """What `report` says of it."""
        sizes = ", ".join(f"{key[0]} × {key[1]}" for key in self.recorded) or "none yet"
        said = f"{self.captures} captures, {self.replays} replays, at most {self.most_buckets} buckets ({sizes})"
        last = f"; the last pass ran without: {self.reason}" if self.reason is not None else ""
        return f"{said}, {self.nbytes / 2**20:.1f} MiB{last}"


def bucket(rows: int, length: int) -> tuple[int, int]:
    """P rounded up to a power of two, S to a multiple of 64.

    Example:
        >>> bucket(5, 65)
        (8, 128)
    """
    return 1 << max(rows - 1, 0).bit_length(), -(-length // COLUMNS) * COLUMNS


def use_pivot_graph(model: nn.Module, enabled: bool = True, most_buckets: int = 8) -> nn.Module:
    """Run the pivot pass without a gradient as a CUDA graph, one for each bucket of its shape (P, S).

    A pass over a few English prompts takes the host longer than the GPU; a graph is one launch. P is rounded up to a
    power of two and S to a multiple of 64. A graph is recorded when a bucket first comes, which costs four passes once,
    and memory for buffers and intermediate results. Weights are read at every replay, so an optimizer's steps need no
    new graph. Weights in other memory (`model.to`) and other adapters do: all graphs are then recorded anew. Where more
    buckets come than are kept, one is recorded in the place of another every 16 passes at most.

    Passes run as before where a graph could give other numbers, or cannot be recorded: with `pivot_grad=True`; under
    `torch.compile`; with sharded, partitioned or offloaded parameters, quantised projections, hooks, active dropout,
    rotary embeddings that follow the length; in replicas of `nn.DataParallel`; on a CPU; for attention other than SDPA
    and families other than Llama, Mistral, Qwen2 and Qwen3 without windows. `report(model)` says why.

    Off by default, because graphs keep memory of their own; `train.sft` switches it on. On an H100 it made a training
    step shorter at 1B and at 8B (`docs/benchmarks.md`).

    Args:
        model: a patched model, also inside a PEFT model.
        enabled: False switches it off, and frees what was recorded.
        most_buckets: how many graphs are kept; then the least recently used one goes.

    Returns:
        `model` itself. Copies of it have the switch, and record graphs of their own.

    Raises:
        TypeError: `model` is no torch module, `enabled` no bool, or `most_buckets` no int.
        ValueError: the model is not patched, or `most_buckets` is below 1.

    Example:
        >>> from cc_model import patch_model, report, use_pivot_graph
        >>> from cc_model.testing import tiny_model
        >>> model = use_pivot_graph(patch_model(tiny_model("llama")))
        >>> print(report(model).notes[-1])
        pivot graph: not used (the model is on cpu, which has no CUDA graphs)
    """
    inner: Any = unwrap(model)
    if not isinstance(enabled, bool):
        raise TypeError(f"enabled: expected a bool, got {type(enabled).__name__}")
    if not isinstance(most_buckets, int) or isinstance(most_buckets, bool):
        raise TypeError(f"most_buckets: expected an int, got {type(most_buckets).__name__}")
    if most_buckets < 1:
        raise ValueError(f"most_buckets: expected at least 1, got {most_buckets}")
    if "cc" not in inner._modules:
        raise ValueError(f"model: expected a patched model, got {type(inner).__name__}; call patch_model(model) first")
    attributes = body_of(inner).__dict__
    attributes.pop(ATTRIBUTE, None)
    if enabled:
        attributes[ATTRIBUTE] = PivotGraphs(most_buckets)
    return model


__all__ = ["ATTRIBUTE", "Buffers", "CudaGraph", "PivotGraphs", "bucket", "use_pivot_graph"]

"""One call recorded as a CUDA graph, and the memory that recordings share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cc_kernels.launch import warmup


class Pool:
    """Where the recordings of one model keep results and intermediate tensors: they never run at the same time.

    Recordings that share memory have to be captured on one stream.
    """

    def __init__(self, device: torch.device) -> None:
        self.handle = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)

    @property
    def nbytes(self) -> int:
        """The memory that the pool holds of its GPU."""
        segments = torch.cuda.memory_snapshot()
        return sum(part["total_size"] for part in segments if tuple(part["segment_pool_id"]) == tuple(self.handle))


class CudaGraph:
    """One call, recorded: `replay` repeats its kernels, and its result is again at the same place."""

    new_pool = Pool

    def __init__(self, device: torch.device, pool: Pool) -> None:
        self.device = device
        self.pool = pool
        self.graph = torch.cuda.CUDAGraph()

    @staticmethod
    def obstacle(device: torch.device) -> str | None:
        """Why nothing can be recorded or repeated now on `device`; None when it can."""
        if device.type != "cuda":
            return f"the model is on {device.type}, which has no CUDA graphs"
        return "the stream is being captured already" if torch.cuda.is_current_stream_capturing() else None

    def capture(self, run: Callable[[], Tensor]) -> Tensor:
        """Record `run` after a warm-up on a stream of its own; the result holds nothing before the first `replay`."""
        warmup(run, self.device)
        with (
            torch.cuda.device(self.device),
            torch.cuda.stream(torch.cuda.current_stream(self.device)),  # which a capture that fails leaves for its own
            torch.cuda.graph(
                self.graph,
                pool=self.pool.handle,
                stream=self.pool.stream,
                capture_error_mode="thread_local",  # other threads go on, such as one that pins batches
            ),
        ):
            return run()

    def replay(self) -> None:
        """Repeat the recorded kernels on the current stream."""
        self.graph.replay()


__all__ = ["CudaGraph", "Pool"]

"""`transform_rows`: the chosen row of each prompt times the Transform Matrix, beside the published way."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.ops.cases import Case, compiled
from cc_kernels import reference, transform_rows
from cc_kernels.aot.floors import transform_rows_forward
from cc_kernels.aot.shapes import ModelShape

LAYERS = 32  # of the bank that the published way maps as a whole


class Published:
    """All L·K rows of the bank, in fp32, times an fp32 matrix that is uploaded from the host for each prompt.

    `host` is made once for each matrix, outside the measured time.
    """

    def __init__(self) -> None:
        self.host: dict[int, Tensor] = {}

    def __call__(self, values: Tensor, matrix: Tensor) -> Tensor:
        """The first K of the L·K mapped rows, in the dtype of `values`."""
        key = matrix.data_ptr()
        if key not in self.host:
            self.host[key] = matrix.float().cpu()
        bank = values.float().repeat(LAYERS, 1)
        return (bank @ self.host[key].to(values.device))[: values.shape[0]].to(values.dtype)


def _case(rows: int, width: int, device: torch.device, dtype: torch.dtype, compile_eager: bool) -> Case:
    def inputs(seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator(device).manual_seed(seed)
        values = torch.randn(rows, width, generator=generator, device=device, dtype=dtype)
        matrix = torch.randn(width, width, generator=generator, device=device, dtype=dtype) * width**-0.5
        return values, matrix

    implementations = {"cc_kernels": transform_rows, "eager": reference.transform_rows}
    if compile_eager:
        implementations["torch.compile"] = compiled(reference.transform_rows)
    eager_only: dict[str, Callable[..., Tensor]] = {
        "published": Published()
    }  # an upload from the host cannot be part of a graph
    cost = transform_rows_forward(rows, width, dtype.itemsize)
    name = f"transform_rows {rows}x{width}"
    return Case(name, inputs, reference.transform_rows, implementations, cost, eager_only, reads=True)


def cases(device: torch.device, dtype: torch.dtype, smoke: bool) -> Iterator[Case]:
    """1, 16 and 64 prompts at d=4096; 16 prompts at 2048, 3584, 8192 and 16384."""
    shapes = (
        ((2, 64),) if smoke else ((16, 4096), (16, 8192), (1, 4096), (64, 4096), (16, 2048), (16, 3584), (16, 16384))
    )
    for rows, width in shapes:
        compile_eager = (rows, width) in ((16, 4096), (2, 64))  # each shape costs compile time
        yield _case(rows, width, device, dtype, compile_eager)


def model_cases(model: ModelShape, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """One registered model, with one and with sixteen prompts."""
    for rows in (1, 16):
        yield _case(rows, model.hidden, device, dtype, compile_eager=True)

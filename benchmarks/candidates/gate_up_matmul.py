"""Gate and up projections of many tokens with SwiGLU in the matmul's epilogue, and its counterpart in the backward.

    forward    out = silu(x W_gᵀ) * (x W_uᵀ)                       x (N, d), W_g and W_u (I, d), out (N, I)
    backward   ∂f = ∂y W_d, then (∂gate, ∂up) of `swiglu` at ∂f    ∂y (N, d), W_d (d, I), gate and up (N, I)

fp32 accumulation; gate, up and ∂f are rounded to the dtype, as library matmuls round them, and the elementwise part is
fp32 with one rounding. Bytes saved beside library matmuls and `swiglu`: in training gate and up are not read again; in
a prefill they are neither written nor read; ∂f is neither written nor read. docs/kernels.md has the arithmetic of what
that can bring: a kernel here must come within a few percent of the library's matmul to win.

One tile has both projections for the same columns, so that x is loaded once for two products: per step the work of a
128 × 256 tile. Tiles come by TMA descriptors, products are asynchronous (wgmma), and each processor runs one program
that goes from tile to tile, the epilogue of one beside the loads of the next.

`python -m benchmarks.ops gate_up_matmul --out FILE` compares it with libraries on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cc_kernels.launch import HAS_TRITON, blocks, jit, launch, tl, triton

BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_DEPTH = 128, 128, 64
GROUP = 8  # tiles of rows that run side by side, so that they share a tile of the weights in the L2 cache


@jit()
def _tile_at(tile, row_tiles, column_tiles, GROUP: tl.constexpr):
    """Row and column of the tile: down a group of rows, then to the next column."""
    across = GROUP * column_tiles
    first = tile // across * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    return first + tile % across % height, tile % across // height


@jit()
def _gate_up_matmul_fwd_kernel(
    x_ptr,
    gate_weight_ptr,
    up_weight_ptr,
    out_ptr,
    gate_ptr,
    up_ptr,
    rows,
    inner,
    width,
    KEEP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    x_tiles = tl.make_tensor_descriptor(x_ptr, [rows, width], [width, 1], [BLOCK_ROWS, BLOCK_DEPTH])
    gate_weights = tl.make_tensor_descriptor(gate_weight_ptr, [inner, width], [width, 1], [BLOCK_COLUMNS, BLOCK_DEPTH])
    up_weights = tl.make_tensor_descriptor(up_weight_ptr, [inner, width], [width, 1], [BLOCK_COLUMNS, BLOCK_DEPTH])
    outs = tl.make_tensor_descriptor(out_ptr, [rows, inner], [inner, 1], [BLOCK_ROWS, BLOCK_COLUMNS])
    if KEEP:
        gates = tl.make_tensor_descriptor(gate_ptr, [rows, inner], [inner, 1], [BLOCK_ROWS, BLOCK_COLUMNS])
        ups = tl.make_tensor_descriptor(up_ptr, [rows, inner], [inner, 1], [BLOCK_ROWS, BLOCK_COLUMNS])
    row_tiles, column_tiles = tl.cdiv(rows, BLOCK_ROWS), tl.cdiv(inner, BLOCK_COLUMNS)
    dtype = out_ptr.dtype.element_ty
    for tile in tl.range(tl.program_id(0), row_tiles * column_tiles, PROGRAMS, flatten=True):
        row, column = _tile_at(tile, row_tiles, column_tiles, GROUP)
        row, column = row * BLOCK_ROWS, column * BLOCK_COLUMNS
        gate = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
        up = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
        for depth in range(0, width, BLOCK_DEPTH):
            x = x_tiles.load([row, depth])  # [BR, BD]
            gate = tl.dot(x, gate_weights.load([column, depth]).T, gate, input_precision="ieee")
            up = tl.dot(x, up_weights.load([column, depth]).T, up, input_precision="ieee")
        kept_gate, kept_up = gate.to(dtype), up.to(dtype)
        gate, up = kept_gate.to(tl.float32), kept_up.to(tl.float32)
        outs.store([row, column], (gate / (1 + tl.exp(-gate)) * up).to(dtype))
        if KEEP:
            gates.store([row, column], kept_gate)
            ups.store([row, column], kept_up)


@jit()
def _gate_up_matmul_bwd_kernel(
    grad_ptr,
    down_weight_ptr,
    gate_ptr,
    up_ptr,
    grad_gate_ptr,
    grad_up_ptr,
    rows,
    inner,
    width,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    grads = tl.make_tensor_descriptor(grad_ptr, [rows, width], [width, 1], [BLOCK_ROWS, BLOCK_DEPTH])
    down_weights = tl.make_tensor_descriptor(down_weight_ptr, [width, inner], [inner, 1], [BLOCK_DEPTH, BLOCK_COLUMNS])
    gates = tl.make_tensor_descriptor(gate_ptr, [rows, inner], [inner, 1], [BLOCK_ROWS, BLOCK_COLUMNS])
    ups = tl.make_tensor_descriptor(up_ptr, [rows, inner], [inner, 1], [BLOCK_ROWS, BLOCK_COLUMNS])
    grad_gates = tl.make_tensor_descriptor(grad_gate_ptr, [rows, inner], [inner, 1], [BLOCK_ROWS, BLOCK_COLUMNS])
    grad_ups = tl.make_tensor_descriptor(grad_up_ptr, [rows, inner], [inner, 1], [BLOCK_ROWS, BLOCK_COLUMNS])
    row_tiles, column_tiles = tl.cdiv(rows, BLOCK_ROWS), tl.cdiv(inner, BLOCK_COLUMNS)
    dtype = grad_gate_ptr.dtype.element_ty
    for tile in tl.range(tl.program_id(0), row_tiles * column_tiles, PROGRAMS, flatten=True):
        row, column = _tile_at(tile, row_tiles, column_tiles, GROUP)
        row, column = row * BLOCK_ROWS, column * BLOCK_COLUMNS
        total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
        for depth in range(0, width, BLOCK_DEPTH):
            grad = grads.load([row, depth])  # [BR, BD]
            total = tl.dot(grad, down_weights.load([depth, column]), total, input_precision="ieee")
        grad = total.to(dtype).to(tl.float32)
        gate, up = gates.load([row, column]).to(tl.float32), ups.load([row, column]).to(tl.float32)
        sigmoid = 1 / (1 + tl.exp(-gate))
        grad_gates.store([row, column], (grad * up * sigmoid * (1 + gate * (1 - sigmoid))).to(dtype))
        grad_ups.store([row, column], (grad * gate * sigmoid).to(dtype))


def _check(**tensors: Tensor) -> None:
    """Dense 2-d tensors of one floating dtype whose rows a TMA descriptor can address."""
    first = next(iter(tensors.values()))
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or not tensor.is_contiguous() or tensor.dtype != first.dtype:
            raise ValueError(
                f"{name}: expected a dense 2-d tensor of {first.dtype}, got {tensor.dtype} of shape "
                f"{tuple(tensor.shape)} and strides {tensor.stride()}"
            )
        if tensor.shape[1] * tensor.element_size() % 16:
            raise ValueError(f"{name}: expected rows of a multiple of 16 bytes, got shape {tuple(tensor.shape)}")


def _programs(rows: int, inner: int, device: torch.device) -> int:
    """One for each processor, and no more than tiles."""
    tiles = blocks(rows, BLOCK_ROWS) * blocks(inner, BLOCK_COLUMNS)
    on_gpu = device.type == "cuda"
    return min(tiles, torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else 132)


def _launch(kernel: Any, sizes: tuple[int, int, int], element_size: int, **arguments: Any) -> None:
    rows, inner, width = sizes
    like = next(iter(arguments.values()))
    if HAS_TRITON and like.device.type == "cuda":  # descriptors are made on the device, in memory of the kernel's own
        triton.set_allocator(lambda size, align, stream: torch.empty(size, dtype=torch.int8, device="cuda"))
    programs = _programs(rows, inner, like.device)
    launch(
        kernel,
        (programs,),
        like=like,
        **arguments,
        rows=rows,
        inner=inner,
        width=width,
        **({"KEEP": arguments["gate_ptr"] is not None} if "gate_weight_ptr" in arguments else {}),
        BLOCK_ROWS=BLOCK_ROWS,
        BLOCK_COLUMNS=BLOCK_COLUMNS,
        BLOCK_DEPTH=BLOCK_DEPTH * 2 // element_size,
        GROUP=GROUP,
        PROGRAMS=programs,
        num_warps=8,
        num_stages=3,  # two tiles of 48 KB ahead in the forward; with more, or fewer, the backward spilled registers
    )


def gate_up_matmul(x: Tensor, w_gate: Tensor, w_up: Tensor, keep: bool = False) -> tuple[Tensor, ...]:
    """`(silu(x W_gᵀ) * (x W_uᵀ),)`, and with `keep` also gate and up, for a backward.

    Args:
        x: `(N, d)`, dense, fp32, fp16 or bf16; rows of a multiple of 16 bytes.
        w_gate: `(I, d)`, the same.
        w_up: `(I, d)`, the same.
        keep: whether to return gate and up `(N, I)`, too.

    Raises:
        ValueError: a tensor of another layout, dtype or shape.
    """
    _check(x=x, w_gate=w_gate, w_up=w_up)
    (rows, width), inner = x.shape, w_gate.shape[0]
    if w_gate.shape != (inner, width) or w_up.shape != (inner, width):
        raise ValueError(f"w_gate, w_up: expected (I, {width}), got {tuple(w_gate.shape)} and {tuple(w_up.shape)}")
    out = x.new_empty(rows, inner)
    kept = (torch.empty_like(out), torch.empty_like(out)) if keep else ()
    gate, up = kept or (None, None)
    pointers = {"x_ptr": x, "gate_weight_ptr": w_gate, "up_weight_ptr": w_up, "out_ptr": out}
    _launch(
        _gate_up_matmul_fwd_kernel,
        (rows, inner, width),
        x.element_size(),
        **pointers,
        gate_ptr=gate,
        up_ptr=up,
    )
    return (out, *kept)


def gate_up_matmul_backward(grad: Tensor, w_down: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up `(N, I)` from that of the feed-forward block's result.

    Args:
        grad: ∂y `(N, d)`, dense, fp32, fp16 or bf16; rows of a multiple of 16 bytes.
        w_down: `(d, I)`, the same; the weight of the down projection.
        gate: `(N, I)`, the same.
        up: `(N, I)`, the same.

    Raises:
        ValueError: a tensor of another layout, dtype or shape.
    """
    _check(grad=grad, w_down=w_down, gate=gate, up=up)
    (rows, width), inner = grad.shape, w_down.shape[1]
    if w_down.shape[0] != width or gate.shape != (rows, inner) or up.shape != (rows, inner):
        raise ValueError(
            f"w_down, gate, up: expected ({width}, I) and twice ({rows}, I), got {tuple(w_down.shape)}, "
            f"{tuple(gate.shape)} and {tuple(up.shape)}"
        )
    grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
    pointers = {"grad_ptr": grad, "down_weight_ptr": w_down, "gate_ptr": gate, "up_ptr": up}
    _launch(
        _gate_up_matmul_bwd_kernel,
        (rows, inner, width),
        grad.element_size(),
        **pointers,
        grad_gate_ptr=grad_gate,
        grad_up_ptr=grad_up,
    )
    return grad_gate, grad_up


__all__ = ["gate_up_matmul", "gate_up_matmul_backward"]

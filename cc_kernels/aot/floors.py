"""What each kernel must at least move and calculate, and the time that a GPU's memory bandwidth makes of it.

`python -m cc_kernels.aot.floors` prints the table of `docs/kernels.md`; the GPU benchmarks use the same counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cc_kernels.aot.shapes import MODELS, ModelShape

# Vendor figures for the memory bandwidth, bytes per second: A100 80 GB SXM, H100 SXM, H200 SXM and MI300X data sheets.
BANDWIDTH = {"A100": 2.04e12, "H100": 3.35e12, "H200": 4.8e12, "MI300X": 5.3e12}
TOKENS = 4096
ROWS = 16
WIDE = 4  # bytes of an fp32 number


@dataclass(frozen=True)
class Cost:
    """Bytes that must cross the memory bus, each tensor once, and floating-point operations."""

    bytes: int
    flops: int

    def floor(self, bandwidth: float) -> float:
        """Seconds at `bandwidth` bytes per second. The FLOPs of these kernels, on tensor cores, never bound them."""
        return self.bytes / bandwidth


def swiglu_forward(tokens: int, inner: int, size: int) -> Cost:
    """Read gate and up, write out; an exponential counts as one operation."""
    return Cost(3 * tokens * inner * size, 5 * tokens * inner)


def swiglu_backward(tokens: int, inner: int, size: int) -> Cost:
    """Read the gradient, gate and up, write two gradients."""
    return Cost(5 * tokens * inner * size, 11 * tokens * inner)


def geglu_forward(tokens: int, inner: int, size: int) -> Cost:
    """Read gate and up, write out; an exponential, or erf, counts as one operation."""
    return Cost(3 * tokens * inner * size, 9 * tokens * inner)


def geglu_backward(tokens: int, inner: int, size: int) -> Cost:
    """Read the gradient, gate and up, write two gradients."""
    return Cost(5 * tokens * inner * size, 18 * tokens * inner)


def capture_rows_forward(rows: int, width: int, size: int) -> Cost:
    """Read and write K rows."""
    return Cost(2 * rows * width * size, 0)


def capture_rows_backward(tokens: int, rows: int, width: int, size: int) -> Cost:
    """`capture_rows_through`: read and write the gradient of all rows; read, and add again, K rows."""
    return Cost((2 * tokens + 3 * rows) * width * size, rows * width)


def add_rows_inplace(rows: int, width: int, size: int) -> Cost:
    """Read K rows of x and of values, write K rows."""
    return Cost(3 * rows * width * size, rows * width)


def capture_add_rows_inplace(captured: int, added: int, width: int, size: int) -> Cost:
    """Read and write each captured row; read each added row of x and of the update, and write it."""
    return Cost((2 * captured + 3 * added) * width * size, added * width)


def connect_forward(layers: int, rows: int, width: int, size: int) -> Cost:
    """Read the bank, the embeddings, W and the noise; write v (fp32), the weights twice and the update.

    The chosen row is read a second time, from L2.
    """
    read = (layers * rows * width + rows * width + layers * width) * size + rows * layers * WIDE
    written = rows * width * (size + WIDE) + 2 * rows * layers * WIDE
    return Cost(read + written, 3 * layers * rows * width)


def connect_backward(layers: int, rows: int, width: int, size: int, bank_gradient: bool) -> Cost:
    """Read the bank, ∂update, W, v (fp32), the softmax and the weights; write ∂e and ∂W, and ∂bank where wanted."""
    read = (layers * rows * width + rows * width + layers * width) * size + rows * (width + 2 * layers) * WIDE
    written = (rows * width + layers * width) * size + (layers * rows * width * size if bank_gradient else 0)
    return Cost(read + written, (6 + 3 * bank_gradient) * layers * rows * width)


def transform_rows_forward(rows: int, width: int, size: int) -> Cost:
    """Read M and K rows, write K rows."""
    return Cost((width * width + 2 * rows * width) * size, 2 * rows * width * width)


def gate_up_swiglu_forward(rows: int, width: int, inner: int, size: int) -> Cost:
    """Read both weights and x, write the result; gate and up stay on the chip."""
    return Cost((2 * inner * width + rows * (width + inner)) * size, (4 * width + 5) * rows * inner)


LINES: dict[str, Callable[[ModelShape, int], Cost]] = {
    "swiglu forward": lambda m, size: swiglu_forward(TOKENS, m.intermediate, size),
    "swiglu backward": lambda m, size: swiglu_backward(TOKENS, m.intermediate, size),
    "geglu forward": lambda m, size: geglu_forward(TOKENS, m.intermediate, size),
    "geglu backward": lambda m, size: geglu_backward(TOKENS, m.intermediate, size),
    "capture_rows forward": lambda m, size: capture_rows_forward(ROWS, m.hidden, size),
    "capture_rows_through backward": lambda m, size: capture_rows_backward(TOKENS, ROWS, m.hidden, size),
    "add_rows in place": lambda m, size: add_rows_inplace(ROWS, m.hidden, size),
    "capture_add_rows_": lambda m, size: capture_add_rows_inplace(ROWS, ROWS, m.hidden, size),
    "connect forward": lambda m, size: connect_forward(m.layers, ROWS, m.hidden, size),
    "connect backward": lambda m, size: connect_backward(m.layers, ROWS, m.hidden, size, False),
    "connect backward with ∂bank": lambda m, size: connect_backward(m.layers, ROWS, m.hidden, size, True),
    "transform_rows": lambda m, size: transform_rows_forward(ROWS, m.hidden, size),
    "gate_up_swiglu": lambda m, size: gate_up_swiglu_forward(ROWS, m.hidden, m.intermediate, size),
}


def table(size: int = 2) -> str:
    """The Markdown table, in MB, MFLOP and µs, for elements of `size` bytes."""
    lines = [
        "| kernel | model | MB | MFLOP | " + " | ".join(f"{gpu} µs" for gpu in BANDWIDTH) + " |",
        "| --- | --- | --- | --- | " + " | ".join("---" for _ in BANDWIDTH) + " |",
    ]
    for name, cost_of in LINES.items():
        for model in MODELS:
            cost = cost_of(model, size)
            floors = " | ".join(f"{cost.floor(bandwidth) * 1e6:.2f}" for bandwidth in BANDWIDTH.values())
            lines.append(f"| {name} | {model.name} | {cost.bytes / 1e6:.3f} | {cost.flops / 1e6:.1f} | {floors} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())

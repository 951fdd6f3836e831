"""The public ops, one file each."""

from cc_kernels.ops import decision  # noqa: F401  (registers the Triton implementation of decide and connect)
from cc_kernels.ops.add_rows import add_rows
from cc_kernels.ops.capture_rows import capture_rows, capture_rows_through
from cc_kernels.ops.connect import connect
from cc_kernels.ops.decide import decide
from cc_kernels.ops.gate_up_swiglu import gate_up_swiglu
from cc_kernels.ops.swiglu import swiglu
from cc_kernels.ops.transform_rows import transform_rows

__all__ = [
    "add_rows",
    "capture_rows",
    "capture_rows_through",
    "connect",
    "decide",
    "gate_up_swiglu",
    "swiglu",
    "transform_rows",
]

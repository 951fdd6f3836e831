"""Fused kernels for cross-lingual fine-tuning, usable without `cc_model` and without transformers.

Every op has a plain-PyTorch definition in `cc_kernels.reference`, which is its specification and its CPU
implementation. `use_backend` chooses between it and the Triton kernels.
"""

from cc_kernels.backend import use_backend
from cc_kernels.ops.add_rows import add_rows
from cc_kernels.ops.capture_add_rows import capture_add_rows_
from cc_kernels.ops.capture_rows import capture_rows, capture_rows_through
from cc_kernels.ops.connect import connect
from cc_kernels.ops.decide import decide
from cc_kernels.ops.gate_up_swiglu import gate_up_swiglu
from cc_kernels.ops.geglu import geglu
from cc_kernels.ops.swiglu import swiglu
from cc_kernels.ops.transform_rows import transform_rows

__version__ = "0.1.0"

__all__ = [
    "add_rows",
    "capture_add_rows_",
    "capture_rows",
    "capture_rows_through",
    "connect",
    "decide",
    "gate_up_swiglu",
    "geglu",
    "swiglu",
    "transform_rows",
    "use_backend",
]

"""Two things that Triton's interpreter does not do, but Liger's kernels need; compiled kernels have them."""

from __future__ import annotations

import numpy as np

try:
    import triton
    from triton import language
    from triton.runtime import interpreter

    INTERPRETED = bool(triton.knobs.runtime.interpret)
except ImportError:
    INTERPRETED = False


def teach_the_interpreter() -> None:
    """Python floats become fp32 scalars, and Liger's `rsqrt` of libdevice becomes that of the language."""
    if not INTERPRETED or getattr(interpreter, "_knows_floats", False):
        return
    import liger_kernel.ops.rms_norm as rms_norm

    convert = interpreter._implicit_cvt

    def with_floats(argument):
        if not isinstance(argument, float):
            return convert(argument)
        handle = interpreter.TensorHandle(np.array([argument], dtype=np.float32), language.float32)
        return language.tensor(handle, language.float32)

    @triton.jit
    def rsqrt(x):
        return language.rsqrt(x)

    interpreter._implicit_cvt = with_floats
    interpreter._knows_floats = True
    rms_norm.rsqrt = rsqrt

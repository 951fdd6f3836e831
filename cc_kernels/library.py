"""Registration of the Triton implementations as PyTorch operators in the namespace `cc_kernels`.

An operator is for those who look at the dispatcher: torch.compile, fake tensors, modes, tensor subclasses,
`torch.func`. A plain eager call pays for it without use: on one H100's host 20 µs of 60 for a forward of `swiglu`, and
170 µs of 520 with the backward. So the callable that `define` returns launches the kernels itself there, with the same
derivative in an `autograd.Function`.

`torch.library.Library` is used directly: an operator made by `custom_op` does the same with a wrapper around the
implementation that costs 2 µs more per call (measured on a CPU: 6.5 against 4.4 µs above the bare function), and
`triton_op` cannot be interpreted, so nothing about it could be tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from cc_kernels.launch import INTERPRETED, launching

_LIBRARY = torch.library.Library("cc_kernels", "DEF")
_GPU_KEYS = ("CUDA", "XPU")  # ROCm uses CUDA


def _no_derivative(name: str, ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(
        f"cc_kernels.{name} has no derivative: it computes one, and second derivatives are not supported"
    )


DIFFERENTIABLE = "cc_differentiable"  # on what `define` returns: the implementation, and a call of it with a derivative


def define(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    reference: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    save: Callable[..., None] | None = None,
) -> Callable[..., Any]:
    """Register one operator and return a callable that runs it, through the dispatcher only where that matters.

    Args:
        schema: name, arguments and results, as in `"swiglu(Tensor gate, Tensor up) -> Tensor"`.
        implementation: launches the kernels.
        fake: the same results without data, for tracing.
        reference: the same results in plain PyTorch, for CPU tensors where kernels are not interpreted.
        backward, save: `backward` and `setup_context` of `torch.library.register_autograd`; without them a backward
            through the operator raises. An operator that writes to an argument cannot have them.
    """
    name = schema.partition("(")[0]
    qualified = f"cc_kernels::{name}"
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in _GPU_KEYS:
        _LIBRARY.impl(name, implementation, key)
    _LIBRARY.impl(name, implementation if INTERPRETED else reference, "CPU")
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    derivative = partial(_no_derivative, name) if backward is None else backward
    functional = "!" not in schema
    if functional:
        torch.library.register_autograd(qualified, derivative, setup_context=save, lib=_LIBRARY)
    operator = getattr(torch.ops.cc_kernels, name).default
    differentiable = None if backward is None or save is None else _function(backward, save)
    transformed = _transformed(operator, derivative, save or _save_nothing)

    def call(*arguments: Any) -> Any:
        if is_observed():
            return transformed(*arguments) if functional and is_transformed() else operator(*arguments)
        needs_grad = without_kernels = False
        for x in arguments:
            if type(x) is Tensor or type(x) is Parameter:
                needs_grad = needs_grad or x.requires_grad
                without_kernels = without_kernels or x.is_cpu
            elif isinstance(x, Tensor):  # a subclass sees operators
                return operator(*arguments)
        if without_kernels and not INTERPRETED and "cpu" not in launching.DIRECT:
            return operator(*arguments)  # which runs the reference
        if needs_grad and torch.is_grad_enabled():
            return operator(*arguments) if differentiable is None else differentiable(*arguments, implementation)
        return implementation(*arguments)

    setattr(call, DIFFERENTIABLE, (implementation, differentiable))
    return call


def _private(path: str) -> Callable[[], Any] | None:
    """A function of PyTorch that has no public name, or None where this PyTorch calls it otherwise."""
    found: Any = torch._C
    for name in path.split("."):
        found = getattr(found, name, None)
    return found if callable(found) else None


_dispatch_modes = _private("_len_torch_dispatch_stack")  # how many modes listen
_transform = _private("_functorch.peek_interpreter_stack")  # the innermost transform of torch.func, or None


def is_observed() -> bool:
    """Whether somebody between a call and its kernel would miss the operator: a tracer, a mode, a transform.

    Where PyTorch cannot be asked, somebody might: calls then go through the operator, which is right and slower.
    """
    if torch.compiler.is_compiling() or _dispatch_modes is None or _transform is None:
        return True
    return _dispatch_modes() > 0 or _transform() is not None


def is_transformed() -> bool:
    """Whether a transform of `torch.func` (grad, vjp, vmap, …) is running; False in code that is compiled.

    It needs an `autograd.Function` with a `setup_context`, which costs every plain call about as much as a kernel's
    launch, so such functions exist beside the plain ones.
    """
    return not torch.compiler.is_compiling() and _transform is not None and _transform() is not None


def _function(derivative: Callable[..., Any], save: Callable[..., None]) -> Callable[..., Any]:
    """An operator with its derivative, as `register_autograd` takes them; what launches it is the last argument."""

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *given: Any) -> Any:
            arguments = given[:-1]
            output = given[-1](*arguments)
            save(ctx, arguments, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return *derivative(ctx, *grads), None

    # The base class's: that of `Function` looks for transforms of torch.func, which the caller has done.
    return super(torch.autograd.Function, Differentiable).apply


def _transformed(
    operator: Callable[..., Any], derivative: Callable[..., Any], save: Callable[..., None]
) -> Callable[..., Any]:
    """The operator with its derivative for `torch.func`, which does not take `register_autograd`'s."""

    class Transformed(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*arguments: Any) -> Any:
            return operator(*arguments)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            save(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return derivative(ctx, *grads)

    return Transformed.apply


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """`setup_context` of an operator without a derivative."""

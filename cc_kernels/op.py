"""A public op: its checks, its definition in plain PyTorch, its kernels, and what earlier calls have settled.

Checks and the choice of the implementation depend on the kind of the arguments alone (see `launch.launching`). So an
eager call whose arguments are of a kind that was checked before goes to its prepared launches at
once, and one that needs a gradient goes to its autograd function. Everything else is checked: calls that are traced or
watched, and calls on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from cc_kernels import backend
from cc_kernels.launch import Prepared, launching
from cc_kernels.launch.launching import Kind, Plan, cache, kind_of
from cc_kernels.library import DIFFERENTIABLE, is_observed


class Op:
    """One op. Calling it checks the arguments and runs the implementation that the backend chooses.

    Args:
        name: the op's name, under which its Triton implementation may be registered.
        check: raises for arguments that do not fit together; takes all arguments of the op.
        reference: the definition in plain PyTorch, with the same arguments.
        launches: the prepared launcher for the same arguments that a call without gradients may use.
        pays: whether the kernel is meant for a call with these arguments; `auto` runs the reference where it is not.
        trace: whether torch.compile shall trace the reference instead of calling the operator (`auto` only).
    """

    def __init__(
        self,
        name: str,
        check: Callable[..., None],
        reference: Callable[..., Any],
        launches: Prepared | None = None,
        pays: Callable[..., bool] | None = None,
        trace: bool = False,
    ):
        self.name, self.check, self.reference, self.launches = name, check, reference, launches
        self.pays, self.trace = pays, trace
        self.triton: Callable[..., Any] = backend.registered(name) or reference
        implementation, differentiable = getattr(self.triton, DIFFERENTIABLE, (None, None))
        # Where a call with gradients launches the same, its plan serves, too.
        self.differentiable = differentiable if implementation is launches else None
        self.settled: dict[tuple[str, Kind], Plan | None] = cache()

    def __call__(self, *arguments: Any) -> Any:
        """The op's results. Arguments are given in order, with all defaults."""
        if is_observed() or not self.settled:
            return self._checked(arguments)
        try:
            kind, tensors, addresses, requires_grad = kind_of(arguments)
            plan = self.settled[backend.requested(), kind]
        except (KeyError, RuntimeError, TypeError):  # of a new kind; or no tensors, or tensors without memory
            return self._checked(arguments)
        if requires_grad and torch.is_grad_enabled():
            if plan is None or self.differentiable is None:
                return self.triton(*arguments)
            return self.differentiable(*arguments, lambda *_: plan.run(tensors, addresses))
        return self._checked(arguments) if plan is None else plan.run(tensors, addresses)

    def _checked(self, arguments: tuple[Any, ...]) -> Any:
        self.check(*arguments)
        pays = self.pays is None or self.pays(*arguments)
        implementation = backend.choose(self.name, arguments[0], self.reference, pays)
        if self.trace and torch.compiler.is_compiling() and backend.requested() == "auto":
            implementation = self.reference
        by_kernels = implementation is self.triton and implementation is not self.reference
        if by_kernels and not is_observed() and not _has_subclass(arguments):
            return self._settle(arguments)
        return implementation(*arguments)

    def _settle(self, arguments: tuple[Any, ...]) -> Any:
        """Run the kernels, and remember that arguments of this kind were checked and which launches they lead to."""
        kind, _, _, requires_grad = kind_of(arguments)
        with_gradient = requires_grad and torch.is_grad_enabled()
        output = (self.triton if with_gradient or self.launches is None else self.launches)(*arguments)
        prepared = self.launches if self.differentiable is not None or not with_gradient else None
        plan = None if prepared is None else prepared.plans.get(kind)
        if arguments[0].device.type in launching.DIRECT:
            if len(self.settled) >= launching.MOST_PLANS:
                self.settled.clear()
            self.settled[backend.requested(), kind] = plan
        return output


def _has_subclass(arguments: tuple[Any, ...]) -> bool:
    """Whether an argument is a tensor of a class of its own, which sees operators."""
    return any(isinstance(x, Tensor) and type(x) is not Tensor and type(x) is not Parameter for x in arguments)

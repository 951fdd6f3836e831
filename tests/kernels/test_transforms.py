"""`torch.func`: the derivative of every op is the one that autograd takes."""

from __future__ import annotations

import pytest
import torch
from kernel_harness import index, needs_triton, randn

import cc_kernels
from cc_kernels import use_backend

ROWS = index(4, -1, 0, 3)


def of_bank(op, **options):
    return lambda bank, embeds, weight, noise: op(bank, embeds, weight, noise, 0.7, **options)


BANK = (randn(3, 4, 16), randn(4, 16, seed=1), randn(3, 16, seed=2), randn(4, 3, seed=3))
OPS = {
    "swiglu": (cc_kernels.swiglu, (randn(5, 16), randn(5, 16, seed=1))),
    "capture_rows": (lambda x: cc_kernels.capture_rows(x, ROWS), (randn(5, 16),)),
    "capture_rows_through": (lambda x: cc_kernels.capture_rows_through(x, ROWS), (randn(5, 16),)),
    "add_rows": (lambda x, values: cc_kernels.add_rows(x, ROWS, values), (randn(5, 16), randn(4, 16, seed=1))),
    "add_rows in place": (
        lambda x, values: cc_kernels.add_rows(x * 1.0, ROWS, values, inplace=True),
        (randn(5, 16), randn(4, 16, seed=1)),
    ),
    "decide": (of_bank(cc_kernels.decide), BANK),
    "decide, soft": (of_bank(cc_kernels.decide, hard=False), BANK),
    "connect": (of_bank(cc_kernels.connect), BANK),
    "connect, soft": (of_bank(cc_kernels.connect, hard=False), BANK),
}


def loss_of(op):
    """A number that every element of every output takes part in, with a weight of its own."""

    def loss(*arguments):
        found = op(*arguments)
        outputs = found if isinstance(found, tuple) else (found,)
        parts = [
            (part * torch.arange(1.0, part.numel() + 1, device=part.device).view(part.shape).sin()).sum()
            for part in outputs
        ]
        return torch.stack(parts).sum()

    return loss


def by_autograd(op, arguments):
    leaves = [value.clone().requires_grad_() for value in arguments]
    loss_of(op)(*leaves).backward()
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("name", OPS)
def test_grad(name, backend):
    op, arguments = OPS[name]
    with use_backend(backend):
        expected = by_autograd(op, arguments)
        found = torch.func.grad(loss_of(op), argnums=tuple(range(len(arguments))))(*arguments)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # a kernel runs once for each sample
@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("batched", ["all", "the first alone", "the last alone"])
def test_gradients_of_each_sample(name, batched, backend):
    """`vmap(grad)`."""
    op, arguments = OPS[name]
    samples = [torch.stack([value, value.flip(0), -value]) for value in arguments]
    shared = [None] * (len(arguments) - 1)
    dims = {"all": (0,) * len(arguments), "the first alone": (0, *shared), "the last alone": (*shared, 0)}[batched]
    given = [many if dim == 0 else one for many, one, dim in zip(samples, arguments, dims)]
    every = tuple(range(len(arguments)))
    with use_backend(backend):
        found = torch.func.vmap(torch.func.grad(loss_of(op), argnums=every), in_dims=dims)(*given)
        for sample in range(3):
            one = [value[sample] if dim == 0 else value for value, dim in zip(given, dims)]
            for ours, theirs in zip(found, by_autograd(op, one), strict=True):
                torch.testing.assert_close(ours[sample], theirs)

"""Which way a launch and a call take: the compiled kernel again, Triton, the dispatcher."""

import gc
import weakref

import pytest
import torch
from kernel_harness import BACKEND, DEVICE, HAS_TRITON, INTERPRETED, needs_triton, randn
from torch.utils._python_dispatch import TorchDispatchMode

from cc_kernels import launch, swiglu, use_backend


class Compiled:
    """Stands for a kernel that Triton compiled, and counts how it is launched."""

    def __init__(self):
        self.launches = []

    def __getitem__(self, grid):
        return lambda *values: self.launches.append((grid, values))


class Kernel:
    """Stands for a kernel under `triton.jit`."""

    arg_names = ("x_ptr", "size", "BLOCK")

    def __init__(self):
        self.compiled = []
        self.asked = 0

    def __getitem__(self, grid):
        def run(**arguments):
            self.asked += 1
            self.compiled.append(Compiled())
            return self.compiled[-1]

        return run


@pytest.fixture
def direct(monkeypatch):
    monkeypatch.setattr(launch, "DIRECT", frozenset({"cuda"}))
    monkeypatch.setattr(launch, "_compiled", {})


def run(kernel, x, grid=(3,), size=8, swapped=False):
    arguments = {"x_ptr": x, "size": size, "BLOCK": 4, "num_warps": 2}
    if swapped:
        arguments = {"size": size, **arguments}
    launch._run(kernel, grid, torch.device("cuda", 0), arguments)


def test_second_launch_goes_to_the_compiled_kernel(direct):
    kernel, x, other = Kernel(), torch.zeros(8), torch.ones(8)
    run(kernel, x)
    run(kernel, other)
    assert kernel.asked == 1
    assert kernel.compiled[0].launches == [((3, 1, 1), (other, 8, 4))]  # options such as num_warps are compiled in


@pytest.mark.parametrize(
    "changed",
    [
        {"x": torch.zeros(8, dtype=torch.float64)},
        {"x": torch.zeros(9)[1:]},  # not a multiple of 16 bytes
        {"size": 1},
        {"grid": (3, 2)},
    ],
    ids=["dtype", "alignment", "size", "grid"],
)
def test_what_triton_may_specialise_on_is_compiled_anew(direct, changed):
    kernel = Kernel()
    run(kernel, torch.zeros(8))
    run(kernel, **{"x": torch.zeros(8), **changed})
    assert kernel.asked == 2
    assert all(compiled.launches == [] for compiled in kernel.compiled)


def test_arguments_in_another_order_are_always_launched_by_name(direct):
    kernel, x = Kernel(), torch.zeros(8)
    for _ in range(2):
        run(kernel, x, swapped=True)
    assert kernel.asked == 2


def test_a_kernel_is_kept_as_long_as_its_entry(direct):
    """Entries go by the kernel's id, which another kernel could get once the first one is gone."""
    kernel = Kernel()
    gone = weakref.ref(kernel)
    run(kernel, torch.zeros(8))
    del kernel
    gc.collect()
    assert gone() is not None


def test_number_of_kept_kernels_is_bounded(direct, monkeypatch):
    monkeypatch.setattr(launch, "MOST_COMPILED", 4)
    kernel = Kernel()
    for size in range(9):
        run(kernel, torch.zeros(8), size=size)
    assert len(launch._compiled) <= 4


@pytest.mark.skipif(INTERPRETED or not HAS_TRITON, reason="records launches of kernels that are not interpreted")
def test_kernels_name_their_arguments_in_order():
    """Otherwise their launches would go through Triton each time, silently."""
    from cc_kernels.aot.shapes import MODELS
    from cc_kernels.aot.variants import variants

    checked = set()
    for _, _, recorded in variants(models=MODELS[:1], dtypes=(torch.bfloat16,), batches=(4,)):
        names = tuple(recorded.kernel.arg_names)
        assert tuple(recorded.arguments)[: len(names)] == names
        checked.add(recorded.kernel.fn.__name__)
    assert len(checked) >= 10


class Listening(TorchDispatchMode):
    """Writes down the operators of this library that reach the dispatcher."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "cc_kernels":
            self.heard.append(func.name())
        return func(*args, **(kwargs or {}))


@needs_triton
def test_modes_see_the_operators():
    gate, up = randn(3, 20).requires_grad_(), randn(3, 20)
    with use_backend(BACKEND), Listening() as mode:
        swiglu(gate, up).sum().backward()
    assert mode.heard == ["cc_kernels::swiglu", "cc_kernels::swiglu_backward"]


@needs_triton
def test_subclasses_see_the_operators():
    heard = []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            heard.append(func.name())
            plain = [x.plain if isinstance(x, Watched) else x for x in args]
            return func(*plain, **(kwargs or {}))

    x = randn(3, 20)
    watched = torch.Tensor._make_wrapper_subclass(Watched, x.shape, dtype=x.dtype, device=DEVICE)
    watched.plain = x
    with use_backend(BACKEND):
        swiglu(watched, watched)
    assert "cc_kernels::swiglu" in heard


@needs_triton
def test_eager_and_operator_give_the_same_gradients():
    inputs = [(randn(3, 20, seed=s).requires_grad_(), randn(3, 20, seed=s + 1).requires_grad_()) for s in (0, 0)]
    with use_backend(BACKEND):
        eager = torch.autograd.grad(swiglu(*inputs[0]).sum(), inputs[0])
        operator = torch.autograd.grad(torch.ops.cc_kernels.swiglu(*inputs[1]).sum(), inputs[1])
    assert all(torch.equal(a, b) for a, b in zip(eager, operator))


@needs_triton
def test_second_derivatives_raise():
    gate, up = randn(3, 20).requires_grad_(), randn(3, 20).requires_grad_()
    with use_backend(BACKEND):
        (first,) = torch.autograd.grad(swiglu(gate, up).sum(), gate, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives are not supported"):
            first.sum().backward()

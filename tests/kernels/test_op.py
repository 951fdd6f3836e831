"""Which way a call of an op takes: prepared launches, its autograd function or the operator."""

import pytest
import torch
from fake_launches import Compiled, Kernel, launcher_of
from kernel_harness import BACKEND, DEVICE, HAS_TRITON, needs_triton, randn
from torch.utils._python_dispatch import TorchDispatchMode

import cc_kernels
from cc_kernels import backend, library, swiglu, use_backend
from cc_kernels.launch import launching, prepared
from cc_kernels.op import Op


def op_of(kernel, monkeypatch, checked):
    launcher = launcher_of(kernel)
    monkeypatch.setitem(backend._triton_implementations, "doubled", launcher)
    monkeypatch.setattr(backend, "triton_serves", lambda op, tensor: True)
    return Op("doubled", lambda x: checked.append(x), lambda x: x + x, prepared(lambda x: launcher(x)))


def test_an_op_checks_arguments_of_a_known_kind_once(direct, monkeypatch):
    kernel, checked = Kernel(), []
    op = op_of(kernel, monkeypatch, checked)
    x = torch.zeros(8)
    for _ in range(3):
        op(x)
    assert (len(checked), kernel.asked) == (1, 1)
    op(torch.zeros(9))
    assert len(checked) == 2
    op(x.clone().requires_grad_())  # of a known kind: goes to what `triton` is, unchecked
    assert len(checked) == 2
    with use_backend("triton"):
        op(x)
    assert len(checked) == 3


def test_a_call_with_a_gradient_repeats_the_launches_of_its_kind(direct, monkeypatch):
    """The same plan serves calls with and without a gradient; the derivative is the operator's."""
    kernel, checked, saved = Kernel(), [], []
    launcher = launcher_of(kernel)
    call = library.define(
        "launched_for_a_test(Tensor x) -> Tensor",
        launcher,
        fake=torch.empty_like,
        reference=torch.clone,
        backward=lambda ctx, grad: (3 * grad if ctx.needs_input_grad == (True, False) else None,),
        save=lambda ctx, arguments, output: saved.append((arguments, output)),
    )
    monkeypatch.setitem(backend._triton_implementations, "launched_for_a_test", call)
    monkeypatch.setattr(backend, "triton_serves", lambda op, tensor: True)
    op = Op("launched_for_a_test", lambda x: checked.append(x), torch.clone, launcher)
    for number in range(3):
        x = torch.zeros(8, requires_grad=True)
        output = op(x)
        # From now on the op has the plan itself; the launcher is not asked for it.
        monkeypatch.setattr(type(launcher), "__call__", lambda *given: pytest.fail("the launcher was called"))
        (gradient,) = torch.autograd.grad(output.sum(), x)
        assert torch.equal(gradient, torch.full((8,), 3.0))
        assert len(saved) == number + 1
        assert saved[-1][0] == (x,)
    with torch.no_grad():
        assert not op(x).requires_grad
    assert op(x.detach()).grad_fn is None
    assert (len(checked), kernel.asked, len(kernel.compiled[0].starts), len(saved)) == (1, 1, 4, 3)


def test_an_op_checks_what_has_no_kind(direct, monkeypatch):
    kernel, checked = Kernel(), []
    op = op_of(kernel, monkeypatch, checked)
    op(torch.zeros(8))
    monkeypatch.setattr(op, "check", lambda x: (_ for _ in ()).throw(TypeError("x: expected a tensor")))
    for wrong in ([1.0], None, {}, torch.zeros(2, 2).to_sparse()):
        with pytest.raises(TypeError, match="x: expected a tensor"):
            op(wrong)


def test_an_op_that_is_watched_is_checked(direct, monkeypatch):
    kernel, checked = Kernel(), []
    op = op_of(kernel, monkeypatch, checked)
    x = torch.zeros(8)
    op(x)
    with Listening():
        op(x)
    assert len(checked) == 2


INFERENCE = {
    "gate_up_swiglu": (cc_kernels.gate_up_swiglu, {"x": (2, 8), "w_gate": (3, 8), "w_up": (3, 8)}),
    "transform_rows": (cc_kernels.transform_rows, {"values": (2, 8), "matrix": (8, 8)}),
    "capture_add_rows_": (
        lambda x, bank, update: cc_kernels.capture_add_rows_(x, bank, SERVED, SERVED, update),
        {"x": (3, 8), "bank": (2, 8), "update": (2, 8)},
    ),
}


SERVED = torch.tensor([0, -1])


WANTED = [(op, name) for op, (_, shapes) in INFERENCE.items() for name in shapes]


@pytest.mark.skipif(not HAS_TRITON, reason="without triton every call is checked")
@pytest.mark.parametrize(("name", "wanted"), WANTED)
def test_a_gradient_of_an_inference_op_raises_after_a_call_of_the_same_kind(direct, monkeypatch, name, wanted):
    """Whether a tensor requires a gradient is no part of its kind, so that a known kind alone decides nothing."""
    monkeypatch.setattr(launching, "through_triton", lambda kernel, grid, arguments: Compiled())
    monkeypatch.setattr(backend, "triton_serves", lambda op, tensor: True)
    op, shapes = INFERENCE[name]
    arguments = {argument: torch.zeros(shape) for argument, shape in shapes.items()}
    op(**arguments)
    arguments[wanted].requires_grad_()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=f"{name} is inference only: {wanted} requires a gradient"):
            op(**arguments)
        with torch.no_grad():
            op(**arguments)


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
@pytest.mark.parametrize("missing", ["_dispatch_modes", "_transform"])
def test_a_pytorch_that_cannot_be_asked_gets_operators(missing, monkeypatch):
    monkeypatch.setattr(library, missing, None)
    heard = []
    monkeypatch.setattr(torch.ops.cc_kernels.swiglu.default, "_op", heard.append, raising=False)
    assert library.is_observed()
    monkeypatch.undo()
    assert not library.is_observed()


def test_names_without_a_public_counterpart_are_looked_up_at_import():
    assert library._private("_len_torch_dispatch_stack")() == 0
    assert library._private("_functorch.peek_interpreter_stack")() is None
    assert library._private("_functorch.no_such_name") is None
    assert library._private("no.such.name") is None


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

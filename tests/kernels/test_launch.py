"""How launches are prepared and repeated, and which way a call takes: prepared launches or the operator."""

import gc
import weakref

import pytest
import torch
from kernel_harness import BACKEND, DEVICE, HAS_TRITON, needs_triton, randn
from torch.utils._python_dispatch import TorchDispatchMode

import cc_kernels
from cc_kernels import backend, library, swiglu, use_backend
from cc_kernels.launch import empty, launch, launching, prepared, record_launches, unit_stride, written
from cc_kernels.launch.recording import state
from cc_kernels.op import Op


class Compiled:
    """Stands for a kernel that Triton compiled, and writes down how it is started."""

    def __init__(self):
        self.starts = []

    def __getitem__(self, grid):
        return lambda *values: self.starts.append((grid, values))


class Kernel:
    """Stands for a kernel under `triton.jit`; counts how often Triton is asked to specialise."""

    arg_names = ("x_ptr", "absent_ptr", "out_ptr", "size", "BLOCK")

    def __init__(self, compiles=True):
        self.compiled = []
        self.asked = 0
        self.compiles = compiles

    def __getitem__(self, grid):
        def run(**arguments):
            self.asked += 1
            self.compiled.append(Compiled())
            return self.compiled[-1] if self.compiles else None

        return run


@pytest.fixture
def direct(monkeypatch):
    """The CPU counts as a device whose compiled kernels are started directly."""
    monkeypatch.setattr(launching, "DIRECT", frozenset({"cpu"}))
    yield
    launching.forget()


def launcher_of(kernel, runs=None):
    """A launcher of one kernel with one result; `runs` collects how often its Python ran on real tensors."""

    @prepared
    def launcher(x, block=4):
        if runs is not None and x.device.type != "meta":
            runs.append(x)
        out = empty(x, x.shape)
        launch(kernel, (3,), BLOCK=block, size=x.shape[0], x_ptr=unit_stride(x), absent_ptr=None, out_ptr=out)
        return out

    return launcher


def test_the_second_call_starts_the_compiled_kernel_and_nothing_else(direct):
    runs, kernel = [], Kernel()
    launcher = launcher_of(kernel, runs)
    x, other = torch.zeros(8), torch.ones(8)
    launcher(x)
    out = launcher(other)
    assert (len(runs), kernel.asked) == (1, 1)
    # arguments in the kernel's order, tensors by their addresses; options such as num_warps are compiled in
    assert kernel.compiled[0].starts == [((3, 1, 1), (other.data_ptr(), None, out.data_ptr(), 8, 4))]
    assert (out.shape, out.dtype, out.device) == (x.shape, x.dtype, x.device)


@pytest.mark.parametrize(
    "changed",
    [
        (torch.zeros(8, dtype=torch.float64),),
        (torch.zeros(9)[1:],),  # not a multiple of 16 bytes
        (torch.zeros(9),),
        (torch.zeros(8, 2),),
        (torch.zeros(8, 4)[:, :2],),
        (torch.zeros(8), 8),
    ],
    ids=["dtype", "alignment", "size", "shape", "strides", "value"],
)
def test_arguments_of_another_kind_are_prepared_anew(direct, changed):
    kernel = Kernel()
    launcher = launcher_of(kernel)
    for arguments in ((torch.zeros(8),), (torch.zeros(8, 2),) if changed[0].ndim == 2 else (torch.zeros(8),)):
        launcher(*arguments)
    asked = kernel.asked
    launcher(*changed)
    assert kernel.asked == asked + (changed[0].shape != (8, 2) or not changed[0].is_contiguous())
    assert launcher(*changed) is not None


def test_two_arguments_that_were_one_tensor_are_told_apart_later(direct):
    kernel = Kernel()
    kernel.arg_names = ("a_ptr", "b_ptr")

    @prepared
    def launcher(a, b):
        launch(kernel, (1,), a_ptr=a, b_ptr=b)

    x, y = torch.zeros(8), torch.zeros(8)
    launcher(x, x)
    launcher(x, y)
    assert kernel.compiled[0].starts == [((1, 1, 1), (x.data_ptr(), y.data_ptr()))]


def test_a_launcher_that_copies_runs_each_time(direct):
    """The copy is no argument and was not allocated by `empty`, so a plan could not make it again."""
    runs, kernel = [], Kernel()
    launcher = launcher_of(kernel, runs)
    for _ in range(3):
        launcher(torch.zeros(8, 4)[:, ::2])
    assert (len(runs), kernel.asked) == (3, 3)


def test_views_of_an_argument_are_its_memory(direct):
    kernel = Kernel()
    kernel.arg_names = ("x_ptr",)
    flat = prepared(lambda x: launch(kernel, (1,), x_ptr=x.reshape(-1, x.shape[-1])))
    x = torch.zeros(2, 3, 4)
    for _ in range(2):
        flat(x)
    assert kernel.compiled[0].starts == [((1, 1, 1), (x.data_ptr(),))]
    half = prepared(lambda x: launch(kernel, (1,), x_ptr=x[1:]))  # its start is no argument's
    for _ in range(2):
        half(x)
    assert kernel.asked == 3


def test_a_triton_that_returns_nothing_is_asked_each_time(direct):
    kernel = Kernel(compiles=False)
    launcher = launcher_of(kernel)
    outs = [launcher(torch.zeros(8)) for _ in range(3)]
    assert kernel.asked == 3
    assert all(out.shape == (8,) for out in outs)


def test_results_are_new_tensors_the_argument_or_nothing(direct):
    kernel = Kernel()
    x = torch.zeros(8)
    first = launcher_of(kernel)
    assert len({id(first(x)) for _ in range(1)} | {first(x).data_ptr() for _ in range(1)}) == 2
    both = prepared(lambda x: (x, empty(x, (3, 2), torch.float64)))
    for _ in range(2):
        same, new = both(x)
        assert same is x
        assert (new.shape, new.dtype) == ((3, 2), torch.float64)
    assert prepared(lambda x: None)(x) is None


def test_what_is_written_to_is_told_to_autograd(direct):
    @prepared
    def launcher(x):
        written(x)
        return x

    x = torch.zeros(8)
    versions = []
    for _ in range(3):
        assert launcher(x) is x
        versions.append(x._version)
    assert versions == [1, 2, 3]
    with torch.inference_mode():  # tensors that autograd does not count
        fresh = torch.zeros(8)
        for _ in range(3):
            assert launcher(fresh) is fresh


def test_a_launcher_inside_another_is_part_of_its_plan(direct):
    kernel = Kernel()
    inner = launcher_of(kernel)
    outer = prepared(lambda x: inner(inner(x)))
    x = torch.zeros(8)
    for _ in range(3):
        outer(x)
    assert kernel.asked == 2
    assert len(inner.plans) == 0


def test_an_error_leaves_no_state_behind(direct):
    @prepared
    def launcher(x):
        raise ArithmeticError

    for _ in range(2):
        with pytest.raises(ArithmeticError):
            launcher(torch.zeros(8))
    assert (state.recording, state.compiled, state.gpu) == (None, None, None)


def test_plans_keep_their_kernels_and_are_bounded(direct, monkeypatch):
    """A plan holds the compiled kernel itself: there is no id that another kernel could get once it is gone."""
    monkeypatch.setattr(launching, "MOST_PLANS", 4)
    kernel = Kernel()
    launcher = launcher_of(kernel)
    launcher(torch.zeros(8))
    gone = weakref.ref(kernel.compiled[0])
    del kernel
    gc.collect()
    assert gone() is not None
    for size in range(9):
        launcher(torch.zeros(size))
    assert len(launcher.plans) <= 4
    launching.forget()
    assert not launcher.plans


def test_other_devices_are_launched_by_triton():
    kernel = Kernel()
    launcher = launcher_of(kernel)
    for _ in range(3):
        launcher(torch.zeros(8))
    assert kernel.asked == 3
    assert not launcher.plans


def test_recorded_launches_are_not_prepared(direct):
    kernel = Kernel()
    launcher = launcher_of(kernel)
    with record_launches(warp_size=32) as launches:
        launcher(torch.zeros(8))
        launcher(torch.zeros(8))
    assert (len(launches), kernel.asked, len(launcher.plans)) == (2, 0, 0)


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

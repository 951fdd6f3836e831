"""How launches are prepared and repeated, and which way a call takes: prepared launches or the operator."""

import gc
import weakref

import pytest
import torch
from fake_launches import Kernel, launcher_of

from cc_kernels.launch import empty, launch, launching, prepared, record_launches, written
from cc_kernels.launch.recording import state


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

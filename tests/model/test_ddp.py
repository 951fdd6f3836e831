"""DistributedDataParallel on two processes against one: losses, gradients and weights of three steps."""

from __future__ import annotations

import distributed_steps as steps
import pytest
from distributed_steps import assert_same_training

WRAPPERS = {
    "default": {},
    "find unused": {"find_unused_parameters": True},
    "static graph": {"static_graph": True},
    "bucket views": {"gradient_as_bucket_view": True},
}


@pytest.mark.parametrize("pivot_grad", [False, True])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_equals_one_process(two_processes, wrapper, pivot_grad):
    """Rank 1 has no English prompt at all: it waits for nobody and adds exact zeros."""
    ranks = two_processes.run(steps.ddp, wrapper=WRAPPERS[wrapper], pivot_grad=pivot_grad)
    assert_same_training(ranks, steps.one_process(pivot_grad=pivot_grad))


@pytest.mark.parametrize("pivot_grad", [False, True])
def test_gradient_accumulation(two_processes, pivot_grad):
    ranks = two_processes.run(steps.ddp, accumulate=2, pivot_grad=pivot_grad)
    assert_same_training(ranks, steps.one_process(accumulate=2, pivot_grad=pivot_grad))


@pytest.mark.parametrize(("pivot_grad", "reentrant"), [(False, False), (True, False), (False, True)])
def test_gradient_checkpointing(two_processes, pivot_grad, reentrant):
    ranks = two_processes.run(steps.ddp, pivot_grad=pivot_grad, checkpointing=reentrant)
    assert_same_training(ranks, steps.one_process(pivot_grad=pivot_grad))


def test_plain_steps_of_all_ranks(two_processes):
    """Batches without pivot tensors leave the Decision Maker unused, which DDP must be told."""
    ranks = two_processes.run(steps.ddp, wrapper={"find_unused_parameters": True}, pivots=False)
    expected = steps.one_process(pivots=False)
    assert_same_training(ranks, expected)


def test_unused_decision_maker_is_an_error_not_a_hang(two_processes):
    with pytest.raises(RuntimeError, match="Expected to have finished reduction in the prior iteration"):
        two_processes.run(steps.ddp, pivots=False)

"""FSDP2 (`fully_shard` on every layer and on the whole) on two processes against one."""

from __future__ import annotations

import distributed_steps as steps
import pytest
import torch
from distributed_steps import assert_same_training
from model_pairs import assert_same_gradients


@pytest.mark.parametrize("pivot_grad", [False, True])
@pytest.mark.parametrize("options", [{}, {"offload": True}, {"checkpointing": False}, {"saves": True}])
def test_equals_one_process(two_processes, options, pivot_grad):
    """Rank 1 has no English prompt at all: it gathers the same parameters and adds exact zeros."""
    ranks = two_processes.run(steps.fsdp, pivot_grad=pivot_grad, **options)
    assert_same_training(ranks, steps.one_process(pivot_grad=pivot_grad))


def test_reentrant_checkpointing(two_processes):
    assert_same_training(two_processes.run(steps.fsdp, checkpointing=True), steps.one_process())


def test_mixed_precision(two_processes):
    """bf16 parameters and gradients, as one process makes them; masters, reduction and decision in fp32."""
    ranks = two_processes.run(steps.fsdp, bf16=True, count=1)
    expected = steps.bf16_process()
    for rank, result in enumerate(ranks):
        assert result["losses"] == [expected["losses"][rank]]
        assert_same_gradients(result["gradients"], expected["gradients"])
        assert all(weight.dtype == torch.float32 for weight in result["weights"].values())


@pytest.mark.parametrize("pivot_grad", [False, True])
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_accelerator(two_processes, pivot_grad, activation_checkpointing):
    # A recompute would fill a key-value cache a second time, in the stock model, too.
    options = {"activation_checkpointing": activation_checkpointing, "use_cache": False, "pivot_grad": pivot_grad}
    ranks = two_processes.run(steps.accelerate_fsdp, **options)
    assert_same_training(ranks, steps.one_process(pivot_grad=pivot_grad))


def test_the_last_layer_is_narrow(two_processes):
    """FSDP2's own hooks and sharded weights are no obstacle to it, as those of others are."""
    assert two_processes.run(steps.fsdp_narrow_obstacle) == [None, None]


def test_no_graph_of_the_pivot_pass(two_processes):
    """Each pass gathers the layers' parameters anew. At rest those of the root are sharded, too."""
    expected = ["a parameter is a DTensor, which may be sharded or quantised", "FSDP2 shards FSDPLlamaDecoderLayer"]
    assert two_processes.run(steps.fsdp_graph_obstacles) == [expected, expected]

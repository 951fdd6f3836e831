"""The operators in the namespace `cc_kernels`: on a CPU without interpretation, and under torch.compile."""

import pytest
import torch
from decision_inputs import folded, inputs
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from kernel_harness import DEVICE, HAS_TRITON, INTERPRETED, index, randn
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from cc_kernels import connect, reference, swiglu, use_backend

pytestmark = [
    pytest.mark.skipif(not HAS_TRITON, reason="operators are registered where triton is"),
    pytest.mark.skipif(INTERPRETED or DEVICE.type != "cpu", reason="kernels run here, and their own tests"),
]
OPS = torch.ops.cc_kernels if HAS_TRITON else None


def grads(outputs, leaves, seed=50):
    wanted = [x for x in outputs if x.requires_grad]
    seeds = [randn(*x.shape, dtype=x.dtype, seed=seed + i) for i, x in enumerate(wanted)]
    return torch.autograd.grad(wanted, leaves, seeds)


def assert_same(operator, plain, arguments):
    """Values and gradients of an operator on the CPU are those of the definition."""
    leaves = [x for x in arguments if isinstance(x, torch.Tensor) and x.requires_grad]
    ours, theirs = operator(*arguments), plain(*arguments)
    ours, theirs = ((x,) if isinstance(x, torch.Tensor) else x for x in (ours, theirs))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b)
    if leaves:
        for a, b in zip(grads(ours[: len(theirs)], leaves), grads(theirs, leaves)):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_swiglu_on_the_cpu(dtype):
    pair = randn(3, 20, dtype=dtype).requires_grad_(), randn(3, 20, dtype=dtype, seed=1).requires_grad_()
    assert_same(OPS.swiglu, reference.swiglu, pair)


def test_row_operators_on_the_cpu():
    x, rows = randn(5, 20).requires_grad_(), index(1, -1, 1)
    assert_same(OPS.capture_rows, reference.capture_rows, (x, rows))
    values = randn(2, 20, seed=2).requires_grad_()
    assert_same(OPS.add_rows, reference.add_rows, (x, index(3, -1), values))
    target = x.detach().clone()
    OPS.add_rows_(target, index(3, -1), values.detach())
    assert torch.equal(target, reference.add_rows(x, index(3, -1), values))
    base = randn(5, 20, seed=3)
    got = OPS.capture_rows_backward(randn(3, 20, seed=4), rows, base, 5)
    expected = base.clone().index_add_(0, index(1, 1), randn(3, 20, seed=4)[[0, 2]])
    torch.testing.assert_close(got, expected)


def test_matrix_operators_on_the_cpu():
    values, matrix = randn(3, 8), randn(2, 8, 8, seed=1)
    assert_same(OPS.transform_rows, reference.transform_rows, (values, matrix[0], None))
    assert_same(OPS.transform_rows, reference.transform_rows, (values, matrix, index(1, 0, 1)))
    assert_same(OPS.gate_up_swiglu, reference.gate_up_swiglu, (values, randn(5, 8), randn(5, 8, seed=1)))


@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("fold", [None, False, True], ids=["no matrix", "one matrix", "matrix per layer"])
@pytest.mark.parametrize("shared", [False, True])
def test_decision_on_the_cpu(shared, fold, hard):
    bank, embeds, weight, noise = inputs(4, 3, 20)
    bank_weight = None if fold is None else folded(4, 20, fold)
    rows = index(1, -1, 1) if shared else None

    def operator(bank, embeds, weight, noise, *rest):
        return OPS.decision(bank, embeds, weight, noise, 0.7, hard, *rest, True, rows)[:2]

    def plain(bank, embeds, weight, noise, *rest):
        return reference.connect(bank, embeds, weight, noise, 0.7, hard, *rest, rows)

    given = (bank, embeds, weight, noise, bank_weight)
    assert_same(operator, plain, given)
    _, weights, soft, vector = OPS.decision(*(x.detach() for x in given[:4]), 0.7, hard, bank_weight, False, rows)
    assert (soft.numel() > 0) == hard
    assert (vector.numel() > 0) == (fold is None)
    assert torch.equal(weights, reference.decide(*given[:4], 0.7, hard, bank_weight, rows))


class FeedForward(nn.Module):
    """A block of a decoder layer around one implementation of swiglu."""

    def __init__(self, op, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.up = (nn.Linear(32, 48, bias=False, dtype=dtype) for _ in range(2))
        self.down = nn.Linear(48, 32, bias=False, dtype=dtype)
        self.op = op

    def forward(self, x):
        return self.down(self.op(self.gate(x), self.up(x)))


def compiled_training_step(op, dtype):
    """The nodes of the graphs of a compiled forward and backward, and what is saved in between."""
    torch._dynamo.reset()
    graphs, saved = [], []

    def compiler(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return make_boxed_func(graph.forward)

    partition = {"partition_fn": min_cut_rematerialization_partition}  # as Inductor does
    module = FeedForward(op, dtype)
    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler, **partition)
    run = torch.compile(module, fullgraph=True, backend=backend)
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x), x)[1], lambda x: x)
    with hooks:
        run(randn(16, 32, dtype=dtype).requires_grad_()).sum().backward()
    return graphs, len(saved), sum(x.numel() * x.element_size() for x in saved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_traced_definition_is_as_good_as_the_operator(dtype):
    """Why torch.compile traces `swiglu`: the same two graphs, as much saved, and no call back into Python."""
    operator = compiled_training_step(OPS.swiglu.default, dtype)
    traced = compiled_training_step(swiglu, dtype)
    assert len(traced[0]) == len(operator[0]) == 2
    assert traced[1:] == operator[1:]
    assert any("cc_kernels" in node for graph in operator[0] for node in graph)
    assert not any("cc_kernels" in node for graph in traced[0] for node in graph)


def test_other_ops_are_not_traced_by_their_definition_on_a_gpu(monkeypatch):
    """Their definitions use atomics backward, or would be many kernels. `auto` decides as for a GPU tensor here."""
    from cc_kernels import backend

    monkeypatch.setattr(backend, "triton_serves", lambda op, tensor: True)
    torch._dynamo.reset()
    seen = []

    def spy(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    bank, embeds, weight, noise = (x.detach() for x in inputs(4, 3, 20))
    torch.compile(connect, fullgraph=True, backend=spy)(bank, embeds, weight, noise)
    assert any("cc_kernels" in node for node in seen)
    seen.clear()
    torch.compile(swiglu, fullgraph=True, backend=spy)(embeds, embeds)
    assert not any("cc_kernels" in node for node in seen)


def test_an_explicit_choice_of_triton_is_not_traced_away():
    with use_backend("triton"), pytest.raises(Exception, match="set TRITON_INTERPRET=1"):
        torch.compile(swiglu, backend="eager")(randn(2, 3), randn(2, 3))

"""The divergence of a student's distribution from its teacher's, and its gradient."""

import pytest
import torch
from divergence_reference import reference

from train.distillation.targets import divergence


def some_targets(count, vocabulary, k, dtype=torch.float32):
    teacher = torch.randn(count, vocabulary).mul(3).log_softmax(-1)
    values, ids = teacher.topk(k)
    logits = torch.randn(count, vocabulary).mul(4).to(dtype).requires_grad_()
    return logits, ids, values


@pytest.mark.parametrize(
    ("k", "dtype"), [(1, torch.float32), (5, torch.float32), (10, torch.float32), (5, torch.bfloat16)]
)
def test_divergence_and_its_gradient(k, dtype):
    torch.manual_seed(0)
    logits, ids, values = some_targets(6, 11, k, dtype)
    scale = torch.rand(6)
    found = divergence(logits, ids, values)
    assert found.dtype == torch.float32
    assert (found > 0).all()
    (gradient,) = torch.autograd.grad((found * scale).sum(), logits)
    expected = reference(logits, ids, values)
    (wanted,) = torch.autograd.grad((expected * scale).sum(), logits)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, wanted, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-5)


def test_divergence_of_a_sure_teacher_is_finite():
    """Nothing is left for the others, and the student gives them nothing, too."""
    logits = torch.tensor([[200.0, 0.0, 0.0, 0.0]], requires_grad=True)
    found = divergence(logits, torch.tensor([[0, 1]]), torch.tensor([[0.0, -torch.inf]]).clamp(min=-1e4))
    assert found.item() == pytest.approx(0.0, abs=1e-6)
    found.sum().backward()
    assert logits.grad.isfinite().all()
    sure = divergence(torch.zeros(1, 4, requires_grad=True), torch.tensor([[2]]), torch.zeros(1, 1))
    assert sure.item() == pytest.approx(torch.tensor(4.0).log().item(), abs=1e-6)  # the text's cross-entropy

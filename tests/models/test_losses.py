"""The chunked losses against naive ones that hold every logit."""

import pytest
import torch
import torch.nn.functional as F

from vita_audio_pl.models.distillation import distillation_loss
from vita_audio_pl.models.linear_cross_entropy import linear_cross_entropy


def naive_cross_entropy(hidden, weight, targets, row_weights):
    return (F.cross_entropy(hidden @ weight.t(), targets, reduction="none") * row_weights).sum()


def naive_distance(hidden, weight, teacher, rows, row_weights, kl_share):
    goal = (teacher[rows] @ weight.t()).softmax(-1).detach()
    own = (hidden @ weight.t()).softmax(-1)
    divergence = (goal * (goal.log() - own.log())).sum(-1)
    variation = 0.5 * (goal - own).abs().sum(-1)
    if kl_share == "acceptance":
        return (-(1 - variation).log() * row_weights).sum()
    return ((kl_share * divergence + (1 - kl_share) * variation) * row_weights).sum()


def numbers(dtype=torch.float64, rows=37, hidden=12, vocabulary=50):
    random = torch.Generator().manual_seed(1)
    states = torch.randn(rows, hidden, generator=random, dtype=torch.float64)
    weight = torch.randn(vocabulary, hidden, generator=random, dtype=torch.float64)
    targets = torch.randint(0, vocabulary, (rows,), generator=random)
    row_weights = torch.rand(rows, generator=random, dtype=torch.float64)
    return states.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets, row_weights


@pytest.mark.parametrize("chunk_rows", [1, 16, 37, 512])
def test_cross_entropy_and_its_gradients_equal_the_naive_ones_in_double(chunk_rows):
    hidden, weight, targets, row_weights = numbers()
    expected = naive_cross_entropy(hidden, weight, targets, row_weights)
    total, each, correct = linear_cross_entropy(hidden, weight, targets, row_weights, chunk_rows)
    torch.testing.assert_close(total, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close((each * row_weights).sum(), expected, atol=1e-12, rtol=1e-12)
    assert torch.equal(correct, (hidden @ weight.t()).argmax(-1) == targets)
    ours = torch.autograd.grad(3 * total, (hidden, weight))  # an outer factor, such as a loss scale, passes through
    for mine, theirs in zip(ours, torch.autograd.grad(3 * expected, (hidden, weight)), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("kl_share", [0.0, 0.3, 1.0, "acceptance"])
def test_distillation_and_its_gradients_equal_the_naive_ones_in_double(kl_share):
    hidden, weight, _, row_weights = numbers()
    teacher = torch.randn(9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    rows = torch.sort(torch.randint(0, 9, (37,), generator=torch.Generator().manual_seed(3))).values
    expected = naive_distance(hidden, weight, teacher, rows, row_weights, kl_share)
    total, _, agrees = distillation_loss(hidden, weight, teacher, rows, row_weights, kl_share, chunk_rows=10)
    torch.testing.assert_close(total, expected, atol=1e-12, rtol=1e-12)
    assert torch.equal(agrees, (hidden @ weight.t()).argmax(-1) == (teacher @ weight.t()).argmax(-1)[rows])
    total.backward()
    assert teacher.grad is None
    theirs = torch.autograd.grad(expected, (hidden, weight))
    torch.testing.assert_close(hidden.grad, theirs[0], atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(weight.grad, theirs[1], atol=1e-12, rtol=1e-10)


def test_a_predictor_equal_to_its_teacher_has_no_distance_and_no_gradient():
    hidden, weight, _, row_weights = numbers()
    for kl_share in (0.0, 1.0, "acceptance"):
        total, each, agrees = distillation_loss(hidden, weight, hidden, torch.arange(37), row_weights, kl_share)
        assert each.abs().max() < 1e-12 and agrees.all()
        assert torch.autograd.grad(total, hidden)[0].abs().max() < 1e-12


def test_16_bit_weights_are_accumulated_in_32():
    """The gradient of W is summed over chunks: in bf16 its error would grow with their number."""
    hidden, weight, targets, row_weights = numbers(torch.bfloat16, rows=400)
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    expected = naive_cross_entropy(*exact, targets, row_weights)
    total, *_ = linear_cross_entropy(hidden, weight, targets, row_weights.float(), chunk_rows=8)
    assert total.dtype == torch.float32 and total.item() == pytest.approx(expected.item(), rel=1e-6)
    total.backward()
    expected.backward()
    for mine, theirs in ((hidden, exact[0]), (weight, exact[1])):
        assert mine.grad.dtype == torch.bfloat16  # one rounding, at the end
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=2**-8, atol=1e-6)


def test_targets_far_from_the_prediction_keep_their_exact_loss():
    weight, hidden = torch.eye(4), torch.tensor([[500.0, 0, 0, 0]])
    _, each, _ = linear_cross_entropy(hidden, weight, torch.tensor([1]), torch.ones(1))
    assert each.item() == 500.0


def test_no_rows_give_a_zero_that_can_be_differentiated():
    hidden, weight, targets, row_weights = numbers()
    total, *_ = linear_cross_entropy(hidden[:0], weight, targets[:0], row_weights[:0])
    total.backward()
    assert total.item() == 0 and weight.grad.abs().sum() == 0


def test_a_gradient_is_not_taken_twice_silently():
    total, *_ = linear_cross_entropy(*numbers())
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        total.backward()


def test_no_gradient_is_gathered_where_none_is_wanted(monkeypatch):
    from vita_audio_pl.models.chunked_linear import ChunkedLinear

    hidden, weight, targets, row_weights = numbers()
    made = []
    keep = ChunkedLinear.keep_gradients
    monkeypatch.setattr(ChunkedLinear, "keep_gradients", lambda self, ctx: (made.append(self), keep(self, ctx)))
    linear_cross_entropy(hidden, weight.detach(), targets, row_weights)
    with torch.no_grad():
        linear_cross_entropy(hidden, weight, targets, row_weights)
    frozen_weight, evaluated = made
    assert frozen_weight.grad_weight is None and frozen_weight.grad_hidden is not None
    assert evaluated.grad_weight is None and evaluated.grad_hidden is None

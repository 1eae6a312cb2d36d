"""Preference losses: values at the reference, directions, the anchor."""

from math import log

import pytest
import torch
from torch import Tensor

from dragontune.losses import Dpo, Kto, PreferenceLoss

LOSSES = [Dpo(), Kto()]


def implicit(b: Tensor, positive: Tensor, negative: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The scalar model D = b against the frozen D = 0: beta (error of the frozen - error of the model)."""
    return beta * (positive**2 - (b - positive) ** 2), beta * (negative**2 - (b - negative) ** 2)


@pytest.mark.parametrize(("loss", "value"), [(Dpo(), log(2)), (Kto(), 0.5)])
def test_value_at_the_reference(loss: PreferenceLoss, value: float):
    assert loss(torch.zeros(7), torch.zeros(7)).item() == pytest.approx(value)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_goes_to_the_positive(loss: PreferenceLoss):
    b = torch.zeros((), requires_grad=True)
    positive, negative = torch.tensor([0.8]), torch.tensor([-0.3])
    (slope,) = torch.autograd.grad(loss(*implicit(b, positive, negative, 3.0)), b)
    # both losses have slope 1/2 (DPO) and 1/8 per set (KTO) in the implicit rewards at the reference
    expected = {Dpo: -3.0 * (0.8 + 0.3), Kto: -3.0 * (0.8 + 0.3) / 4}[type(loss)]
    assert slope.item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_signs(loss: PreferenceLoss):
    positive, negative = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    up, down = torch.autograd.grad(loss(positive, negative), (positive, negative))
    assert (up < 0).all()
    assert (down > 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_identical_sets_and_no_beta_give_no_gradient(loss: PreferenceLoss):
    b = torch.zeros((), requires_grad=True)
    x = torch.tensor([0.5, -1.0])
    for pair in (implicit(b, x, x, 3.0), implicit(b, x, -x, 0.0)):
        (slope,) = torch.autograd.grad(loss(*pair), b)
        assert slope.item() == pytest.approx(0, abs=1e-7)


def test_anchor_of_kto_is_the_clamped_mean_of_both_sets():
    positive, negative = torch.tensor([3.0, 1.0]), torch.tensor([0.0, -2.0])
    assert Kto().anchor(positive, negative).item() == pytest.approx(0.5)
    assert Kto().anchor(-positive, negative).item() == 0
    expected = 1 - (torch.sigmoid(positive - 0.5) + torch.sigmoid(0.5 - negative)) / 2
    torch.testing.assert_close(Kto().losses(positive, negative, torch.full((2,), 0.5)), expected)
    assert not Dpo().anchored
    assert Dpo().anchor(positive, negative).item() == 0


def test_the_anchor_carries_no_gradient():
    positive, negative = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    (slope,) = torch.autograd.grad(Kto()(positive, negative), positive)
    s = torch.sigmoid(torch.tensor(0.5))
    torch.testing.assert_close(slope, (-s * (1 - s) / 2 / 3).expand(3))


@pytest.mark.parametrize("loss", LOSSES)
def test_parts_average_to_the_whole(loss: PreferenceLoss):
    draws = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(2, 8, generator=draws)
    anchor = loss.anchor(positive, negative).expand(8)
    parts = [loss.losses(positive[i : i + 2], negative[i : i + 2], anchor[:2]).mean() for i in range(0, 8, 2)]
    torch.testing.assert_close(torch.stack(parts).mean(), loss(positive, negative))


@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_rewards_are_finite(loss: PreferenceLoss):
    extreme = torch.tensor([1e4, -1e4], requires_grad=True)
    value = loss(extreme, -extreme)
    (slope,) = torch.autograd.grad(value, extreme)
    assert value.isfinite()
    assert slope.isfinite().all()

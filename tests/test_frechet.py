"""The Fréchet distance against closed forms, scipy's matrix root and singular values."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from dragontune.distances.frechet import Moments, factor, frechet


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(dim: int, seed: int) -> tuple[Tensor, Tensor]:
    root = rand(dim, 2 * dim, seed=seed)
    return rand(dim, seed=seed + 1), root @ root.mT / dim


def of_set(frames: Tensor) -> tuple[Tensor, Tensor]:
    moments = Moments.of(frames[None])
    return moments.mean()[0], moments.covariance()[0]


def test_identical_is_zero_and_a_shift_is_its_square():
    mean, covariance = gaussian(6, 0)
    shift = rand(6, seed=9)
    assert frechet(mean, covariance, mean, covariance).item() == pytest.approx(0, abs=1e-10)
    assert frechet(mean + shift, covariance, mean, covariance).item() == pytest.approx(shift.square().sum().item())


def test_commuting_covariances():
    """Sum of (sqrt l - sqrt l')^2 over the common eigenvectors."""
    basis = torch.linalg.qr(rand(5, 5)).Q
    ours, theirs = torch.rand(2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    zero = torch.zeros(5, dtype=torch.float64)
    distance = frechet(zero, basis * ours @ basis.mT, zero, basis * theirs @ basis.mT)
    assert distance.item() == pytest.approx((ours.sqrt() - theirs.sqrt()).square().sum().item())


def test_symmetry_and_invariance_to_rotation():
    (m1, s1), (m2, s2) = gaussian(6, 0), gaussian(6, 5)
    turn = torch.linalg.qr(rand(6, 6, seed=7)).Q
    value = frechet(m1, s1, m2, s2).item()
    assert frechet(m2, s2, m1, s1).item() == pytest.approx(value)
    assert frechet(turn @ m1, turn @ s1 @ turn.mT, turn @ m2, turn @ s2 @ turn.mT).item() == pytest.approx(value)


@pytest.mark.parametrize("dim", [1, 3, 24])
def test_full_rank_agrees_with_scipy(dim: int):
    (m1, s1), (m2, s2) = gaussian(dim, 2), gaussian(dim, 4)
    cross = torch.as_tensor(np.real(sqrtm((s1 @ s2).numpy()))).trace()
    expected = (m1 - m2).square().sum() + s1.trace() + s2.trace() - 2 * cross
    assert frechet(m1, s1, m2, s2).item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("count", [2, 5, 11])
def test_singular_covariances_agree_with_singular_values(count: int):
    """Tr (S S')^1/2 is the nuclear norm of the centred frames times a factor of S'."""
    frames, (mean, covariance) = rand(count, 12), gaussian(12, 3)
    centred = frames - frames.mean(0)
    cross = torch.linalg.svdvals(centred @ factor(covariance)).sum() / (count - 1) ** 0.5
    scatter = centred.square().sum() / (count - 1)
    expected = (frames.mean(0) - mean).square().sum() + scatter + covariance.trace() - 2 * cross
    assert frechet(*of_set(frames), mean, covariance).item() == pytest.approx(expected.item(), rel=1e-9)


def test_degenerate_sets_are_finite():
    target = gaussian(4, 0)
    for frames in (torch.ones(3, 4), torch.zeros(2, 4), rand(2, 4).repeat(3, 1), 1e4 * rand(9, 4), 1e-6 * rand(9, 4)):
        value = frechet(*of_set(frames), *target)
        assert value.isfinite()
        assert value >= 0
    zero = torch.zeros(4, 4, dtype=torch.float64)
    assert frechet(target[0], zero, target[0], zero).item() == 0
    same = rand(3, 4)
    assert frechet(*of_set(same), *of_set(same)).item() == pytest.approx(0, abs=1e-12)


def test_gradient_is_the_derivative():
    frames, target = rand(9, 3).requires_grad_(), gaussian(3, 1)
    assert torch.autograd.gradcheck(lambda x: frechet(*of_set(x), *target), frames)


def test_gradient_of_singular_sets_is_finite():
    for frames in (rand(3, 6), rand(2, 6).repeat(2, 1), torch.ones(3, 6, dtype=torch.float64)):
        leaf = frames.clone().requires_grad_()
        (slope,) = torch.autograd.grad(frechet(*of_set(leaf), *gaussian(6, 0)), leaf)
        assert slope.isfinite().all()


def test_moments_of_groups_merge_like_pooled_frames():
    frames = rand(4, 7, 3) + 100
    merged = Moments.of(frames).merge()
    pooled = frames.reshape(-1, 3)
    torch.testing.assert_close(merged.mean()[0], pooled.mean(0))
    torch.testing.assert_close(merged.covariance()[0], torch.cov(pooled.mT), rtol=1e-8, atol=1e-8)
    some = torch.tensor([2, 0])
    torch.testing.assert_close(Moments.of(frames)[some].merge().mean()[0], frames[some].reshape(-1, 3).mean(0))


def test_masked_frames_do_not_count():
    frames, mask = rand(2, 5, 3), torch.ones(2, 5, 1)
    mask[1, 3:] = 0
    masked = Moments.of(frames, mask)
    assert masked.count.tolist() == [5, 3]
    torch.testing.assert_close(masked.covariance()[1], torch.cov(frames[1, :3].mT))


def test_many_at_once():
    moments, target = Moments.of(rand(5, 9, 3)), gaussian(3, 0)
    together = frechet(moments.mean(), moments.covariance(), *target)
    singly = [frechet(moments.mean()[i], moments.covariance()[i], *target) for i in range(5)]
    torch.testing.assert_close(together, torch.stack(singly))


def test_float32_comes_out_as_float64():
    mean, covariance = (x.float() for x in gaussian(3, 0))
    assert frechet(mean, covariance, mean, covariance).dtype == torch.float64

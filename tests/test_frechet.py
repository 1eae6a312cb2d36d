"""The Fréchet distance against closed forms, 40-digit arithmetic, scipy's matrix root and itself."""

from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.linalg import sqrtm
from torch import Tensor

from dragontune.distances import Gaussian, Moments, frechet_distance, frechet_distance_per_item
from dragontune.errors import InputError
from embeddings import embeddings, rand, sets


def gaussian(dim: int, seed: int) -> tuple[Tensor, Tensor]:
    root = rand(dim, 2 * dim, seed=seed)
    return rand(dim, seed=seed + 1), root @ root.mT / dim


def truth(x: Tensor, y: Gaussian) -> float:
    """In 40 digits, from the float64 numbers given."""
    with mpmath.workdps(40):
        rows = mpmath.matrix(x.tolist())
        n, dim = x.shape
        mean = [mpmath.fsum(rows[i, k] for i in range(n)) / n for k in range(dim)]
        centred = mpmath.matrix(n, dim)
        for i in range(n):
            for k in range(dim):
                centred[i, k] = rows[i, k] - mean[k]
        root = mpmath.matrix(y.root.tolist())
        projected = centred * root
        gram = projected * projected.T if n < projected.cols else projected.T * projected
        roots = mpmath.fsum(mpmath.sqrt(max(v, 0)) for v in mpmath.eigsy(gram, eigvals_only=True))
        apart = mpmath.fsum((mean[k] - mpmath.mpf(float(y.mean[k]))) ** 2 for k in range(dim))
        trace = mpmath.fsum(v**2 for v in centred) / (n - 1) + mpmath.fsum(v**2 for v in root)
        return float(apart + trace - 2 * roots / mpmath.sqrt(n - 1))


@pytest.mark.parametrize(("n", "dim", "decay"), [(2, 5, 1.0), (12, 20, 1.0), (20, 12, 0.5), (15, 30, 3.0)])
def test_forty_digits(n: int, dim: int, decay: float):
    x, y = embeddings(n, dim, decay=decay), Gaussian.of(embeddings(60, dim, seed=1, decay=decay))
    exact = truth(x, y)
    assert frechet_distance(x, y).item() == pytest.approx(exact, rel=1e-12)
    # the derivative of a root is steep at a null direction: what a covariance has lost can't be had back
    moments = (y.mean, y.covariance)
    assert frechet_distance(x, moments).item() == pytest.approx(exact, rel=1e-9)


def test_identical_is_zero_and_a_shift_is_its_square():
    x = embeddings(40, 7)
    shift = rand(7, seed=9)
    assert frechet_distance(x, x).item() == pytest.approx(0, abs=1e-14)
    assert frechet_distance(x + shift, x).item() == pytest.approx(shift.square().sum().item())


def test_commuting_covariances():
    """Sum of (sqrt l - sqrt l')^2 over the common eigenvectors."""
    basis = torch.linalg.qr(rand(5, 5)).Q
    ours, theirs = torch.rand(2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    zero = torch.zeros(5, dtype=torch.float64)
    distance = frechet_distance((zero, basis * ours @ basis.mT), (zero, basis * theirs @ basis.mT))
    assert distance.item() == pytest.approx((ours.sqrt() - theirs.sqrt()).square().sum().item())


@pytest.mark.parametrize("dim", [1, 3, 24])
def test_full_rank_agrees_with_scipy(dim: int):
    (m1, s1), (m2, s2) = gaussian(dim, 2), gaussian(dim, 4)
    cross = torch.as_tensor(np.real(sqrtm((s1 @ s2).numpy()))).trace()
    expected = (m1 - m2).square().sum() + s1.trace() + s2.trace() - 2 * cross
    assert frechet_distance((m1, s1), (m2, s2)).item() == pytest.approx(expected.item(), rel=1e-9)


@settings(deadline=None, max_examples=150)
@given(sets())
def test_properties(given: tuple[Tensor, Tensor, Tensor]):
    x, _, y = given
    scale = float(x.square().sum() / len(x) + y.square().sum() / len(y))
    value = frechet_distance(x, y).item()
    assert 0 <= value < float("inf")
    differs = not bool((x == x[0]).all())
    if differs:
        assert 0 <= frechet_distance(x, x).item() <= 1e-12 * scale
        assert frechet_distance(y, x).item() == pytest.approx(value, rel=1e-9, abs=1e-11 * scale)
    turn = torch.linalg.qr(rand(x.shape[1], x.shape[1], seed=7)).Q
    assert frechet_distance(x @ turn, y @ turn).item() == pytest.approx(value, rel=1e-9, abs=1e-11 * scale)
    assert frechet_distance(x.flip(0), y.flip(0)).item() == pytest.approx(value, rel=1e-9, abs=1e-11 * scale)
    assert frechet_distance(3 * x, 3 * y).item() == pytest.approx(9 * value, rel=1e-9, abs=1e-10 * scale)


def test_far_from_the_origin_no_digits_are_lost():
    x, y = embeddings(30, 8), embeddings(50, 8, seed=1)
    assert frechet_distance(x + 1e5, y + 1e5).item() == pytest.approx(frechet_distance(x, y).item(), rel=1e-8)


def test_kinds_of_input_agree():
    x, y = embeddings(30, 8), embeddings(50, 8, seed=1)
    value = frechet_distance(x, y).item()
    fit = Gaussian.of(y)
    for other in (y.numpy(), fit, (fit.mean, fit.covariance), (fit.mean.numpy(), fit.covariance.numpy())):
        assert frechet_distance(x.numpy(), other).item() == pytest.approx(value, rel=1e-10)
    assert frechet_distance(x.float(), y.float()).dtype == torch.float64


@pytest.mark.parametrize("n", [80, 800])
def test_single_precision(n: int):
    x, y = embeddings(n, 128), Gaussian.of(embeddings(1000, 128, seed=1))
    single = frechet_distance(x, y, dtype=torch.float32)
    assert single.dtype == torch.float64
    assert single.item() == pytest.approx(frechet_distance(x, y).item(), rel=2e-5)


@pytest.mark.parametrize(("n", "dim"), [(9, 3), (4, 9)])
def test_gradient_is_the_derivative(n: int, dim: int):
    x, y = embeddings(n, dim).requires_grad_(), embeddings(20, dim, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(frechet_distance, (x, y))
    assert torch.autograd.gradcheck(
        lambda z: frechet_distance_per_item(z, y.detach()), rand(2, n, dim).requires_grad_()
    )


def test_gradient_with_duplicates_is_that_of_the_set_without_order():
    """Against the closed form I - L (L'SL)^(-1/2) L' of the covariance; autograd of singular values is wrong here."""
    half = embeddings(6, 20)
    x = torch.cat([half, half]).requires_grad_()
    fit = Gaussian.of(embeddings(60, 20, seed=1))
    (slope,) = torch.autograd.grad(frechet_distance(x, fit), x)
    with torch.no_grad():
        n, centred = len(x), x - x.mean(0)
        inner = fit.root.mT @ (centred.mT @ centred / (n - 1)) @ fit.root
        values, vectors = torch.linalg.eigh(inner)
        keep = values > 1e-12 * values[-1]
        power = (vectors[:, keep] / values[keep].sqrt()) @ vectors[:, keep].mT
        of_covariance = torch.eye(20).double() - fit.root @ power @ fit.root.mT
        expected = 2 * (x.mean(0) - fit.mean) / n + 2 * centred @ of_covariance / (n - 1)
    torch.testing.assert_close(slope, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(slope[:6], slope[6:])


def test_gradient_of_sets_that_have_no_direction_in_common():
    """All singular values are rounding noise of the product: none of them may steer the gradient."""
    turn = torch.linalg.qr(rand(10, 10, seed=5)).Q
    flat = torch.zeros(20, 5, dtype=torch.float64)
    x = (torch.cat([rand(20, 5), flat], 1) @ turn).requires_grad_()
    y = torch.cat([flat, rand(20, 5, seed=1)], 1) @ turn
    for slope in (
        torch.autograd.grad(frechet_distance(x, y), x)[0],
        torch.autograd.grad(frechet_distance_per_item(x[None], y)[0], x)[0],
    ):
        with torch.no_grad():
            expected = 2 * (x.mean(0) - y.mean(0)) / 20 + 2 * (x - x.mean(0)) / 19
        torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize("n", [4, 30])
def test_shrinkage(n: int):
    """The definition, its gradient where eigenvalues repeat, and full rank where the plain covariance has none."""
    x, y = rand(n, 8).requires_grad_(), Gaussian.of(rand(40, 8, seed=1))
    plain = torch.cov(x.detach().mT)
    shrunk = Gaussian.of(x.detach(), "oas").covariance
    level = plain.trace() / 8
    share = (shrunk[0, 1] / plain[0, 1]).item()
    assert 0 <= share < 1
    torch.testing.assert_close(shrunk, share * plain + (1 - share) * level * torch.eye(8).double())
    torch.testing.assert_close(Moments.of(x.detach()[None]).covariance("oas")[0], shrunk)
    assert torch.autograd.gradcheck(lambda z: frechet_distance(Gaussian.of(z, "oas"), y), x)


def test_second_derivatives_are_refused():
    x = rand(5, 3).requires_grad_()
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(frechet_distance(x, rand(9, 3, seed=1)), x, create_graph=True)


def test_arrays_of_any_layout():
    x, y = rand(6, 3).numpy(), rand(9, 3, seed=1)
    value = frechet_distance(x, y).item()
    fixed = x.copy()
    fixed.flags.writeable = False
    for other in (x.astype(">f8"), x[::-1], np.asfortranarray(x), x.astype(np.longdouble), fixed, x.tolist()):
        assert frechet_distance(other, y).item() == pytest.approx(value, rel=1e-12)


def test_moments_are_not_shared_with_the_caller():
    mean = torch.zeros(3, dtype=torch.float64)
    fit = Gaussian.of_moments(mean, torch.eye(3))
    mean += 5
    assert fit.mean.tolist() == [0, 0, 0]


def test_gradient_of_a_collapsed_set_is_finite():
    x = torch.ones(3, 6, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(frechet_distance(x, embeddings(30, 6)), x)
    assert slope.isfinite().all()


def test_items_of_any_length():
    fit = Gaussian.of(embeddings(60, 20, seed=1))
    ragged = [embeddings(n, 20, seed=n) for n in (2, 5, 30, 5, 60)]
    ragged.append(ragged[1].repeat(2, 1))
    together = frechet_distance_per_item(ragged, fit)
    for item, value in zip(ragged, together.tolist(), strict=True):
        assert value == pytest.approx(frechet_distance(item, fit).item(), rel=1e-12)
    equal = torch.stack([ragged[1], ragged[3]])
    torch.testing.assert_close(frechet_distance_per_item(equal.numpy(), fit), together[[1, 3]])
    assert len(frechet_distance_per_item([], fit)) == 0


def test_nothing_global_is_touched():
    before = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(), torch.random.get_rng_state())
    frechet_distance(rand(5, 3), rand(6, 3))
    after = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(), torch.random.get_rng_state())
    assert before[:3] == after[:3]
    assert torch.equal(before[3], after[3])


GOOD = rand(5, 3)


@pytest.mark.parametrize(
    ("x", "y", "complaint"),
    [
        (GOOD[:1], GOOD, "2 vectors or more"),
        (GOOD[:0], GOOD, "2 vectors or more"),
        (GOOD[:, :0], GOOD, "1 number or more"),
        (GOOD[0], GOOD, "n x dim"),
        (GOOD, GOOD[:, :2], "same dimension"),
        (torch.full((4, 3), float("nan")), GOOD, "finite numbers in x, got nan"),
        (GOOD, torch.full((4, 3), float("inf")), "finite numbers in y, got inf"),
        (GOOD + 1j, GOOD, "real numbers"),
        (GOOD, torch.ones(4, 3), "differ"),
        (GOOD, (torch.zeros(3), torch.diag(torch.tensor([1.0, 1.0, -1.0]))), "negative eigenvalues"),
        (GOOD, (torch.zeros(3), torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 1]])), "symmetric"),
        (GOOD, (torch.zeros(2), torch.eye(3)), "dim x dim"),
        (GOOD, (torch.full((3,), float("nan")), torch.eye(3)), "finite numbers in the mean"),
        (GOOD, (torch.zeros(3), torch.eye(3), 5), "tuple of 3"),
        (GOOD, [[1.0, 2.0, 3.0]] * 3, "differ"),
        ("abc", GOOD, "expected numbers"),
        (np.array([["a"]]), GOOD, "expected numbers"),
        (1e70 * GOOD, GOOD, "up to 1e"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(x: Any, y: Any, complaint: str):
    with pytest.raises(InputError, match=complaint):
        frechet_distance(x, y)


@pytest.mark.parametrize(
    ("frames", "complaint"),
    [
        (GOOD, "items x frames x dim"),
        ([GOOD, GOOD[:1]], "2 vectors or more in item 1"),
        ([GOOD, GOOD[:, :2]], "one dimension"),
        (rand(2, 4, 5), "same dimension"),
        ([torch.full((4, 3), float("nan"))], "item 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_items(frames: Tensor, complaint: str):
    with pytest.raises(InputError, match=complaint):
        frechet_distance_per_item(frames, GOOD)

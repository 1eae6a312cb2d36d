"""The kernel distance against closed forms, explicit feature maps and brute force."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dragontune.distances import kernel as module
from dragontune.distances.kernel import (
    Gaussian,
    InverseMultiquadric,
    Kernel,
    KernelReference,
    Polynomial,
    kernel_distance,
    kernel_means,
    kernel_total,
    median_distance,
)
from dragontune.errors import InputError

RADIAL = ["gaussian", "imq"]
NAMES = [*RADIAL, "polynomial"]


def normal(seed: int, n: int, dim: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def named(name: str, dim: int, bandwidth: float = 1.3) -> Kernel:
    radial = {"gaussian": Gaussian(bandwidth), "imq": InverseMultiquadric(bandwidth)}
    return radial.get(name, Polynomial(gamma=1 / dim))


def by_hand(x: np.ndarray, y: np.ndarray, name: str, bandwidth: float, unbiased: bool) -> float:
    """One pair at a time."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        ratio = float(((a - b) ** 2).sum()) / (2 * bandwidth**2)
        polynomial = (float(a @ b) / len(a) + 1) ** 3
        return {"gaussian": math.exp(-ratio), "imq": 1 / math.sqrt(1 + ratio), "polynomial": polynomial}[name]

    def mean(z: np.ndarray) -> float:
        return float(np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j or not unbiased]))

    return mean(x) + mean(y) - 2 * float(np.mean([k(a, b) for a in x for b in y]))


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_brute_force(name: str, unbiased: bool):
    x, y = normal(0, 7, 4).numpy(), normal(1, 9, 4).numpy() + 0.3
    distances = [np.linalg.norm(a - b) for i, a in enumerate(y) for b in y[:i]]
    for bandwidth in (None, 0.7):
        radial = None if name == "polynomial" else bandwidth
        found = kernel_distance(x, y, name, bandwidth=radial, unbiased=unbiased)
        assert found.dtype == torch.float64
        assert found.ndim == 0
        width = float(np.sort(distances)[(len(distances) - 1) // 2]) if bandwidth is None else bandwidth
        assert found.item() == pytest.approx(by_hand(x, y, name, width, unbiased), rel=1e-12, abs=1e-14)


def test_two_points_each():
    """x = {0, a}, y = {b, c} on a line."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [4.0]])
    g = [math.exp(-(d**2) / 2) for d in range(5)]
    cross = (g[2] + g[4] + g[1] + g[3]) / 4
    assert kernel_distance(x, y, bandwidth=1.0).item() == pytest.approx(g[1] + g[2] - 2 * cross, abs=1e-15)
    biased = (1 + g[1]) / 2 + (1 + g[2]) / 2 - 2 * cross
    assert kernel_distance(x, y, bandwidth=1.0, unbiased=False).item() == pytest.approx(biased, abs=1e-15)


def gaussian_mmd(shift: float, s: float, t: float, bandwidth: float, dim: int) -> float:
    """Of N(0, s^2 I) and N(m, t^2 I) with |m| = shift."""

    def mean(variance: float, gap: float) -> float:
        total = bandwidth**2 + variance
        return (bandwidth**2 / total) ** (dim / 2) * math.exp(-(gap**2) / (2 * total))

    return mean(2 * s**2, 0) + mean(2 * t**2, 0) - 2 * mean(s**2 + t**2, shift)


def test_gaussians_in_closed_form():
    """Within five standard errors of the estimate, found from independent pieces."""
    dim, shift, t, bandwidth = 3, 0.8, 1.4, 1.2
    y = normal(1, 6_000, dim, t)
    y[:, 0] += shift
    x = normal(0, 6_000, dim)
    pieces = [kernel_distance(a, b, bandwidth=bandwidth) for a, b in zip(x.split(300), y.split(300), strict=True)]
    estimates = torch.stack(pieces)
    error = estimates.std().item() / math.sqrt(len(estimates))
    truth = gaussian_mmd(shift, 1, t, bandwidth, dim)
    assert error < 0.05 * truth
    assert abs(estimates.mean().item() - truth) < 5 * error
    large = kernel_distance(x[:2000], y[:2000], bandwidth=bandwidth).item()
    assert abs(large - truth) < 5 * error * math.sqrt(6_000 / 2000)


@pytest.mark.parametrize("name", NAMES)
def test_unbiased_is_right_on_average_and_negative_at_times(name: str):
    """For sets of one distribution the truth is 0; the biased distance is above it."""
    sets = [(normal(2 * s, 12, 3), normal(2 * s + 1, 9, 3)) for s in range(100)]
    bandwidth = None if name == "polynomial" else 1.5
    unbiased = torch.stack([kernel_distance(x, y, name, bandwidth=bandwidth) for x, y in sets])
    assert abs(unbiased.mean().item()) < 4 * unbiased.std().item() / 10
    assert 0.3 < (unbiased < 0).double().mean().item() < 0.8
    biased = torch.stack([kernel_distance(x, y, name, bandwidth=bandwidth, unbiased=False) for x, y in sets[:25]])
    assert biased.min() > 0
    assert biased.mean() > 10 * unbiased.mean().abs()


def test_polynomial_is_its_feature_map():
    """(a.b + 1)^2 compares (1, sqrt2 a, a a'): the biased distance is between the means of these."""
    x, y = normal(0, 6, 3), 2 * normal(1, 8, 3) + 0.5

    def features(z: torch.Tensor) -> torch.Tensor:
        squares = (z[:, :, None] * z[:, None, :]).flatten(1)
        return torch.cat([torch.ones(len(z), 1).double(), math.sqrt(2) * z, squares], 1)

    expected = (features(x).mean(0) - features(y).mean(0)).square().sum().item()
    found = kernel_distance(x, y, Polynomial(degree=2, gamma=1.0), unbiased=False)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    linear = kernel_distance(x, y, Polynomial(degree=1, gamma=1.0, coef=0.0), unbiased=False)
    assert linear.item() == pytest.approx((x.mean(0) - y.mean(0)).square().sum().item(), rel=1e-12)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_gradients(name: str, unbiased: bool):
    reference = KernelReference.of(normal(1, 6, 3) + 0.4, name)
    x = normal(0, 5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kernel_distance(x, reference, unbiased=unbiased), x)
    copies = x.detach()[[0, 0, 1, 1]].requires_grad_()
    (slope,) = torch.autograd.grad(kernel_distance(copies, reference, unbiased=unbiased), copies)
    assert slope.isfinite().all()


def test_gradient_is_zero_at_the_reference():
    y = normal(0, 6, 3)
    x = y.clone().requires_grad_()
    distance = kernel_distance(x, y, unbiased=False)
    (slope,) = torch.autograd.grad(distance, x)
    assert distance.item() < 1e-15
    assert slope.abs().max() < 1e-15


@pytest.mark.parametrize("name", NAMES)
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, name: str):
    x, y = normal(0, 20, 5), normal(1, 30, 5) + 0.2

    def found() -> tuple[torch.Tensor, torch.Tensor]:
        moving = x.clone().requires_grad_()
        distance = kernel_distance(moving, y, named(name, 5))
        return distance.detach(), torch.autograd.grad(distance, moving)[0]

    whole = found()
    monkeypatch.setattr(module, "BLOCK", 64)
    monkeypatch.setattr(module, "SIDE", 8)
    for one, other in zip(whole, found(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_a_block_at_a_time_is_all_that_is_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BLOCK", 4096)
    monkeypatch.setattr(module, "SIDE", 64)
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    x, y = normal(0, 200, 3).requires_grad_(), normal(1, 3000, 3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kernel_means(Gaussian(1.0), x, y).sum().backward()
        kernel_total(Gaussian(1.0), x).backward()
    assert max(kept) <= 3000 * 3


shapes = st.tuples(st.integers(2, 7), st.integers(2, 7), st.integers(1, 5), st.integers(0, 2**31 - 1))


@given(shapes, st.sampled_from(NAMES), st.booleans())
@settings(max_examples=40, deadline=None)
def test_order_does_not_matter_and_exchange_is_symmetric(shape: tuple[int, int, int, int], name: str, unbiased: bool):
    n, m, dim, seed = shape
    x, y = normal(seed, n, dim), normal(seed + 1, m, dim) + 0.5
    generator = torch.Generator().manual_seed(seed)
    kernel = named(name, dim)
    one = kernel_distance(x, y, kernel, unbiased=unbiased).item()
    mixed = x[torch.randperm(n, generator=generator)], y[torch.randperm(m, generator=generator)]
    size = 1e-14 * max(1.0, kernel.diagonal(torch.cat([x, y])).max().item())
    assert kernel_distance(*mixed, kernel, unbiased=unbiased).item() == pytest.approx(one, rel=1e-12, abs=size)
    assert kernel_distance(y, x, kernel, unbiased=unbiased).item() == pytest.approx(one, rel=1e-12, abs=size)
    assert unbiased or one >= 0


@given(shapes, st.sampled_from(RADIAL), st.booleans(), st.sampled_from([1e-4, 1.0, 1e4]))
@settings(max_examples=40, deadline=None)
def test_rotation_translation_and_scale(shape: tuple[int, int, int, int], name: str, unbiased: bool, scale: float):
    """All of them moved together, the bandwidth following from the reference."""
    n, m, dim, seed = shape
    x, y = normal(seed, n, dim), normal(seed + 1, m, dim) + 0.5
    rotation = torch.linalg.qr(normal(seed + 2, dim, dim)).Q
    shift = normal(seed + 3, 1, dim, 100 * scale)
    one = kernel_distance(x, y, name, unbiased=unbiased).item()
    moved = kernel_distance(scale * x @ rotation + shift, scale * y @ rotation + shift, name, unbiased=unbiased).item()
    # moving rounds the vectors by 1e-14 of their spread, which two close reference vectors make many bandwidths
    assert moved == pytest.approx(one, abs=1e-12 * max(1.0, 1 / median_distance(y)))


@given(shapes)
@settings(max_examples=30, deadline=None)
def test_polynomial_turns(shape: tuple[int, int, int, int]):
    n, m, dim, seed = shape
    x, y = normal(seed, n, dim), normal(seed + 1, m, dim)
    rotation = torch.linalg.qr(normal(seed + 2, dim, dim)).Q
    size = Polynomial().diagonal(torch.cat([x, y])).max().item()
    one, other = kernel_distance(x, y, "polynomial"), kernel_distance(x @ rotation, y @ rotation, "polynomial")
    assert one.item() == pytest.approx(other.item(), abs=1e-13 * size)


def test_offset_costs_no_digits():
    """Whole numbers stay exact under an offset of 1e6, and the distance with them."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(-8, 9, (n, 6), generator=generator).double() for n in (20, 30))
    for name in RADIAL:
        there = kernel_distance(x + 1e6, y + 1e6, name).item()
        assert there == pytest.approx(kernel_distance(x, y, name).item(), abs=1e-15)


def test_close_items_of_far_groups_keep_their_digits():
    """Two groups 2^20 apart, and copies: within a group the kernel is as if it were alone."""
    z = (normal(0, 20, 6) * 2**20).round() / 2**20  # the move is exact, products of moved vectors are not
    groups = torch.cat([z[:10], z[:10], z[10:] + 2.0**20])
    for kernel in (Gaussian(3.0), InverseMultiquadric(3.0)):
        found = kernel(groups, groups)
        for part in (slice(0, 20), slice(20, 30)):
            torch.testing.assert_close(found[part, part], kernel(groups[part], groups[part]), rtol=0, atol=1e-14)
        assert torch.equal(found.diagonal(), torch.ones(30, dtype=torch.float64))
        assert torch.equal(found[:10, 10:20].diagonal(), torch.ones(10, dtype=torch.float64))


def test_one_far_item_costs_the_others_no_digits():
    x, y = normal(0, 20, 6), normal(1, 30, 6)
    far = torch.cat([x, torch.full((1, 6), 1e6, dtype=torch.float64)])
    n = len(far)
    total = kernel_total(Gaussian(2.0), x) + 1
    expected = (total - n) / (n * (n - 1)) + KernelReference.of(y, Gaussian(2.0)).apart
    expected -= 2 * kernel_means(Gaussian(2.0), x, y).sum() / n
    assert kernel_distance(far, y, bandwidth=2.0).item() == pytest.approx(expected.item(), abs=1e-14)


def test_bandwidth_is_the_references():
    x, y = normal(0, 30, 4, 5.0), normal(1, 41, 4)
    bandwidth = median_distance(y)
    assert bandwidth == pytest.approx(torch.pdist(y).median().item(), rel=1e-14)
    assert kernel_distance(x, y).item() == kernel_distance(x, y, bandwidth=bandwidth).item()
    assert kernel_distance(x, y).item() != kernel_distance(x, y, bandwidth=median_distance(x)).item()
    assert KernelReference.of(y, "imq").kernel == InverseMultiquadric(bandwidth)


def test_median_of_a_large_reference_is_of_a_fixed_subset(monkeypatch: pytest.MonkeyPatch):
    y = normal(0, 3000, 2)
    exact = torch.pdist(y).median().item()
    state = torch.random.get_rng_state()
    assert median_distance(y) == pytest.approx(exact, rel=1e-14)
    monkeypatch.setattr(module, "MEDIAN_ROWS", 1000)
    sampled = median_distance(y)
    assert sampled == median_distance(y)
    assert sampled != exact
    assert sampled == pytest.approx(exact, rel=0.05)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_reference_once():
    x, y = normal(0, 8, 3), normal(1, 9, 3)
    reference = KernelReference.of(y.numpy(), "imq", 0.9)
    for unbiased in (True, False):
        once = kernel_distance(x.numpy(), reference, unbiased=unbiased)
        assert once.item() == kernel_distance(x, y, "imq", bandwidth=0.9, unbiased=unbiased).item()
    assert kernel_distance(x, reference, InverseMultiquadric(0.9)).item() == kernel_distance(x, reference).item()
    for kernel, bandwidth in (("polynomial", None), ("gaussian", 1.0), (Gaussian(0.9), None)):
        with pytest.raises(InputError, match="leave them out"):
            kernel_distance(x, reference, kernel, bandwidth=bandwidth)


def test_collapsed_sets():
    one = torch.full((5, 3), 0.1)
    y = normal(0, 9, 3)
    for collapsed in (one, one + 1e6, torch.cat([one] * 3 + [y[:2]])):
        with pytest.raises(InputError, match="give a bandwidth"):
            kernel_distance(y, collapsed)
    assert kernel_distance(one, one, bandwidth=1.0).item() == pytest.approx(0, abs=1e-15)
    assert 0 < kernel_distance(one, y, unbiased=False).item() < 2


BAD = {
    "2 vectors or more in x": (torch.zeros(1, 3), torch.eye(3)),
    "2 vectors or more in the reference": (torch.eye(3), torch.zeros(1, 3)),
    "2 vectors or more in x, got shape \\(0, 3\\)": (torch.zeros(0, 3), torch.eye(3)),
    "1 number or more in the reference, got shape \\(3, 0\\)": (torch.eye(3), torch.zeros(3, 0)),
    "rows of vectors": (torch.zeros(3), torch.eye(3)),
    "dimension 3 in x, got 2": (torch.eye(2), torch.eye(3)),
    "finite numbers in x, got nan": (torch.eye(3) * torch.nan, torch.eye(3)),
    "finite numbers in the reference, got inf": (torch.eye(3), torch.eye(3) / 0),
    "float64 can hold": (torch.eye(3), 1e200 * torch.eye(3, dtype=torch.float64)),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_vectors(message: str):
    x, y = BAD[message]
    y = torch.where(y.isnan(), torch.inf, y)
    with pytest.raises(InputError, match=message):
        kernel_distance(x, y, bandwidth=1.0)


@pytest.mark.parametrize(
    ("kernel", "bandwidth", "message"),
    [
        ("cosine", None, "gaussian, imq, polynomial, got 'cosine'"),
        ("gaussian", 0.0, "finite bandwidth above 0"),
        ("imq", math.nan, "finite bandwidth above 0"),
        ("polynomial", 1.0, "no bandwidth for Polynomial"),
        (Gaussian(1.0), 2.0, "expected one bandwidth, got 2.0"),
    ],
)
def test_bad_kernels(kernel: Kernel | str, bandwidth: float | None, message: str):
    with pytest.raises(InputError, match=message):
        kernel_distance(torch.eye(3), torch.eye(3), kernel, bandwidth=bandwidth)


def test_bad_parameters():
    with pytest.raises(InputError, match="degree of 1 or more"):
        Polynomial(degree=0)
    with pytest.raises(InputError, match="coef of 0 or more"):
        Polynomial(coef=-1.0)
    with pytest.raises(InputError, match="gamma above 0"):
        Polynomial(gamma=0.0)
    with pytest.raises(InputError, match="call resolved"):
        Gaussian()(torch.eye(2), torch.eye(2))

"""The Vendi score against closed forms, the golden value of its authors' example, and its laws."""

from itertools import pairwise
from math import inf, nan

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from dragontune.distances.vendi import vendi_score
from dragontune.errors import InputError

ORDERS = [0.0, 0.1, 0.5, 0.9999, 1.0, 1.00001, 1.5, 2.0, 3.0, 1000.0, inf]
EPS = torch.finfo(torch.float64).eps


def randn(*shape: int, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def sets(draw: st.DrawFn):
    """Rows of a random spectrum, some of them repeated."""
    n, dim, seed = draw(st.integers(2, 12)), draw(st.integers(1, 12)), draw(st.integers(0, 2**32 - 1))
    decay = draw(st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5]))
    rows = randn(n, dim, seed=seed) * torch.arange(1, dim + 1, dtype=torch.float64) ** -decay
    return rows[torch.tensor(draw(st.lists(st.integers(0, n - 1), min_size=n, max_size=n)))]


@pytest.mark.parametrize("order", ORDERS)
def test_alike_different_and_two_groups(order: float):
    alike, different = torch.ones(6, 4), 3 * torch.eye(6)
    groups = torch.eye(2)[[0, 0, 0, 1, 1, 1]]
    assert vendi_score(alike, order).item() == pytest.approx(1, rel=1e-14)
    assert vendi_score(different, order).item() == pytest.approx(6, rel=1e-14)
    assert vendi_score(groups, order).item() == pytest.approx(2, rel=1e-14)


def test_golden_value():
    kernel = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert vendi_score(kernel=kernel).item() == pytest.approx(2.1573, abs=5e-5)


@pytest.mark.parametrize("similarity", [-0.7, 0.0, 0.3, 0.99])
def test_two_items(similarity: float):
    """Eigenvalues (1 + s) / 2 and (1 - s) / 2."""
    kernel = np.array([[1, similarity], [similarity, 1]])
    p = np.array([1 + similarity, 1 - similarity]) / 2
    assert vendi_score(kernel=kernel).item() == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    assert vendi_score(kernel=kernel, order=0.5).item() == pytest.approx(np.sqrt(p).sum() ** 2)
    assert vendi_score(kernel=kernel, order=3).item() == pytest.approx((p**3).sum() ** -0.5)
    assert vendi_score(kernel=kernel, order=inf).item() == pytest.approx(1 / p.max())


def test_order_two_needs_no_eigenvalues():
    unit = normalize(randn(5, 3), dim=1)
    expected = 1 / ((unit @ unit.mT / 5) ** 2).sum()
    assert vendi_score(unit, 2).item() == pytest.approx(expected.item())


def test_the_signature():
    rows = randn(5, 3)
    unit = normalize(rows, dim=1)
    assert vendi_score(rows, 2.0) == vendi_score(rows, order=2) == vendi_score(rows.numpy(), order=2)
    assert vendi_score(rows).dtype == torch.float64
    assert vendi_score(rows).shape == ()
    assert vendi_score(kernel=unit @ unit.mT, order=0.5).item() == pytest.approx(vendi_score(rows, 0.5).item())
    assert vendi_score(rows.float()).item() == pytest.approx(vendi_score(rows).item(), rel=1e-6)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_primal_is_dual(order: float, shape: tuple[int, int]):
    embeddings = randn(*shape)
    unit = normalize(embeddings, dim=1)
    primal = vendi_score(kernel=unit @ unit.mT, order=order)
    assert vendi_score(embeddings, order).item() == pytest.approx(primal.item(), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(sets(), st.integers(0, 2**16))
def test_bounds_permutations_copies_and_orders(rows: torch.Tensor, seed: int):
    n = len(rows)
    scores = [vendi_score(rows, order).item() for order in ORDERS]
    assert all(1 <= score <= n for score in scores)
    assert all(high >= low * (1 - 1e-10) for high, low in pairwise(scores))
    shuffled = rows[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    assert vendi_score(shuffled).item() == pytest.approx(vendi_score(rows).item(), rel=1e-12)
    assert vendi_score(rows.repeat(3, 1)).item() == pytest.approx(vendi_score(rows).item(), rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(sets(), st.sampled_from([1e-200, 1e-4, 1e4, 1e150]), st.sampled_from([0.5, 1.0, 2.0]))
def test_lengths_do_not_matter(rows: torch.Tensor, scale: float, order: float):
    factors = scale * torch.arange(1, len(rows) + 1, dtype=torch.float64)[:, None]
    assert vendi_score(rows * factors, order).item() == pytest.approx(vendi_score(rows, order).item(), rel=1e-7)


def test_order_one_is_a_smooth_limit():
    rows = randn(8, 5, seed=1)
    lower, middle, upper = (vendi_score(rows, 1 + step).item() for step in (-1e-5, 0, 1e-5))
    assert (lower + upper) / 2 == pytest.approx(middle, rel=1e-9)
    inside, outside = vendi_score(rows, 1.0099999999).item(), vendi_score(rows, 1.0100000001).item()
    assert inside == pytest.approx(outside, rel=1e-9)


@pytest.mark.parametrize("order", [0.0, 0.6, 0.999, 1.0, 1.5, 2.0, 5.0, inf])
@pytest.mark.parametrize("shape", [(6, 3), (4, 7)])
def test_gradients(order: float, shape: tuple[int, int]):
    rows = randn(*shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: vendi_score(x, order), rows)


def test_gradient_of_a_kernel():
    def score(x: torch.Tensor):
        return vendi_score(kernel=(-torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()).exp())

    def shifted(x: torch.Tensor):
        square = (x[:, None] - x).square().sum(2)
        return vendi_score(kernel=(-square).exp())

    rows = randn(5, 2).requires_grad_()
    assert torch.autograd.gradcheck(shifted, rows)
    assert score(rows).item() == pytest.approx(shifted(rows).item())


@pytest.mark.parametrize("order", [0.0, 0.3, 1.0, 1.5, 2.0, inf])
def test_gradient_where_rows_repeat(order: float):
    """Repeating a set leaves the score alone: each copy of a row gets its share of the single row's gradient."""
    single, double = randn(4, 6).requires_grad_(), randn(4, 6).repeat(2, 1).requires_grad_()
    (expected,) = torch.autograd.grad(vendi_score(single, order), single)
    (slope,) = torch.autograd.grad(vendi_score(double, order), double)
    assert slope.isfinite().all()
    assert torch.allclose(slope[:4] + slope[4:], expected, atol=1e-10)


@pytest.mark.parametrize("order", [1.0, 1.5, 2.0])
def test_gradient_in_a_low_dimensional_set_is_that_of_finite_differences(order: float):
    rows = torch.cat([randn(3, 2) @ randn(2, 8, seed=1), randn(3, 2) @ randn(2, 8, seed=1)]).requires_grad_()
    (slope,) = torch.autograd.grad(vendi_score(rows, order), rows)
    for seed in range(3):
        step = 1e-5 * randn(6, 8, seed=seed + 2)
        with torch.no_grad():
            change = (vendi_score(rows + step, order) - vendi_score(rows - step, order)) / 2
        assert (slope * step).sum().item() == pytest.approx(change.item(), rel=1e-4, abs=1e-12)


def test_gradient_of_a_collapsed_set_is_zero():
    rows = torch.ones(5, 3, dtype=torch.float64).requires_grad_()
    for order in ORDERS:
        (slope,) = torch.autograd.grad(vendi_score(rows, order), rows)
        assert slope.abs().max() < 1e-12


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(1, 3), "2 vectors or more"),
        (torch.ones(0, 3), "2 vectors or more"),
        (torch.ones(3, 0), "1 number or more"),
        (torch.ones(3), "rows of vectors"),
        (torch.ones(2, 3, 4), "rows of vectors"),
        (torch.tensor([[1.0, nan], [0.0, 1.0]]), "finite"),
        (torch.tensor([[1.0, inf], [0.0, 1.0]]), "finite"),
        (torch.tensor([[1.0, 2.0], [0.0, 0.0]]), "row 1"),
        (torch.ones(3, 3, dtype=torch.complex64), "real"),
    ],
)
def test_wrong_embeddings(x: torch.Tensor, message: str):
    with pytest.raises(InputError, match=message):
        vendi_score(x)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (torch.ones(2, 3), "square"),
        (torch.ones(4), "square"),
        (torch.ones(1, 1), "2 items"),
        (torch.ones(0, 0), "2 items"),
        (2 * torch.eye(3), "ones on its diagonal"),
        (torch.tensor([[1.0, nan], [nan, 1.0]]), "finite"),
        (torch.tensor([[1.0, 0.5], [0.4, 1.0]]), "symmetric"),
        (torch.tensor([[1.0, 1.5], [1.5, 1.0]]), "semi-definite"),
    ],
)
def test_wrong_kernels(kernel: torch.Tensor, message: str):
    with pytest.raises(InputError, match=message):
        vendi_score(kernel=kernel)


@pytest.mark.parametrize("order", [-0.1, -inf, nan])
def test_wrong_orders(order: float):
    with pytest.raises(InputError, match="order"):
        vendi_score(torch.eye(3), order)


def test_one_of_two_inputs():
    with pytest.raises(InputError, match="both or neither"):
        vendi_score()
    with pytest.raises(InputError, match="both or neither"):
        vendi_score(torch.eye(2), kernel=torch.eye(2))


def test_a_float32_kernel_passes():
    unit = normalize(randn(200, 3), dim=1)
    kernel = unit.float() @ unit.float().mT
    assert vendi_score(kernel=kernel).item() == pytest.approx(vendi_score(unit).item(), rel=1e-4)


def test_nothing_global_changes():
    before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    vendi_score(randn(4, 3))
    assert (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()) == before

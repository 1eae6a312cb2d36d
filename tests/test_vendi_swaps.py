"""Swaps under the Vendi score: every entry against the score of the exchanged set."""

from math import inf

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from dragontune.distances.vendi import vendi_score
from dragontune.distances.vendi_swaps import VendiSwaps, log1p_rest
from dragontune.errors import InputError

ORDERS = [0.0, 0.3, 0.5, 0.8, 0.999, 1.0, 1.0001, 1.5, 1.9, 1.9999, 2.0, 2.5, inf]


def randn(*shape: int, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exchanged(x: torch.Tensor, y: torch.Tensor, i: int, j: int):
    rows = x.clone()
    rows[i] = y[j]
    return rows


def recomputed(x: torch.Tensor, y: torch.Tensor, order: float):
    """The table, one score at a time."""
    rows = [[vendi_score(exchanged(x, y, i, j), order) for j in range(len(y))] for i in range(len(x))]
    return torch.tensor(rows, dtype=torch.float64)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((found - expected) / expected).abs().max())


def degenerate():
    """Sets on which formulas that divide by what an exchange takes away, or subtract, go wrong."""
    a, line = randn(8, 12), randn(1, 12)
    low = randn(18, 3) @ randn(3, 12, seed=1)
    return {
        "duplicates": (torch.cat([a[:4], a[:4], a[:2]]), torch.cat([a[2:7], randn(2, 12, seed=3)])),
        "candidates are members": (a, a),
        "collapsed": (line.repeat(6, 1), torch.cat([line, -line, randn(3, 12, seed=3)])),
        "orthonormal": (torch.eye(6, 12), torch.cat([torch.eye(12), randn(2, 12).float()])),
        "full orthonormal": (torch.eye(6), torch.cat([torch.eye(6), randn(2, 6).float()])),
        "low rank": (low[:9], torch.cat([low[9:], randn(3, 12, seed=3)])),
        "more items than dimensions": (randn(9, 4), randn(7, 4, seed=3)),
        "one dimension": (randn(4, 1), randn(3, 1, seed=3)),
        "blocks": (torch.eye(3).repeat_interleave(2, 0), torch.eye(3)),
        "two members": (randn(2, 5), randn(6, 5, seed=3)),
        "lengths": (1e4 * a, 1e-4 * randn(5, 12, seed=3)),
        "neighbours": (torch.cat([a, a + 1e-9 * randn(8, 12, seed=2)]), torch.cat([a[:3], randn(3, 12, seed=3)])),
    }


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", degenerate())
def test_degenerate_sets(case: str, order: float):
    x, y = degenerate()[case]
    swaps, expected = VendiSwaps(x, y, order), recomputed(x, y, order)
    m, c = expected.shape
    i, j = torch.arange(m).repeat_interleave(c), torch.arange(c).repeat(m)
    # at 1e-9 and orders below 1, what vendi_score takes for noise has some weight
    limit = 1e-10 if case == "neighbours" and order < 1 else 1e-12
    assert error(swaps.table(), expected) <= limit
    assert error(swaps.pairs(i, j).reshape(m, c), expected) <= limit
    assert swaps.value == pytest.approx(vendi_score(x, order).item(), rel=limit)
    assert swaps.table().min() >= 1
    assert swaps.table().max() <= m


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(2, 9), st.integers(1, 6), st.integers(2, 14)),
    decay=st.sampled_from([0.5, 1.0, 2.0, 3.0]),
    repeats=st.booleans(),
    order=st.sampled_from(ORDERS),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_sets(shape: tuple[int, int, int], decay: float, repeats: bool, order: float, seed: int):
    m, c, dim = shape
    rows = randn(m + c, dim, seed=seed) * torch.arange(1, dim + 1, dtype=torch.float64) ** (-decay / 2)
    if repeats:
        rows = rows[torch.randint(m + c, (m + c,), generator=torch.Generator().manual_seed(seed))]
    x, y = rows[:m], rows[m:]
    # the smallest eigenvalues are known to 1e-16 only, and orders below 1 look at them
    limit = 1e-12 if order >= 1 or order == 0 else 1e-10
    assert error(VendiSwaps(x, y, order).table(), recomputed(x, y, order)) <= limit


@pytest.mark.parametrize("order", [0.5, 1.0, 1.5, 1.9, 2.0])
def test_reward_sized_sets(order: float):
    pool = randn(160, 512) * torch.arange(1, 513, dtype=torch.float64) ** -0.5 + 0.1
    x, y = pool[:80], pool[80:]
    table = VendiSwaps(x, y, order).table()
    places = torch.randint(6400, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    for i, j in (divmod(place, 80) for place in places):
        expected = vendi_score(exchanged(x, y, i, j), order).item()
        assert table[i, j].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("order", [0.25, 0.75, 1.0, 1.5, 2.0, inf])
def test_drift(order: float):
    """Ten thousand exchanges later nothing differs from a fresh start."""
    m, c = 4, 3
    pool = randn(m + c, 5)
    swaps = VendiSwaps(pool[:m], pool[m:], order)
    places = torch.randint(m * c, (10_000 if order == 1 else 200,), generator=torch.Generator().manual_seed(0)).tolist()
    for step, place in enumerate(places):
        swaps.accept(*divmod(place, c))
        if step % 10 == 0:
            assert 1 <= swaps.value <= m
    assert sorted(torch.cat([swaps.members, swaps.candidates]).tolist()) == list(range(m + c))
    fresh = VendiSwaps(pool[swaps.members], pool[swaps.candidates], order)
    assert swaps.value == pytest.approx(fresh.value, rel=1e-15)
    assert error(swaps.table(), fresh.table()) <= 1e-15


@pytest.mark.parametrize("order", [0.75, 1.0, 1.5, 2.0, 3.0])
def test_what_is_foretold_comes_true(order: float):
    swaps = VendiSwaps(randn(6, 4), randn(9, 4, seed=1), order)
    for _ in range(5):
        i, j, foretold = swaps.best(highest=True)
        swaps.accept(i, j)
        assert swaps.value == pytest.approx(foretold, rel=1e-12)


@pytest.mark.parametrize("order", [0.0, 0.75, 1.0, 1.5, 2.0, inf])
@pytest.mark.parametrize("dim", [3, 20])
def test_a_kernel_serves_as_well(order: float, dim: int):
    pool = normalize(randn(13, dim), dim=1)
    of_kernel = VendiSwaps.of_kernel(pool @ pool.mT, 7, order)
    assert error(of_kernel.table(), VendiSwaps(pool[:7], pool[7:], order).table()) <= 1e-12
    assert of_kernel.value == pytest.approx(vendi_score(pool[:7], order).item(), rel=1e-12)


def test_any_kernel():
    points = randn(10, 2)
    kernel = (-torch.cdist(points, points).square()).exp()
    table = VendiSwaps.of_kernel(kernel.numpy(), 6, 1.0).table()
    for i, j in ((0, 0), (3, 2), (5, 3)):
        rows = [6 + j if row == i else row for row in range(6)]
        assert table[i, j].item() == pytest.approx(vendi_score(kernel=kernel[rows][:, rows]).item(), rel=1e-12)


@pytest.mark.parametrize("order", [0.0, 0.75, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("memory", [1, 2_000, 50_000])
def test_memory_changes_no_value(order: float, memory: int):
    x, y = randn(7, 5), randn(6, 5, seed=1)
    assert error(VendiSwaps(x, y, order, memory=memory).table(), VendiSwaps(x, y, order).table()) <= 1e-14


@pytest.mark.parametrize("order", [0.75, 1.0, 1.5])
def test_tolerance_bounds_the_error(order: float):
    x, y = randn(12, 8), randn(12, 8, seed=1)
    expected = recomputed(x, y, order)
    for tolerance in (1e-4, 1e-6, 1e-8, 1e-10):
        assert error(VendiSwaps(x, y, order, tolerance=tolerance).table(), expected) <= tolerance


def test_no_pairs_and_single_positions():
    for order in (0.0, 1.0, 2.0):
        swaps = VendiSwaps(randn(5, 3), randn(4, 3, seed=1), order)
        nothing = torch.empty(0, dtype=torch.long)
        assert swaps.pairs(nothing, nothing).shape == (0,)
        assert error(swaps.pairs(2, [0, 1, 2, 3]), swaps.table()[2]) <= 1e-14


def test_the_items_given_stay_as_they_are():
    x, y = randn(5, 3), randn(4, 3, seed=1)
    before = x.clone(), y.clone()
    swaps = VendiSwaps(x.requires_grad_(), y)
    swaps.accept(0, 0)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert not swaps.table().requires_grad


def test_wrong_input():
    x, y = randn(5, 3), randn(4, 3)
    with pytest.raises(InputError, match="2 vectors or more"):
        VendiSwaps(x[:1], y)
    with pytest.raises(InputError, match="1 vector or more"):
        VendiSwaps(x, y[:0])
    with pytest.raises(InputError, match="dimension 3"):
        VendiSwaps(x, randn(4, 2))
    with pytest.raises(InputError, match="order"):
        VendiSwaps(x, y, -1.0)
    with pytest.raises(InputError, match="tolerance"):
        VendiSwaps(x, y, tolerance=0.0)
    with pytest.raises(InputError, match="position"):
        VendiSwaps(x, y).accept(5, 0)
    for members in (0, 1, 4):
        with pytest.raises(InputError, match="members"):
            VendiSwaps.of_kernel(torch.eye(4), members)
    with pytest.raises(InputError, match="semi-definite"):
        VendiSwaps.of_kernel(torch.tensor([[1.0, 0.9, -0.9], [0.9, 1.0, 0.9], [-0.9, 0.9, 1.0]]), 2)


def test_the_rest_of_a_logarithm():
    x = torch.tensor([0.0, 1e-12, -1e-12, 1e-6, -0.0099999, 0.0099999, 0.0100001, 0.5, -0.5], dtype=torch.float64)
    series = torch.stack([(-1) ** (k + 1) * x**k / k for k in range(2, 80)]).sum(0)
    assert torch.allclose(log1p_rest(x), series, rtol=1e-12, atol=1e-30)

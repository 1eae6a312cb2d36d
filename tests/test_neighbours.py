"""Precision, recall, density and coverage against loops and expectations in closed form."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dragontune.distances import neighbours as module
from dragontune.distances.neighbours import coverage, density, precision, recall
from dragontune.errors import InputError

ALL = [coverage, density, precision, recall]


def normal(seed: int, n: int, dim: int) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(seed: int, n: int, dim: int, high: int = 3) -> torch.Tensor:
    """Small whole numbers: many ties and copies, and exact distances."""
    return torch.randint(0, high, (n, dim), generator=torch.Generator().manual_seed(seed)).double()


def inside(points: torch.Tensor, centres: torch.Tensor, k: int) -> list[list[bool]]:
    """A loop over exact fractions."""

    def squared(a: list[float], b: list[float]) -> Fraction:
        return sum(((Fraction(p) - Fraction(q)) ** 2 for p, q in zip(a, b, strict=True)), Fraction(0))

    p, c = points.tolist(), centres.tolist()
    radii = [sorted(squared(a, b) for j, b in enumerate(c) if j != i)[k - 1] for i, a in enumerate(c)]
    return [[squared(a, b) <= radius for b, radius in zip(c, radii, strict=True)] for a in p]


def by_hand(x: torch.Tensor, y: torch.Tensor, k: int) -> list[float]:
    around_y, around_x = inside(x, y, k), inside(y, x, k)
    return [
        sum(any(column) for column in zip(*around_y, strict=True)) / len(y),
        sum(sum(row) for row in around_y) / (k * len(x)),
        sum(any(row) for row in around_y) / len(x),
        sum(any(row) for row in around_x) / len(y),
    ]


@given(
    st.tuples(st.integers(2, 9), st.integers(2, 9), st.integers(1, 4), st.integers(1, 8)),
    st.integers(0, 2**31 - 1),
    st.sampled_from([normal, whole]),
    st.sampled_from([1.0, 2.0**-13, 2.0**13]),
    st.sampled_from([0.0, 2.0**20]),
)
@settings(max_examples=100, deadline=None)
def test_a_loop(shape: tuple[int, int, int, int], seed: int, draw, scale: float, offset: float):
    """With ties and copies, at scales of 1e-4 and 1e4, far from the origin."""
    n, m, dim, k = shape
    k = min(k, n - 1, m - 1)
    x, y = draw(seed, n, dim) * scale + offset, draw(seed + 1, m, dim) * scale + offset
    assert [measure(x, y, k=k).item() for measure in ALL] == pytest.approx(by_hand(x, y, k), abs=1e-15)


def test_copies_of_neighbours_lie_on_the_border():
    """Each item of x is a reference item's k-th neighbour: inside by equality alone, in many inexact coordinates."""
    for k in (1, 3):
        y = normal(0, 60, 128) / 3
        apart = torch.cdist(y, y, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
        x = y[apart.topk(k, largest=False).indices[:, -1]]
        assert coverage(x, y, k=k).item() == 1
        assert precision(x, y, k=k).item() == 1
        for i in range(0, 60, 7):
            nudged = x[[i]] + 1e-9 * (x[[i]] - y[i])
            others = torch.cat([y[i][None], y[apart[i].argsort()[:-1]]])
            assert len(others) == 60
            assert not module._within(nudged, others[:1], module._squared_radii(others, k)[:1]).any()
            assert module._within(x[[i]], others[:1], module._squared_radii(others, k)[:1]).all()


def test_the_same_set_and_far_sets():
    y = normal(0, 30, 4)
    for measure in (coverage, precision, recall):
        assert measure(y, y, k=5).item() == 1
        assert measure(y + 1e3, y, k=5).item() == 0
    assert density(y, y, k=5).item() == pytest.approx((5 + 1) / 5)  # k neighbours and itself
    assert density(y + 1e3, y, k=5).item() == 0
    assert coverage(y, y, k=5).dtype == torch.float64


def test_one_dense_place():
    """Where x is copies of one reference item, few balls are reached, each by all of them."""
    y = torch.arange(10.0)[:, None]
    x = torch.full((4, 1), 5.0)
    assert coverage(x, y, k=2).item() == 0.3  # those of 4, 5 and 6
    assert density(x, y, k=2).item() == 1.5
    assert precision(x, y, k=2).item() == 1
    assert recall(x, y, k=2).item() == 0.1  # the balls of copies are points


def test_collapsed_reference():
    y = torch.full((6, 3), 0.1)
    assert [measure(y, y, k=2).item() for measure in ALL] == [1, 3, 1, 1]
    assert [measure(y + 1e-6, y, k=2).item() for measure in ALL] == [0, 0, 0, 0]


def test_expectations_for_one_distribution():
    """Density 1; coverage 1 - C(n-1, k) / C(n+m-1, k): the k nearest others of an item are not all of its own set."""
    n, m, k = 20, 30, 3
    pairs = [(normal(2 * s, n, 2), normal(2 * s + 1, m, 2)) for s in range(300)]
    dense = torch.stack([density(x, y, k=k) for x, y in pairs])
    covered = torch.stack([coverage(x, y, k=k) for x, y in pairs])
    expected = 1 - math.comb(m - 1, k) / math.comb(n + m - 1, k)
    for found, truth in ((dense, 1.0), (covered, expected)):
        assert abs(found.mean().item() - truth) < 4 * found.std().item() / math.sqrt(len(pairs))


@given(st.integers(0, 2**31 - 1), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_order_rotation_and_translation(seed: int, dim: int):
    x, y = normal(seed, 12, dim), normal(seed + 1, 15, dim)
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(normal(seed + 2, dim, dim)).Q
    moved = [z[torch.randperm(len(z), generator=generator)] @ rotation + 7 for z in (x, y)]
    for measure in ALL:
        assert measure(x, y, k=3).item() == pytest.approx(measure(*moved, k=3).item(), abs=1e-15)


def test_recall_is_precision_exchanged():
    x, y = normal(0, 20, 3), normal(1, 25, 3)
    assert recall(x, y, k=3).item() == precision(y, x, k=3).item()
    assert recall(x, y).item() == recall(x.numpy(), y.numpy(), k=3).item()
    assert coverage(x, y).item() == coverage(x, y, k=5).item()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    x, y = whole(0, 40, 3, 6), whole(1, 50, 3, 6)
    before = [measure(x, y, k=4).item() for measure in ALL]
    monkeypatch.setattr(module, "BLOCK", 128)
    assert before == pytest.approx([measure(x, y, k=4).item() for measure in ALL], abs=1e-15)


def test_one_item_is_enough_where_no_ball_is_around_it():
    x, y = torch.zeros(1, 2), torch.eye(3, 2)
    for measure in (coverage, density, precision):
        assert measure(x, y, k=1).item() >= 0
    with pytest.raises(InputError, match="2 vectors or more in x"):
        recall(x, y, k=1)


@pytest.mark.parametrize("measure", ALL)
def test_bad_input(measure):
    y = torch.eye(4)
    for x, reference, k, message in (
        (y, y, 4, "expected k below the number of vectors in .*, 4, got 4"),
        (y, y, 0, "k of 1 or more neighbours, got 0"),
        (y, torch.zeros(0, 4), 1, "vectors? or more in the reference"),
        (torch.zeros(0, 4), y, 1, "vectors? or more in x"),
        (y[:, :3], y, 1, "dimension . in "),
        (y * torch.nan, y, 1, "finite numbers in x, got nan"),
        (y, y.log(), 1, "finite numbers in the reference, got -inf"),
        (y, y[0], 1, "rows of vectors"),
    ):
        with pytest.raises(InputError, match=message):
            measure(x, reference, k=k)

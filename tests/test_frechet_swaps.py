"""Tables of exchanges against the distance of the exchanged set."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dragontune.distances import FrechetSwaps, Gaussian, frechet_distance
from dragontune.distances.roots_frames import FrameRoots
from dragontune.distances.roots_moments import MomentRoots
from dragontune.distances.roots_vector import VectorRoots
from dragontune.distances.swaps import Total
from dragontune.errors import InputError
from embeddings import embeddings, exchanged, rand, sets

Items = Tensor | list[Tensor]


def pooled(items: Items) -> Tensor:
    return torch.cat([item.reshape(-1, item.shape[-1]) for item in items])


def worst(
    swaps: FrechetSwaps, x: "Tensor | list[Tensor]", reference: Gaussian, candidates: "Tensor | list[Tensor]"
) -> float:
    """The largest error of table and pairs, relative to the distance or to the reference's trace."""
    table, error = swaps.table(), 0.0
    assert table.shape == (len(x), len(candidates))
    assert table.isfinite().all()
    for i in range(len(x)):
        singles = swaps.pairs([i] * len(candidates), list(range(len(candidates))))
        for j in range(len(candidates)):
            after = list(x)
            after[i] = candidates[j]
            exact = frechet_distance(pooled(after), reference).item()
            scale = max(exact, 1e-2 * reference.trace.item())
            error = max(error, abs(table[i, j].item() - exact) / scale, abs(singles[j].item() - exact) / scale)
    return error


@pytest.mark.parametrize(("m", "c", "dim"), [(80, 20, 128), (20, 20, 128), (60, 10, 16), (2, 5, 9), (3, 5, 1)])
def test_vectors(m: int, c: int, dim: int):
    x, candidates, fit = embeddings(m, dim), embeddings(c, dim, seed=1), Gaussian.of(embeddings(300, dim, seed=2))
    swaps = FrechetSwaps(x, fit, candidates)
    assert isinstance(swaps._now.roots, VectorRoots)
    assert swaps.value == pytest.approx(frechet_distance(x, fit).item(), rel=1e-12)
    assert worst(swaps, x, fit, candidates) < 1e-12


@settings(deadline=None, max_examples=100)
@given(sets())
def test_any_set(given: tuple[Tensor, Tensor, Tensor]):
    x, candidates, other = given
    fit = Gaussian.of(other)
    assert worst(FrechetSwaps(x, fit, candidates), x, fit, candidates) < 1e-10


@pytest.mark.parametrize("decay", [0.5, 1.0, 2.0, 3.0])
def test_steep_spectra(decay: float):
    x, candidates = embeddings(30, 64, decay=decay), embeddings(8, 64, seed=1, decay=decay)
    fit = Gaussian.of(embeddings(300, 64, seed=2, decay=decay))
    assert worst(FrechetSwaps(x, fit, candidates), x, fit, candidates) < 1e-11


def test_a_reference_of_deficient_rank_given_as_covariance():
    fit = Gaussian.of(embeddings(20, 64, seed=2))
    x, candidates, rebuilt = (
        embeddings(30, 64),
        embeddings(8, 64, seed=1),
        Gaussian.of_moments(fit.mean, fit.covariance),
    )
    assert worst(FrechetSwaps(x, (fit.mean, fit.covariance), candidates), x, rebuilt, candidates) < 1e-12


@pytest.mark.parametrize(("m", "k", "dim"), [(12, 2, 64), (40, 3, 64), (8, 5, 128), (30, 5, 64)])
def test_items_of_few_frames(m: int, k: int, dim: int):
    x, candidates = embeddings(m, k, dim), embeddings(6, k, dim, seed=1)
    fit = Gaussian.of(embeddings(300, dim, seed=2))
    swaps = FrechetSwaps(x, fit, candidates)
    assert isinstance(swaps._now.roots, FrameRoots)
    assert worst(swaps, x, fit, candidates) < 1e-12


def test_items_of_different_lengths():
    x = [embeddings(1 + i % 4, 128, seed=i) for i in range(12)]
    candidates = [embeddings(1 + i % 3, 128, seed=50 + i) for i in range(6)]
    fit = Gaussian.of(embeddings(300, 128, seed=2))
    swaps = FrechetSwaps(x, fit, candidates)
    assert isinstance(swaps._now.roots, FrameRoots)
    assert worst(swaps, x, fit, candidates) < 1e-11
    longer = FrechetSwaps(x, fit, [embeddings(70, 128, seed=99), *candidates])
    assert isinstance(longer._now.roots, MomentRoots)
    assert worst(longer, x, fit, [embeddings(70, 128, seed=99), *candidates]) < 1e-10


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(2, 3), st.data())
def test_frames_that_repeat(seed: int, k: int, data: st.DataObject):
    """Frames equal to others of the item, of members and of candidates: some directions are shared, some are not."""
    x, candidates = embeddings(8, k, 48, seed=seed), embeddings(3, k, 48, seed=seed + 1)
    everything = torch.cat([x, candidates]).flatten(0, 1)
    for _ in range(data.draw(st.integers(1, 12))):
        source, target = (data.draw(st.integers(0, len(everything) - 1)) for _ in range(2))
        everything[target] = everything[source]
    items = everything.view(11, k, 48)
    fit = Gaussian.of(embeddings(300, 48, seed=2))
    assert worst(FrechetSwaps(items[:8], fit, items[8:]), items[:8], fit, items[8:]) < 1e-10


@pytest.mark.parametrize(("dead", "decay"), [(0, 1.0), (5, 1.0), (0, 3.0), (0, 5.0), (0, 9.0)])
def test_items_of_many_frames(dead: int, decay: float):
    x, candidates = embeddings(12, 20, 16, decay=decay), embeddings(6, 20, 16, seed=1, decay=decay)
    for part in (x, candidates):
        part[..., 16 - dead :] = 0
    fit = Gaussian.of(embeddings(300, 16, seed=2, decay=decay))
    swaps = FrechetSwaps(x, fit, candidates)
    assert isinstance(swaps._now.roots, MomentRoots)
    assert worst(swaps, x, fit, candidates) < 1e-11


@pytest.mark.parametrize("jitter", [1e-6, 1e-9, 1e-11])
@pytest.mark.parametrize("frames", [(), (3,)])
def test_nearly_collapsed_sets(jitter: float, frames: tuple[int, ...]):
    """The rounding of the centring is large beside the singular values."""
    x = embeddings(1, 48) + jitter * rand(6, *frames, 48, seed=3)
    candidates, fit = embeddings(3, *frames, 48, seed=1), Gaussian.of(embeddings(60, 48, seed=2))
    assert worst(FrechetSwaps(x, fit, candidates), x, fit, candidates) < 1e-11


@pytest.mark.parametrize("factor", [1e2, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("frames", [(), (2,), (30,)])
def test_a_member_that_hides_the_others(factor: float, frames: tuple[int, ...]):
    """Without it the set is small, and nothing of it may be found by subtraction."""
    x, candidates = rand(8, *frames, 24), rand(3, *frames, 24, seed=1)
    x[2] *= factor
    fit = Gaussian.of(rand(60, 24, seed=2))
    swaps = FrechetSwaps(x, fit, candidates)
    assert worst(swaps, x, fit, candidates) < 1e-9
    i, j, value = swaps.best()
    after = list(x)
    after[i] = candidates[j]
    assert value == pytest.approx(frechet_distance(pooled(after), fit).item(), rel=1e-9)


def test_what_is_left_may_be_of_lower_rank():
    x, candidates = [30 * rand(80, 16), rand(5, 16, seed=3)], [rand(1, 16, seed=1), rand(3, 16, seed=2)]
    fit = Gaussian.of(rand(60, 16, seed=4))
    assert worst(FrechetSwaps(x, fit, candidates), x, fit, candidates) < 1e-11


@pytest.mark.parametrize("frames", [(), (2,), (30,)])
def test_a_reference_without_spread(frames: tuple[int, ...]):
    point = (torch.zeros(9), torch.zeros(9, 9))
    x, candidates = rand(4, *frames, 9), rand(2, *frames, 9, seed=1)
    swaps = FrechetSwaps(x, point, candidates)
    flat = pooled([candidates[1], *x[1:]])
    expected = flat.mean(0).square().sum() + torch.cov(flat.mT).trace()
    assert swaps.table()[0, 1].item() == pytest.approx(expected.item(), rel=1e-12)
    assert swaps.best()[2] == pytest.approx(swaps.table().min().item(), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-120, 1e-20, 1e20, 1e55])
def test_scales(scale: float):
    x, candidates, y = rand(6, 5), rand(2, 5, seed=1), rand(30, 5, seed=2)
    usual = FrechetSwaps(x, y, candidates).table()
    torch.testing.assert_close(FrechetSwaps(scale * x, scale * y, scale * candidates).table() / scale**2, usual)


def test_what_is_given_is_not_kept_and_not_differentiated():
    x, candidates, y = rand(6, 5).requires_grad_(), rand(2, 5, seed=1), rand(30, 5, seed=2)
    swaps = FrechetSwaps(x, y, candidates)
    before = swaps.table()
    assert not before.requires_grad
    with torch.no_grad():
        for part in (x, candidates, y):
            part += 1
    swaps.accept(0, 0)
    swaps.accept(0, 0)
    assert torch.equal(swaps.table(), before)


def test_a_total_wants_terms_of_its_own():
    swaps = FrechetSwaps(X, X, X[:2])
    with pytest.raises(InputError, match="at least one term"):
        Total([])
    with pytest.raises(InputError, match="different swaps"):
        Total([(1.0, swaps), (2.0, swaps)])
    with pytest.raises(InputError, match="same items"):
        Total([(1.0, swaps), (2.0, FrechetSwaps(X, X, X[:3]))])
    swaps.accept(1, 0)
    total = Total([(-1.0, swaps)])
    assert torch.equal(total.members, swaps.members)
    total.accept(0, 1)
    assert total.value == -swaps.value


def test_the_first_look_at_many_frames_ranks_and_the_best_is_the_best():
    x, candidates = embeddings(40, 30, 32), embeddings(40, 30, 32, seed=1)
    swaps = FrechetSwaps(x, Gaussian.of(embeddings(300, 32, seed=2)), candidates)
    assert swaps.approximate
    table, look = swaps.table(), swaps.screen()
    change, rough = (each.flatten() - swaps.value for each in (table, look))
    ranks = torch.stack([each.argsort().argsort().double() for each in (change, rough)])
    assert torch.corrcoef(ranks)[0, 1] > 0.99
    assert (change - rough).square().mean().sqrt() < 0.2 * change.square().mean().sqrt()
    i, j, value = swaps.best()
    assert (i, j) == divmod(int(table.argmin()), 40)
    assert value == pytest.approx(table.min().item(), rel=1e-12)


def test_ten_thousand_exchanges_leave_no_trace():
    items, fit = embeddings(12, 6), Gaussian.of(embeddings(50, 6, seed=2))
    swaps = FrechetSwaps(items[:8], fit, items[8:])
    rows = torch.arange(12)
    choices = torch.randint(0, 8 * 4, (10_000,), generator=torch.Generator().manual_seed(0)).tolist()
    for choice in choices:
        i, j = divmod(choice, 4)
        swaps.accept(i, j)
        rows[[i, 8 + j]] = rows[[8 + j, i]]
    assert torch.equal(swaps.members, rows[:8])
    assert torch.equal(swaps.candidates, rows[8:])
    fresh = FrechetSwaps(items[rows[:8]], fit, items[rows[8:]])
    assert swaps.value == fresh.value == pytest.approx(frechet_distance(items[rows[:8]], fit).item(), rel=1e-12)
    torch.testing.assert_close(swaps.table(), fresh.table(), rtol=1e-12, atol=0)


def test_an_accepted_exchange_gives_what_the_table_said():
    x, candidates, fit = embeddings(20, 30), embeddings(10, 30, seed=1), Gaussian.of(embeddings(100, 30, seed=2))
    swaps = FrechetSwaps(x, fit, candidates)
    for _ in range(8):
        i, j, value = swaps.best()
        assert value == swaps.table().min().item()
        swaps.accept(i, j)
        assert swaps.value == pytest.approx(value, rel=1e-12)
    assert swaps.value < frechet_distance(x, fit).item()


def test_memory_changes_nothing():
    x, candidates, fit = embeddings(20, 30), embeddings(10, 30, seed=1), Gaussian.of(embeddings(100, 30, seed=2))
    for items, others in ((x, candidates), (embeddings(9, 2, 30), embeddings(7, 2, 30, seed=1))):
        tables = [FrechetSwaps(items, fit, others, memory=memory).table() for memory in (2**28, 2**12)]
        torch.testing.assert_close(*tables, rtol=1e-12, atol=0)


def test_tolerance_is_kept():
    x, candidates, fit = embeddings(30, 64), embeddings(8, 64, seed=1), Gaussian.of(embeddings(300, 64, seed=2))
    exact = FrechetSwaps(x, fit, candidates).table()
    for tolerance in (1e-4, 1e-8):
        rough = FrechetSwaps(x, fit, candidates, tolerance=tolerance).table()
        assert 0 < ((rough - exact) / exact).abs().max() < 10 * tolerance


def test_numpy_in_float64_out():
    x, candidates, reference = embeddings(5, 4), embeddings(3, 4, seed=1), embeddings(30, 4, seed=2)
    table = FrechetSwaps(x.float().numpy(), reference.numpy(), candidates.numpy()).table()
    assert table.dtype == torch.float64
    expected = frechet_distance(exchanged(x.float().double(), candidates, 2, 1), reference)
    assert table[2, 1].item() == pytest.approx(expected.item(), rel=1e-12)


X = rand(4, 3)


@pytest.mark.parametrize(
    ("x", "reference", "candidates", "complaint"),
    [
        (X[:1], X, X, "2 items or more"),
        (X, X, X[:0], "1 vector or more in candidates"),
        (X, X, X[:, :2], "reference's dimension 3, got 2"),
        (X, X[:, :2], X, "reference's dimension 2, got 3"),
        (X * float("nan"), X, X, "finite numbers in x"),
        (X, X, X * float("inf"), "in candidates"),
        (X[0], X, X, "reshape"),
        ([X, X[:0]], X, [X], "item 1 of x"),
        ([X, X[:, :2]], X, [X], "one dimension in x"),
        (X, (torch.zeros(3), -torch.eye(3)), X, "negative eigenvalues"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(x: Tensor, reference: Tensor, candidates: Tensor, complaint: str):
    with pytest.raises(InputError, match=complaint):
        FrechetSwaps(x, reference, candidates)


def test_bad_positions_and_settings():
    swaps = FrechetSwaps(X, X, X[:2])
    for i, j in ((4, 0), (-1, 0), (0, 2)):
        with pytest.raises(InputError, match="position"):
            swaps.pairs(i, j)
        with pytest.raises(InputError, match="position"):
            swaps.accept(i, j)
    with pytest.raises(InputError, match="as many members"):
        swaps.pairs([0, 1], [0, 1, 1])
    assert len(swaps.pairs([], [])) == 0
    for tolerance in (0, 1e-300, 30.0, float("nan")):
        with pytest.raises(InputError, match="tolerance"):
            FrechetSwaps(X, X, X, tolerance=tolerance)
    with pytest.raises(InputError, match="verify"):
        swaps.best(verify=0)

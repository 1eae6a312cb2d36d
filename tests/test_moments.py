"""Moments gathered in pieces, the null value of a distance, and the extrapolation."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dragontune.distances import Moments, frechet_distance, frechet_infinity, kernel_distance, moments, null_distance
from dragontune.errors import InputError
from embeddings import embeddings, rand


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 6),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 1e3, 1e6]),
    st.permutations(range(5)),
    st.sampled_from([1, 2, 7, 1024]),
)
def test_any_grouping_in_any_order(dim: int, seed: int, offset: float, order: list[int], block: int):
    """Against sums of fractions, which are exact: a large offset costs no digits of the spread."""
    x = (rand(23, dim, seed=seed) * 2**20).round() / 2**20 + offset
    mean, scatter = exactly(x)
    scale = scatter.diagonal().sqrt()
    chunks = x.split([1, 9, 2, 4, 7])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "BLOCK", block)
        found = [Moments.stream(part.numpy() for part in parts) for parts in (chunks, [chunks[i] for i in order], [x])]
    merged = Moments.join([Moments.of(chunks[i][None]) for i in order]).merge()
    for each in (*found, merged, Moments.of(x[None])):
        assert each.count.item() == 23
        torch.testing.assert_close(each.mean[0], mean, rtol=1e-15, atol=1e-16)
        assert ((each.scatter[0] - scatter).abs() <= 1e-13 * scale[:, None] * scale + 1e-30).all()
    assert torch.equal(found[0].scatter, found[2].scatter)  # how a stream is cut makes no difference at all
    assert torch.equal(found[0].mean, found[2].mean)


def exactly(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and scatter by fractions, rounded once."""
    rows = [[Fraction(value) for value in row] for row in x.tolist()]
    dim = len(rows[0])
    mean = [sum((row[i] for row in rows), Fraction()) / len(rows) for i in range(dim)]
    scatter = [
        [float(sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in rows)) for j in range(dim)] for i in range(dim)
    ]
    return torch.tensor([float(value) for value in mean], dtype=torch.float64), torch.tensor(
        scatter, dtype=torch.float64
    )


def test_a_long_stream_in_two_orders():
    """200,000 vectors, a million away from zero: the spread agrees to 1e-12, forwards, backwards and shuffled."""
    x = rand(200_000, 8) * torch.logspace(0, -2, 8).double() + 1e6
    shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    one, *others = [Moments.stream(rows.split(777)) for rows in (x, x.flip(0), x[shuffled])]
    scale = one.scatter[0].diagonal().sqrt()
    for other in others:
        assert ((other.scatter - one.scatter)[0].abs() / (scale[:, None] * scale)).max() < 1e-12
        torch.testing.assert_close(other.mean, one.mean, rtol=2e-16, atol=0)


def test_masked_frames_do_not_count():
    frames, mask = rand(2, 5, 3), torch.ones(2, 5, 1)
    mask[1, 3:] = 0
    frames[1, 3:] = float("nan")
    masked = Moments.of(frames, mask)
    assert masked.count.tolist() == [5, 3]
    torch.testing.assert_close(masked.covariance()[1], torch.cov(frames[1, :3].mT))
    torch.testing.assert_close(masked.merge().mean[0], torch.cat([frames[0], frames[1, :3]]).mean(0))


def test_bad_moments():
    with pytest.raises(InputError, match="empty stream"):
        Moments.stream([])
    with pytest.raises(InputError, match="finite"):
        Moments.stream([rand(3, 2), rand(3, 2) / 0])
    with pytest.raises(InputError, match="n x dim"):
        Moments.stream([rand(3)])
    with pytest.raises(InputError, match="items x frames x dim"):
        Moments.of(rand(3, 2))
    with pytest.raises(InputError, match="2 vectors or more"):
        Moments.of(rand(1, 1, 2)).covariance()


def test_the_null_value_is_what_real_items_have():
    """It falls like 1 / size, and holds fresh real sets about as often as it says."""
    real, reference = embeddings(400, 16), embeddings(4000, 16, seed=1)
    small, large = (null_distance(real, reference, size, draws=60) for size in (20, 80))
    assert small.low < small.mean < small.high
    assert 3 < small.mean / large.mean < 5
    inside = sum(
        small.low <= frechet_distance(embeddings(20, 16, seed=seed), reference).item() <= small.high
        for seed in range(100, 200)
    )
    assert inside >= 85
    assert null_distance(real, reference, 20, draws=60) == small
    assert frechet_distance(embeddings(20, 16, seed=7, decay=0.2), reference).item() > small.high


def test_null_of_items_of_frames_and_of_other_distances():
    items, reference = embeddings(30, 4, 8), embeddings(500, 8, seed=1)
    whole = null_distance(items, reference, 10, draws=20)
    assert whole == null_distance(list(items), reference, 10, draws=20)
    found = null_distance(rand(40, 3), rand(100, 3, seed=1), 20, draws=50, distance=kernel_distance)
    assert found.low < 0 < found.high


def test_extrapolation_takes_bias_away():
    reference = embeddings(40_000, 8, seed=1)
    x = embeddings(5000, 8, seed=2)
    plain, beyond = frechet_distance(x, reference).item(), frechet_infinity(x, reference).item()
    assert abs(beyond) < plain
    with pytest.raises(InputError, match="5000 samples or more"):
        frechet_infinity(x[:4999], reference)


def test_bad_settings():
    for arguments in ((rand(5, 2), rand(9, 2), 6), (rand(5, 2), rand(9, 2), 1)):
        with pytest.raises(InputError, match="size"):
            null_distance(*arguments)
    with pytest.raises(InputError, match="draws"):
        null_distance(rand(5, 2), rand(9, 2), 3, draws=1)
    with pytest.raises(InputError, match="one dimension"):
        null_distance([rand(5, 2), rand(5, 3)], rand(9, 2), 2)

import math

import pytest
import torch

from dragontune.evaluation import statistics
from dragontune.seeding import Key


@pytest.mark.parametrize(
    ("wins", "p", "bound", "posterior"),
    [(253, 1.5835e-5, 0.56146, 0.9999870), (256, 4.1534e-6, 0.56869, 0.9999966)],
)
def test_golden_values_of_the_listening_test(wins, p, bound, posterior):
    """The published table of DRAGON's listening test is reproduced by 420 votes."""
    assert statistics.p_value(wins, 420) == pytest.approx(p, rel=1e-4)
    assert statistics.lower_bound(wins, 420) == pytest.approx(bound, abs=1e-5)
    assert statistics.probability_better(wins, 420) == pytest.approx(posterior, abs=1e-7)


@pytest.mark.parametrize("count", [1, 7, 200])
def test_interval_closed_forms_at_the_ends(count):
    none, most = statistics.clopper_pearson(0, count)
    assert none == 0
    assert most == pytest.approx(1 - 0.025 ** (1 / count))
    assert statistics.clopper_pearson(count, count) == pytest.approx((1 - most, 1 - none))


def test_interval_agrees_with_scipy():
    from scipy.stats import binomtest

    for wins in (1, 12, 29):
        exact = binomtest(wins, 30).proportion_ci(0.95, "exact")
        assert statistics.clopper_pearson(wins, 30) == pytest.approx((exact.low, exact.high))


def test_half_wins_widen():
    low, high = statistics.clopper_pearson(10.5, 20)
    assert low == statistics.clopper_pearson(10, 20)[0]
    assert high == statistics.clopper_pearson(11, 20)[1]


def test_item_wins_count_ties_as_halves():
    found, _ = statistics.item_wins(torch.tensor([0.0, 0.0, 1.0, 2.0]), torch.tensor([1.0, 0.0, 2.0, 1.0]), Key(0))
    assert found.rate == 0.625
    assert (found.low, found.high) == statistics.wilson(2.5, 4)


def test_wilson_agrees_with_scipy_and_closed_forms():
    from scipy.stats import binomtest

    for wins, count in ((0, 5), (1, 30), (29, 30), (253, 420)):
        score = binomtest(wins, count).proportion_ci(0.95, "wilson")
        assert statistics.wilson(wins, count) == pytest.approx((score.low, score.high))
    z = 1.959963984540054
    assert statistics.wilson(4, 4) == pytest.approx((4 / (4 + z**2), 1.0))


def test_the_paired_bootstrap_covers_the_mean_change():
    """95 of 100 intervals should hold the true change of 0.3; fewer than 88 have a chance of about 1 in 500."""
    draws, changes = torch.Generator().manual_seed(0), []
    for seed in range(100):
        before = 5 * torch.randn(50, generator=draws)
        after = before + 0.3 + torch.randn(50, generator=draws)
        changes.append(statistics.item_wins(before, after, Key(seed))[1])
    assert 88 <= sum(change.low <= 0.3 <= change.high for change in changes) <= 100
    width = sum(change.high - change.low for change in changes) / 100
    assert width == pytest.approx(2 * 1.96 / 50**0.5, rel=0.1)


def test_rounding_errors_are_ties():
    assert statistics.outcome(1.0, 1.0 + 1e-8) == 0.5
    assert statistics.outcome(-3.0, -2.0) == 1.0
    assert statistics.outcome(-2.0, -3.0) == 0.0


def test_subsets_are_of_the_size_asked_for_and_without_repetition():
    seen = []
    statistics.subset_wins(lambda rows: (0.0, float(seen.append(rows) or 1)), 12, 5, 20, Key(0))
    assert all(len(rows) == 5 and len(set(rows.tolist())) == 5 for rows in seen[:20])
    assert len({tuple(rows.tolist()) for rows in seen[:20]}) > 10


def test_winning_every_subset_is_not_certainty():
    found, change = statistics.subset_wins(lambda rows: (1.0, 3.0), 30, 10, 100, Key(0))
    assert (found.rate, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 100))
    assert (change.low, change.high) == (2.0, 2.0)


@pytest.mark.parametrize("wins", [7, 28, 55])
def test_whole_wins_are_not_rounded(wins):
    """7 / 100 * 100 is more than 7 in floating point."""
    outcomes = iter([1.0] * wins + [0.0] * (100 - wins))  # then every replicate is the same, which says nothing
    found, _ = statistics.subset_wins(lambda rows: (0.5, next(outcomes, 1.0)), 30, 10, 100, Key(0))
    assert found.rate == wins / 100
    assert (found.low, found.high) == pytest.approx(statistics.clopper_pearson(wins, 100))


def test_overlapping_subsets_get_a_wider_interval_than_independent_trials():
    gains = torch.randn(60, generator=torch.Generator().manual_seed(1))
    found, _ = statistics.subset_wins(lambda rows: (0.0, gains[rows].sum().item()), 60, 30, 100, Key(0))
    low, high = statistics.clopper_pearson(found.rate * 100, 100)
    assert found.low <= low
    assert found.high >= high
    assert found.high - found.low > 1.2 * (high - low)


def test_the_interval_covers():
    """Of ten populations with mean gain 0 (true win rate one half), at least eight intervals contain one half."""
    hits = 0
    for seed in range(10):
        gains = torch.randn(40, generator=torch.Generator().manual_seed(seed))
        found, _ = statistics.subset_wins(lambda rows, g=gains: (0.0, g[rows].sum().item()), 40, 10, 60, Key(seed))
        hits += found.low <= 0.5 <= found.high
    assert hits >= 8


def test_same_key_same_interval():
    def compare(rows):
        return 0.5, float(rows.sum() % 2)

    found = [statistics.subset_wins(compare, 20, 7, 30, Key(4)) for _ in range(2)]
    assert found[0] == found[1]
    assert all(math.isfinite(value) for value in (found[0][0].rate, found[0][1].low, found[0][1].high))


def test_progress_ends_at_its_total():
    steps = []
    statistics.subset_wins(lambda rows: (0.5, 0.5), 8, 3, 10, Key(0), lambda done, total: steps.append((done, total)))
    assert [done for done, _ in steps] == list(range(1, steps[-1][1] + 1))


def test_the_interval_of_a_subset_change_is_that_of_the_items():
    """A mean over a subset scatters between samples of items by sd / sqrt(count), whatever the draws add to it."""
    gains = torch.randn(100, generator=torch.Generator().manual_seed(2)).double()
    _, change = statistics.subset_wins(lambda rows: (0.0, gains[rows].mean().item()), 100, 20, 400, Key(0))
    assert change.high - change.low == pytest.approx(2 * 1.96 * gains.std().item() / 10, rel=0.25)
    assert (change.low + change.high) / 2 == pytest.approx(gains.mean().item(), abs=0.06)


def test_the_subset_interval_covers_the_true_change():
    """Of 40 populations with mean gain 0.2, at least 34 intervals hold it (95 % of 40 are 38)."""
    hits = 0
    for seed in range(40):
        gains = 0.2 + torch.randn(60, generator=torch.Generator().manual_seed(seed)).double()
        _, change = statistics.subset_wins(lambda rows, g=gains: (0.0, g[rows].mean().item()), 60, 15, 60, Key(seed))
        hits += change.low <= 0.2 <= change.high
    assert hits >= 34

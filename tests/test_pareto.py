"""Pareto improvements, against the same search from scratch."""

import math
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from composites import MIXED, SEARCHES, Height, Watched, Width, encoded, members, points
from dragontune.demonstrations import divide
from dragontune.distances.swaps import Means
from dragontune.rewards.base import Reward
from dragontune.rewards.combine import Parts, Sum
from dragontune.rewards.constrain import Constrained, Floor
from dragontune.rewards.pareto import Pareto
from dragontune.seeding import Key


@pytest.mark.parametrize("options", SEARCHES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_no_member_ever_falls(options: dict, seed: int):
    reward, n, seen = Pareto(MIXED), 10, list[dict[str, float]]()
    features, prompts = encoded(reward, n, seed)
    division = divide(Watched(reward, seen), features, prompts, Key(seed), **options)
    assert len(seen) == division.accepted + 1
    for before, after in pairwise(seen):
        assert all(after[name] >= before[name] - 1e-9 for name in MIXED)
        assert any(after[name] > before[name] + 1e-9 for name in MIXED)


def test_the_searches_do_find_pareto_improvements_that_a_sum_would_not_keep_to():
    """The test above is not about nothing: exchanges are found, and a plain sum lets a member fall."""
    found, fell = 0, 0
    for seed in range(4):
        for reward in (Pareto(MIXED), Sum(MIXED)):
            features, prompts = encoded(reward, 10, seed)
            seen = list[dict[str, float]]()
            division = divide(Watched(reward, seen), features, prompts, Key(seed), pairing="unpaired")
            if isinstance(reward, Pareto):
                found += division.accepted
            else:
                fell += any(after[k] < before[k] - 1e-6 for before, after in pairwise(seen) for k in MIXED)
    assert found >= 8
    assert fell >= 3


def dominates(after: dict[str, float], before: dict[str, float]) -> bool:
    return all(after[k] >= before[k] - 1e-9 for k in before) and any(after[k] > before[k] + 1e-9 for k in before)


@pytest.mark.parametrize("seed", range(3))
def test_greedy_is_the_same_loop_from_scratch(seed: int):
    """Begin with the higher sum; turn each pair, in the seeded order, where that is a Pareto improvement."""
    reward, n = Pareto(MIXED), 9
    features, prompts = encoded(reward, n, seed)
    halves = torch.arange(2 * n).chunk(2)
    positive, negative = (
        halves if reward.score(features[halves[0]]) >= reward.score(features[halves[1]]) else halves[::-1]
    )
    positive, negative, key = positive.clone(), negative.clone(), Key(seed)
    for number in range(2):
        for i in key.fold("pass", number).permutation(n).tolist():
            other = positive.clone()
            other[i] = negative[i]
            if dominates(members(reward, features, other), members(reward, features, positive)):
                positive, negative[i] = other, positive[i].clone()
    division = divide(reward, features, prompts, key, passes=2)
    assert torch.equal(division.positive, positive)
    assert torch.equal(division.negative, negative)


@pytest.mark.parametrize("options", SEARCHES[1:], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_at_the_end_no_exchange_is_a_pareto_improvement(options: dict, seed: int):
    reward, n = Pareto(MIXED), 7
    features, prompts = encoded(reward, n, seed)
    division = divide(reward, features, prompts, Key(seed), **options)
    reached = members(reward, features, division.positive)
    for i, j in product(range(n), range(n)):
        if i == j or options.get("pairing") == "unpaired":
            other = division.positive.clone()
            other[i] = division.negative[j]
            assert not dominates(members(reward, features, other), reached)


def test_of_items_a_pair_is_turned_where_the_other_dominates():
    reward, n = Pareto({"height": Height(), "width": Width()}), 30
    features, prompts = encoded(reward, n, 0)
    scores = torch.stack([points(n, 0).latents, points(n, 50).latents])
    start = int(scores[1].double().mean(0).sum() > scores[0].double().mean(0).sum())
    turned = (scores[1 - start] >= scores[start]).all(1)
    assert 3 < turned.sum() < 15
    division = divide(reward, features, prompts, Key(0))
    assert torch.equal(division.positive, torch.arange(n) + n * torch.where(turned, 1 - start, start))


def test_tolerance_lets_a_member_fall_that_much_below_its_best():
    rewards: dict[str, Reward] = {"height": Height(), "width": Width()}
    for scale in (1.0, 100.0):
        lowest, higher = [], []
        for tolerance in (0.0, 0.05, 10.0):
            reward = Pareto(rewards, scales={"width": scale, "height": scale}, tolerance=tolerance / scale)
            features, prompts = encoded(reward, 20, 1)
            seen = list[dict[str, float]]()
            divide(Watched(reward, seen), features, prompts, Key(1), pairing="unpaired")
            for name in rewards:
                peak = -math.inf
                for row in seen:
                    peak = max(peak, row[name])
                    assert row[name] >= peak - tolerance - 1e-9
            lowest.append(min(after[k] - before[k] for before, after in pairwise(seen) for k in rewards))
            higher.append(sum(seen[-1].values()))
        assert lowest[0] >= -1e-9 > lowest[1]
        assert higher[0] < higher[1] <= higher[2]
        best = points(20, 1).latents.sum(1).tolist() + points(20, 51).latents.sum(1).tolist()
        assert higher[2] == pytest.approx(sum(sorted(best)[20:]) / 20, rel=1e-5)


def test_a_member_of_weight_0_is_guarded_and_not_raised():
    reward = Pareto({"height": Height(), "width": Width()}, weights={"width": 0.0})
    features, _ = encoded(reward, 12, 3)
    swaps = reward.swaps(features[torch.arange(12)], features[torch.arange(12, 24)])
    height, width = Height(), Width()
    first, second = points(12, 3), points(12, 53)
    higher = height(second)[None] >= height(first)[:, None]
    wider = width(second)[None] >= width(first)[:, None]
    assert torch.equal(swaps.allowed_table(), higher & wider)
    raised = swaps.table() > swaps.value
    assert torch.equal(raised, height(second)[None] > height(first)[:, None])


class Rough(Means):
    """A first look that is wrong by as much as the values differ."""

    approximate = True

    def screen(self) -> Tensor:
        return self.table() + 0.2 * torch.randn(len(self.members), len(self.candidates)).double()


@pytest.mark.parametrize("seed", range(4))
def test_a_rough_first_look_does_not_decide_where_the_search_ends(monkeypatch: pytest.MonkeyPatch, seed: int):
    """At the end no exchange of any two is a Pareto improvement, though the looks at them were of no use."""
    torch.manual_seed(seed)
    monkeypatch.setattr("dragontune.rewards.combine.Means", Rough)
    n, height, width = 12, Height(), Width()
    features, prompts = encoded(Pareto({"height": height, "width": width}), n, seed)
    floor = Constrained(height, {"width": Floor(width, at_least=0.3)})
    pareto = divide(Pareto({"height": height, "width": width}), features, prompts, Key(seed), pairing="unpaired")
    high, wide = (scores.members[name] for scores, name in ((features, "height"), (features, "width")))
    better = high[pareto.negative][None] > high[pareto.positive][:, None] + 1e-9
    wider = wide[pareto.negative][None] > wide[pareto.positive][:, None] + 1e-9
    assert not (better & wider).any()
    features, prompts = encoded(floor, n, seed)
    kept = divide(floor, features, prompts, Key(seed), pairing="unpaired")
    left = wide[kept.positive].mean() + (wide[kept.negative][None] - wide[kept.positive][:, None]) / n
    higher = high[kept.negative][None] > high[kept.positive][:, None] + 1e-9
    assert wide[kept.positive].mean() >= 0.3 - 1e-9
    assert not (higher & (left >= 0.3)).any()


def test_falls_within_the_tolerance_do_not_add_up():
    """Tall items are narrow here, so height can only be had for width: a bit of it, not a bit every time."""
    height = torch.linspace(0, 1, 40, dtype=torch.float64)[Key(0).permutation(40)]
    features = Parts({"height": 3 * height, "width": -height})
    reward, seen = Pareto({"height": Height(), "width": Width()}, tolerance=0.1), list[dict[str, float]]()
    divide(Watched(reward, seen), features, ["x"] * 40, Key(0), pairing="unpaired")
    width = [row["width"] for row in seen]
    assert len(width) > 3
    assert max(width) - 0.1 - 1e-9 <= min(width) < max(width) - 0.08

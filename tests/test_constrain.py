"""Floors, against all divisions of small sets."""

import math
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from composites import ENCODER, SEARCHES, TARGET, Height, Watched, Width, encoded, members, points
from dragontune.data import Samples
from dragontune.demonstrations import contrast, divide
from dragontune.errors import NonFiniteError
from dragontune.rewards.combine import Sum
from dragontune.rewards.constrain import Constrained, Floor, ranked
from dragontune.rewards.diversity import Vendi
from dragontune.rewards.frechet import SetFrechet
from dragontune.seeding import Key


def divisions(n: int) -> list[Tensor]:
    return [torch.arange(n) + n * torch.tensor(choice) for choice in product((0, 1), repeat=n)]


@pytest.mark.parametrize("options", SEARCHES[:2], ids=str)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_violated_floor_on_items_is_met_wherever_the_pool_allows_it(options: dict, seed: int, share: float):
    """Of a mean a search by pairs finds the highest, so it must get there; a set reward is raised beside it."""
    n, height = 8, Height()
    first, second = points(n, seed), points(n, seed + 50)
    pairs = torch.stack([height(first), height(second)])
    start, most = pairs.mean(1).max().item(), pairs.max(0).values.mean().item()
    for floor, possible in ((start + share * (most - start), True), (most + 0.01, False)):
        reward = Constrained(SetFrechet(ENCODER, TARGET), {"height": Floor(height, at_least=floor)})
        features, prompts = encoded(reward, n, seed)
        rows = torch.arange(2 * n).chunk(2)
        assert all(reward.score(features[half]).item() < -1000 for half in rows)
        every = [reward.score(features[rows]).item() for rows in divisions(n)]
        assert (max(every) > -1000) == possible
        division = divide(reward, features, prompts, Key(seed), **{"passes": 10, **options})
        reached = reward.score(features[division.positive]).item()
        assert (members(reward, features, division.positive)["height"] >= floor - 1e-9) == possible
        assert (reached > -1000) == possible
        if not possible:
            assert reached == pytest.approx(max(every), abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_a_violated_floor_on_a_set_is_met(seed: int):
    """Floor halfway between the start and the best of all divisions: met, then the objective is raised within it."""
    n, whole = 8, SetFrechet(ENCODER, TARGET)
    features, _ = encoded(whole, n, seed)
    every = torch.tensor([whole.score(features[rows]).item() for rows in divisions(n)], dtype=torch.float64)
    start = max(every[0], every[-1]).item()
    floor = (start + every.max().item()) / 2
    reward = Constrained(Height(), {"set": Floor(whole, at_least=floor)})
    features, prompts = encoded(reward, n, seed)
    heights = torch.tensor([members(reward, features, rows)["reward"] for rows in divisions(n)], dtype=torch.float64)
    best = heights[every >= floor].max().item()
    for options in SEARCHES[:2]:
        division = divide(reward, features, prompts, Key(seed), **{"passes": 10, **options})
        got = members(reward, features, division.positive)
        assert got["set"] >= floor - 1e-9
        assert got["reward"] <= best + 1e-9
        for i in range(n):
            other = division.positive.clone()
            other[i] = division.negative[i]
            after = members(reward, features, other)
            assert after["set"] < floor or after["reward"] <= got["reward"] + 1e-9


@pytest.mark.parametrize("options", SEARCHES, ids=str)
def test_what_is_missing_only_shrinks_and_a_kept_floor_stays_kept(options: dict):
    floor, met = 0.35, 0
    reward = Constrained(Vendi(ENCODER), {"height": Floor(Height(), at_least=floor)})
    for seed in range(5):
        features, prompts = encoded(reward, 12, seed)
        seen = list[dict[str, float]]()
        divide(Watched(reward, seen), features, prompts, Key(seed), **options)
        short = [max(0.0, floor - row["height"]) for row in seen]
        assert all(after < before or after == 0 for before, after in pairwise(short))
        kept = [row["reward"] for row, missing in zip(seen, short, strict=True) if missing == 0]
        assert all(after > before for before, after in pairwise(kept))
        met += short[0] > 0 and short[-1] == 0
    assert met >= 3


def test_several_floors_are_weighed_by_their_scales():
    floors = {"h": Floor(Height(), at_least=100.0, scale=10.0), "w": Floor(Width(), at_least=7.0)}
    features = (reward := Constrained(Vendi(ENCODER), floors, penalty=20.0)).encode(points(5))
    height, width = points(5).latents[:, 1].mean().item(), points(5).latents[:, 0].mean().item()
    assert reward.score(features).item() == pytest.approx(-20 * (1 + (100 - height) / 10 + (7 - width)), rel=1e-6)


def test_a_drop_is_from_the_first_round():
    whole = SetFrechet(ENCODER, TARGET)
    reward = Constrained(Height(), {"set": Floor(whole, drop=0.05), "h": Floor(Height(), at_least=-9.0)})
    features, _ = encoded(reward, 8, 0)
    assert reward.score(features).item() == pytest.approx(reward.members(features)["reward"])  # no floor as yet
    state = reward.observe(features, Key(0), {})
    later = reward.observe(encoded(reward, 8, 7)[0], Key(1), state)
    assert {name: value.item() for name, value in later.items()} == {
        name: value.item() for name, value in state.items()
    }
    halves = [whole(points(8, seed)).item() for seed in (0, 50)]
    at_least = reward.given(later).constraints["set"].at_least
    assert at_least == pytest.approx(sum(halves) / 2 * 1.05)
    assert reward.given(later).constraints["h"].at_least == -9.0
    positive = Constrained(Height(), {"v": Floor(Vendi(ENCODER), drop=0.05)})
    features, _ = encoded(positive, 8, 0)
    at_least = positive.given(positive.observe(features, Key(0), {})).constraints["v"].at_least
    assert at_least == pytest.approx(sum(Vendi(ENCODER)(points(8, seed)).item() for seed in (0, 50)) / 2 * 0.95)


def test_a_reward_far_below_0_keeps_its_order_above_every_violation():
    objective = torch.tensor([-2500.0, -900.0, -501.0, -500.0, -499.0, 3.0, -1e12, 5.0], dtype=torch.float64)
    missing = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1e-9], dtype=torch.float64)
    found = ranked(objective, missing, 1000.0)
    assert found[3:6].tolist() == [-500.0, -499.0, 3.0]
    assert found.argsort().tolist() == [7, 6, 0, 1, 2, 3, 4, 5]
    assert found[6] > -1000 >= found[7]


def test_one_bad_item_does_not_end_a_round():
    """A candidate that nobody would take makes the worse set's reward very low."""
    reward = Constrained(Height(), {"w": Floor(Width(), at_least=-9.0)})
    first, second = torch.zeros(4, 2), torch.zeros(4, 2)
    second[2, 1] = -5000.0
    one, other = (Samples(("x",) * 4, latents, None) for latents in (first, second))
    assert contrast(reward, one, other, Key(0)).positive.latents.min() == 0


@pytest.mark.parametrize(("short", "kept"), [(1e-12, True), (1e-6, False)])
@pytest.mark.parametrize("at_least", [0.0, 0.3, -40.0])
def test_a_floor_is_missed_by_more_than_rounding(at_least: float, short: float, kept: bool):
    floor = Floor(Width(), at_least=at_least)
    assert (floor.missing(torch.tensor(at_least - short, dtype=torch.float64)).item() == 0) == kept


@pytest.mark.parametrize("where", ["objective", "constraint"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_member_that_is_nan_is_not_hidden(where: str, kept: bool):
    bad = Sum({"h": Height(math.nan)})
    good, floor = Width(), -9.0 if kept else 9.0
    reward = Constrained(
        bad if where == "objective" else good, {"c": Floor(bad if where == "constraint" else good, floor)}
    )
    features, prompts = encoded(reward, 4, 0)
    assert math.isnan(reward.score(features).item())
    with pytest.raises(NonFiniteError):
        divide(reward, features, prompts, Key(0))

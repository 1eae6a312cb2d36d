"""Dividing generations into D+ and D-, against pairwise selection and brute force."""

from dataclasses import dataclass
from itertools import combinations, product

import pytest
import torch
from torch import Tensor

from dragontune.data import Samples
from dragontune.demonstrations import contrast, divide
from dragontune.errors import InputError, NonFiniteError
from dragontune.reference import Reference
from dragontune.rewards.base import DistributionReward, Features, InstanceReward, Reward
from dragontune.rewards.combine import Sum
from dragontune.rewards.diversity import Vendi
from dragontune.rewards.frechet import SetFrechet, SongFrechet
from dragontune.seeding import Key
from dragontune.testing import ToyEncoder


@dataclass(frozen=True)
class Height(InstanceReward[Tensor]):
    def encode(self, samples: Samples) -> Tensor:
        return samples.latents[:, 1]

    def score(self, features: Tensor) -> Tensor:
        return features


@dataclass(frozen=True)
class MeanHeight(DistributionReward[Tensor]):
    def encode(self, samples: Samples) -> Tensor:
        return samples.latents[:, 1]

    def score(self, features: Tensor) -> Tensor:
        return features.double().mean()


def points(count: int, seed: int = 0, shift: float = 0.0) -> Samples:
    latents = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed)) + shift
    return Samples(tuple(f"prompt {i}" for i in range(count)), latents, latents)


def reference(seed: int = 99, frames: int = 1) -> Reference:
    return Reference.build(
        ToyEncoder(frames), [torch.randn(200, 2, generator=torch.Generator().manual_seed(seed))], "a"
    )


SETS = {"frechet": SetFrechet(ToyEncoder(), reference()), "vendi": Vendi(ToyEncoder()), "mean": MeanHeight()}


def multiset(*sets: Samples) -> list[tuple[float, ...]]:
    return sorted(tuple(row) for samples in sets for row in samples.latents.tolist())


@pytest.mark.parametrize("reward", [*SETS.values(), Height()], ids=lambda r: type(r).__name__)
def test_items_and_pairs_are_kept(reward: Reward):
    first, second = points(9, 0), points(9, 1)
    both = contrast(reward, first, second, Key(0), passes=3)
    assert multiset(both.positive, both.negative) == multiset(first, second)
    assert both.positive.prompts == both.negative.prompts == first.prompts
    for i in range(9):
        pair = torch.stack([both.positive.latents[i], both.negative.latents[i]])
        given = torch.stack([first.latents[i], second.latents[i]])
        assert torch.equal(pair, given) or torch.equal(pair, given.flip(0))


def test_pairwise_selection_takes_the_higher():
    both = contrast(Height(), points(9, 0), points(9, 1), Key(0))
    assert (both.positive.latents[:, 1] >= both.negative.latents[:, 1]).all()


def test_a_mean_of_instance_rewards_is_pairwise_selection():
    first, second = points(12, 0), points(12, 1)
    pairwise = contrast(Height(), first, second, Key(0))
    for reward in (MeanHeight(), Sum({"height": Height()})):
        exchanged = contrast(reward, first, second, Key(0))
        assert torch.equal(exchanged.positive.latents, pairwise.positive.latents)


def test_unpaired_takes_the_better_half():
    first, second = points(8, 0), points(8, 1)
    both = contrast(Height(), first, second, Key(0), pairing="unpaired")
    assert both.positive.latents[:, 1].min() >= both.negative.latents[:, 1].max()
    assert multiset(both.positive, both.negative) == multiset(first, second)


@dataclass(frozen=True)
class Recorded(DistributionReward[Tensor]):
    inner: DistributionReward[Tensor]
    seen: list[float]

    @property
    def minimum(self) -> int:
        return self.inner.minimum

    def encode(self, samples: Samples) -> Tensor:
        return self.inner.encode(samples)

    def score(self, features: Tensor) -> Tensor:
        value = self.inner.score(features)
        self.seen.append(value.item())
        return value


@dataclass(frozen=True)
class Plain(DistributionReward[Features]):
    """Another reward without what it knows of exchanges."""

    inner: DistributionReward

    def encode(self, samples: Samples) -> Features:
        return self.inner.encode(samples)

    def score(self, features: Features) -> Tensor:
        return self.inner.score(features)


@pytest.mark.parametrize("name", ["frechet", "vendi"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_exchange_against_brute_force(name: str, seed: int):
    """More passes are never worse, nothing beats the best of all 2^9 sets, and at the end no single swap helps."""
    reward, n = SETS[name], 9
    first, second = points(n, seed), points(n, seed + 50)
    with torch.no_grad():
        features = reward.encode(Samples.join([first, second]))
    rows = torch.arange(n)
    scores = [reward.score(features[rows + n * torch.tensor(choice)]).item() for choice in product((0, 1), repeat=n)]
    best, start = max(scores), max(scores[0], scores[-1])
    reached = []
    for passes in (1, 2, 10):
        division = divide(reward, features, first.prompts * 2, Key(seed), passes)
        reached.append(reward.score(features[division.positive]).item())
    assert start <= reached[0] <= reached[1] <= reached[2] <= best + 1e-12
    assert reached[0] > start
    for i in range(n):
        other = division.positive.clone()
        other[i] = division.negative[i]
        assert reward.score(features[other]).item() <= reached[2]


def test_passes_stop_when_nothing_is_accepted():
    seen: list[float] = []
    division = divide(Recorded(MeanHeight(), seen), torch.arange(8.0), ["p"] * 8, Key(0), passes=100)
    assert division.accepted == 0
    assert len(seen) == 2 + 1 + 4
    assert division.asked == 4
    assert torch.equal(division.positive, torch.arange(4, 8))


def test_order_of_exchange_is_seeded():
    first, second = points(20, 3), points(20, 4)
    runs = [contrast(SETS["vendi"], first, second, Key(seed)).positive.latents for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_ties_are_left_as_they_are():
    same = points(4)
    for reward in (Height(), *SETS.values()):
        division = divide(reward, reward.encode(Samples.join([same, same])), same.prompts * 2, Key(0))
        assert division.accepted == 0
        assert torch.equal(division.positive, torch.arange(4))


def test_none_and_one():
    for reward in (Height(), MeanHeight()):
        assert len(contrast(reward, points(0), points(0), Key(0))) == 0
        one = contrast(reward, points(1, 0), points(1, 1), Key(0))
        assert one.positive.latents[0, 1] >= one.negative.latents[0, 1]


def test_too_few_for_a_set_reward():
    with pytest.raises(InputError, match="at least 2 items in a set, got 1"):
        contrast(SETS["frechet"], points(1, 0), points(1, 1), Key(0))


@pytest.mark.parametrize("name", ["frechet", "vendi", "mean"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_best_improvement_ends_where_no_pair_helps(name: str, seed: int):
    reward, n = SETS[name], 9
    first, second = points(n, seed), points(n, seed + 50)
    features = reward.encode(Samples.join([first, second]))
    division = divide(reward, features, first.prompts * 2, Key(seed), search="best")
    reached = reward.score(features[division.positive]).item()
    rows = torch.arange(n)
    scores = [reward.score(features[rows + n * torch.tensor(choice)]).item() for choice in product((0, 1), repeat=n)]
    assert reached <= max(scores) + 1e-12
    assert reached > max(scores[0], scores[-1])
    assert torch.equal(division.positive % n, rows)
    for i in range(n):
        other = division.positive.clone()
        other[i] = division.negative[i]
        assert reward.score(features[other]).item() <= reached + 1e-9


@pytest.mark.parametrize("name", ["frechet", "vendi", "mean"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_pool_of_all_items_against_brute_force(name: str, seed: int):
    """No exchange of any two helps at the end; never above the best of all sets of n out of 2n; at least the pairs'."""
    reward, n = SETS[name], 5
    first, second = points(n, seed), points(n, seed + 50)
    features = reward.encode(Samples.join([first, second]))
    pool = divide(reward, features, first.prompts * 2, Key(seed), pairing="unpaired")
    reached = reward.score(features[pool.positive]).item()
    best = max(reward.score(features[torch.tensor(rows)]).item() for rows in combinations(range(2 * n), n))
    assert reached <= best + 1e-12
    assert sorted(torch.cat([pool.positive, pool.negative]).tolist()) == list(range(2 * n))
    for i, j in product(range(n), repeat=2):
        other = pool.positive.clone()
        other[i] = pool.negative[j]
        assert reward.score(features[other]).item() <= reached + 1e-9
    if name == "mean":
        assert reached == pytest.approx(best)


def test_the_fast_exchanges_choose_what_scoring_from_scratch_chooses():
    first, second = points(12, 3), points(12, 4)
    total = Sum({"frechet": SETS["frechet"], "vendi": SETS["vendi"], "height": Height()}, {"frechet": 2.0})
    for reward in (SETS["frechet"], SETS["vendi"], total):
        plain = Plain(reward)
        both = [
            (
                contrast(each, first, second, Key(1), passes=3),
                contrast(each, first, second, Key(1), search="best"),
                contrast(each, first, second, Key(1), pairing="unpaired"),
            )
            for each in (reward, plain)
        ]
        for fast, slow in zip(*both, strict=True):
            assert torch.equal(fast.positive.latents, slow.positive.latents)


@pytest.mark.parametrize(
    "reward", [Height(), MeanHeight(), Sum({"mean": MeanHeight()})], ids=lambda r: type(r).__name__
)
def test_a_reward_that_is_not_finite_names_the_item(reward: Reward):
    bad = points(4, 1)
    bad.latents[2, 1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"item 6 \('prompt 2'\)"):
        contrast(reward, points(4, 0), bad, Key(0))


def test_each_selection_wins_on_its_own_distance():
    """Chosen by the distance of single items or of the set: each is better by its own measure (DRAGON, table A3.T5)."""
    encoder, target = ToyEncoder(4), reference(frames=4)
    song, whole = SongFrechet(encoder, target), SetFrechet(encoder, target)
    first, second = points(40, 0, 0.5), points(40, 1, 0.5)
    by_song = contrast(song, first, second, Key(0)).positive
    by_set = contrast(whole, first, second, Key(0), passes=3).positive
    assert song(by_song).mean() > song(by_set).mean() > song(Samples.join([first, second])).mean()
    assert whole(by_set) > whole(by_song)
    assert whole(by_set) > whole(first)

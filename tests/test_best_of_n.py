"""Best of n: the exact best, for items and for sets."""

from dataclasses import dataclass
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from beds import MANY, Bell, Exact, Linear, Quadratic
from dragontune.data import Samples
from dragontune.process import State
from dragontune.rewards.base import DistributionReward
from dragontune.rewards.diversity import Vendi
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.steering.best_of_n import BestOfN
from dragontune.steering.choice import Company
from dragontune.testing import Toy, ToyEncoder

PROMPTS = ["left", "right", "x", "left", "right"]


@dataclass(frozen=True)
class Apart(DistributionReward[Tensor]):
    """The mean squared distance within the set, less a pull to the origin; no swaps of its own."""

    pull: float = 0.1

    @property
    def minimum(self) -> int:
        return 2

    def encode(self, samples: Samples) -> Tensor:
        assert isinstance(samples.media, Tensor)
        return samples.media.double()

    def score(self, features: Tensor) -> Tensor:
        return torch.cdist(features, features).mean() - self.pull * features.square().sum(1).mean()


def every(process: Sampler, n: int, prompts: list[str], key: Key) -> Tensor:
    """All n generations of each prompt, by hand [prompts, n, 2]."""
    lanes = [key.fold("lane", lane) if lane else key for lane in range(n)]
    return torch.stack([process.sample(Toy(), prompts, lane).latents for lane in lanes], 1)


@pytest.mark.parametrize("micro_batch", [1, 7, 100])
@pytest.mark.parametrize("process", [Sampler(4), Sampler(4, order=1, eta=1), Sampler(4, guidance=3, order=1, eta=1)])
def test_it_is_the_best_of_n(process: Sampler, micro_batch: int):
    drawn = every(process, 6, PROMPTS, Key(3))
    for reward in (Linear(-1.0), Quadratic(1.0, 0.5)):
        kept = process.sample(Toy(), PROMPTS, Key(3), steer=BestOfN(reward, 6, micro_batch)).latents
        best = reward.score(drawn.flatten(0, 1)[:, 0]).view(5, 6).argmax(1)
        torch.testing.assert_close(kept, drawn[torch.arange(5), best], rtol=0, atol=1e-5)


def test_one_is_the_plain_sampler_and_more_are_never_worse():
    process = Sampler(5)
    found = [process.sample(Toy(), PROMPTS, Key(0), steer=BestOfN(Linear(), n)).latents[:, 0] for n in (1, 2, 4, 8, 16)]
    assert torch.equal(found[0], process.sample(Toy(), PROMPTS, Key(0)).latents[:, 0])
    assert all((b >= a - 1e-6).all() for a, b in pairwise(found))
    assert found[-1].mean() > found[0].mean() + 0.3


def test_the_expected_best_of_n_is_that_of_normal_numbers():
    """E max of 4 and 16 standard normal numbers: 1.0294 and 1.7660."""
    for n, known in ((4, 1.0294), (16, 1.7660)):
        x = Exact(3).sample(Bell(), [""] * 3000, Key(0), steer=BestOfN(Linear(), n, MANY)).latents
        assert x.mean().item() == pytest.approx(known, abs=0.05)


@pytest.mark.parametrize("reward", [Vendi(ToyEncoder()), Apart()], ids=["Vendi", "without swaps of its own"])
@pytest.mark.parametrize("with_made", [False, True])
def test_a_settled_set_cannot_be_improved_by_one_exchange(reward: DistributionReward, with_made: bool):
    process, n, prompts = Sampler(4), 5, ["x"] * 4
    made = None
    if with_made:
        points = torch.tensor([[1.0, 0.1], [-0.5, 0.4], [-1.0, 0.2]])
        made = reward.encode(Samples(("", "", ""), points, points))
    drawn = every(process, n, prompts, Key(8))
    steering = BestOfN(reward, n)
    kept = steering(process, Toy(), prompts, Key(8), range(4), made=made).latents

    def value(points: Tensor) -> float:
        features = reward.encode(Samples(("",) * 4, points, points))
        return reward.score(features if made is None else torch.cat([made, features])).item()

    reached = value(kept)
    lanes = [int((drawn[place] - kept[place]).abs().sum(1).argmin()) for place in range(4)]
    torch.testing.assert_close(torch.stack([drawn[p, lane] for p, lane in enumerate(lanes)]), kept, rtol=0, atol=1e-5)
    assert reached > value(drawn[:, 0]) + 1e-3
    for place, rival in product(range(4), range(n)):
        other = kept.clone()
        other[place] = drawn[place, rival]
        assert value(other) <= reached + 1e-6
    best = max(value(drawn[torch.arange(4), torch.tensor(lanes)]) for lanes in product(range(n), repeat=4))
    assert reached > best - 0.1 * abs(best)


@pytest.mark.parametrize("seed", range(5))
def test_a_settled_set_beats_the_plain_one_and_micro_batches_do_not_matter(seed: int):
    process, reward = Sampler(4), Vendi(ToyEncoder())
    plain, few, many = (
        process.sample(Toy(), ["x"] * 6, Key(seed), steer=BestOfN(reward, n, rows))
        for n, rows in ((1, 40), (6, 1), (6, 100))
    )
    assert reward(few) >= reward(plain)
    torch.testing.assert_close(few.latents, many.latents, rtol=0, atol=1e-5)


def test_only_the_chosen_are_seen_at_the_end():
    seen: list[State] = []
    final = Sampler(3).sample(Toy(), PROMPTS, Key(0), steer=BestOfN(Linear(), 4), visit=seen.append).latents
    assert [len(state) for state in seen] == [20, 20, 20, 5]
    assert torch.equal(seen[-1].latents, final)


@pytest.mark.parametrize("reward", [Vendi(ToyEncoder()), Apart(0.8)], ids=["Vendi", "without swaps of its own"])
def test_places_that_are_changed_again_and_again_are_followed(reward: DistributionReward):
    """Seven places of five candidates: what comes out is a local optimum, each place with one of its own."""
    for seed in range(25):
        points = torch.randn(7 * 5, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        features = reward.encode(Samples(("",) * 35, points, points))
        assert isinstance(features, Tensor)
        rows = Company.settled(reward, None, features, 5)
        assert (rows // 5).tolist() == list(range(7))
        reached = reward.score(features[rows])
        for place in range(7):
            others = [rows.clone().index_fill(0, torch.tensor([place]), 5 * place + lane) for lane in range(5)]
            assert max(reward.score(features[each]).item() for each in others) <= reached + 1e-8

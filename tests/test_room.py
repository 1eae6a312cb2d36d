"""Bytes alive at once, and candidates that fit a budget of them."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dragontune.alive import Alive, peak, size
from dragontune.data import Samples
from dragontune.errors import InputError
from dragontune.rewards.base import InstanceReward
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.steering.best_of_n import BestOfN
from dragontune.steering.dsearch import DSearch
from dragontune.steering.smc import Smc
from dragontune.steering.svdd import Svdd
from dragontune.testing import Toy

NOISY = Sampler(steps=3, order=1, eta=1.0)
KIBIBYTE = 2**10


def test_bytes_are_counted_while_they_live():
    with Alive() as alive:
        first = torch.zeros(100, KIBIBYTE // 4)
        assert alive.now == 100 * KIBIBYTE
        second = first + 1
        view = second[:10]
        del first
        third = torch.zeros(50, KIBIBYTE // 4)
        assert alive.now == 150 * KIBIBYTE
        del second
        assert alive.now == 150 * KIBIBYTE  # the view holds it
        del view, third
    assert alive.now == 0
    assert alive.peak == 200 * KIBIBYTE


def test_the_size_of_a_record_is_that_of_its_tensors():
    samples = Samples(("a", "b"), torch.zeros(2, 3), torch.zeros(2, 5, dtype=torch.float64))
    assert size(samples) == 4 * 6 + 8 * 10


@dataclass(frozen=True)
class Wide(InstanceReward[Tensor]):
    """Takes a mebibyte an item."""

    def encode(self, samples: Samples) -> Tensor:
        assert isinstance(samples.media, Tensor)
        return samples.media[:, :1].expand(-1, 2**18).mul(1).mean(1)

    def score(self, features: Tensor) -> Tensor:
        return features


@pytest.mark.parametrize("count", [4, 16, 64])
@pytest.mark.parametrize("memory", [6.0, 20.0])
def test_what_is_declared_is_kept_and_used(memory: float, count: int):
    toy, reward = Toy(), Wide()
    for free in (
        Svdd(reward, count),
        BestOfN(reward, count),
        DSearch(reward, count // 2, 2, 1.0),
        Smc(reward, 1, count),
    ):
        steering = free.within(memory, NOISY, toy)
        used = peak(lambda steering=steering: NOISY.sample(toy, ["left"], Key(0), steer=steering)) / 2**20
        assert used <= memory
        assert steering.micro_batch == pytest.approx(0.95 * memory, abs=1.6)
        if count >= 2 * memory:
            assert used > memory - 2.1  # a row more would not have fitted
        plain = NOISY.sample(toy, ["left"], Key(0), steer=free)
        torch.testing.assert_close(NOISY.sample(toy, ["left"], Key(0), steer=steering).latents, plain.latents)


def test_too_little_memory_is_one_sentence():
    with pytest.raises(InputError, match=r"at least one candidate at a time, [12] MiB"):
        Svdd(Wide(), 4).within(0.5, NOISY, Toy())
    with pytest.raises(InputError, match="which fits 4; raise memory"):
        Svdd(Wide(), 4).within(5.0, NOISY, Toy(), prompts=50)

"""Sequential Monte Carlo against closed forms: weights that correct any value, and resampling that wastes nothing."""

from itertools import pairwise
from math import floor

import pytest
import torch

from beds import MANY, Bell, Exact, Linear, Quadratic, SoftValue, chosen, error, run
from dragontune.process import State
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.steering.foresight import Foresight, PosteriorMean
from dragontune.steering.smc import Smc, systematic
from dragontune.testing import Toy
from enumerable import Enumerable
from tables import Listed, Table, TableValue, shares, tilted, variation

BED = Exact(20)


@pytest.mark.parametrize("resample_below", [0.5, 1.0])
@pytest.mark.parametrize("value", [PosteriorMean(), SoftValue(0.5)], ids=["posterior mean", "exact"])
def test_the_tilted_law_whatever_the_value(resample_below: float, value: Foresight):
    """kappa 1, a 2, alpha .5: N(4/3, 1/3), also by the posterior mean, which misleads SVDD to 1.698."""
    x = run(Smc(Quadratic(), 0.5, 64, resample_below, value, MANY), BED, Bell(), 2000)[:, 0]
    assert x.mean().item() == pytest.approx(4 / 3, abs=3.5 * error(x) + 0.01)
    assert x.var().item() == pytest.approx(1 / 3, abs=3.5 / 3 * (2 / 2000) ** 0.5 + 0.01)


def test_the_bias_falls_with_the_particles():
    off, x = [], torch.empty(0)
    for particles in (1, 2, 8, 64):
        x = run(Smc(Linear(), 1.0, particles, micro_batch=MANY), BED, Bell(), 3000)[:, 0]
        off.append(1 - x.mean().item())
    assert off[0] == pytest.approx(1, abs=0.06)
    assert all(b < 0.7 * a for a, b in pairwise(off)), off
    assert abs(off[-1]) < 3.5 * error(x) + 0.02


@pytest.mark.parametrize("particles", [3, 10])
def test_without_resampling_it_is_importance_sampling(particles: int):
    """One of n draws of N(0, 1), kept by exp(r / alpha): the mean and variance of that, whatever the value."""
    mean, variance = chosen(0.8, particles, 2_000_000)
    x = run(Smc(Linear(0.4), 0.5, particles, 0.0, micro_batch=MANY), BED, Bell(), 8000)[:, 0]
    assert x.mean().item() == pytest.approx(mean, abs=3.5 * error(x))
    assert x.var().item() == pytest.approx(variance, abs=0.06)


def test_resampling_beats_importance_sampling_where_the_law_is_far_away():
    """The mean is 4 standard deviations off; 32 draws hardly come beyond 2."""
    alone, resampled = (
        run(Smc(Linear(4.0), 1.0, 32, below, micro_batch=MANY), BED, Bell(), 500)[:, 0].mean().item()
        for below in (0.0, 0.5)
    )
    assert alone < 2.3
    assert resampled > 3.2


@pytest.mark.parametrize(("exact", "bar"), [(True, 0.02), (False, 0.035)], ids=["exact", "posterior mean"])
def test_the_law_of_a_discrete_chain_is_reached(exact: bool, bar: float):
    """The values of likeliest tokens mislead much; more particles put it right."""
    generator, alpha = Enumerable(), 0.7
    numbers = torch.randn(27, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    table = Table(generator, 4)
    value = TableValue(table, table.soft_values(numbers, alpha)) if exact else PosteriorMean()
    target, off = tilted(table.law(), numbers, alpha), []
    for particles, count in ((1, 5000), (6, 5000), (48, 20_000)) if exact else ((1, 5000), (12, 5000), (150, 8000)):
        x = run(Smc(Listed(generator, numbers), alpha, particles, 0.5, value, MANY), table, generator, count)
        off.append(variation(shares(generator, x), target))
    assert all(b < 0.5 * a for a, b in pairwise(off)), off
    assert off[-1] < bar


def test_an_ancestor_is_taken_its_share_rounded_down_or_once_more():
    draws = torch.Generator().manual_seed(0)
    shares_ = torch.rand(300, 13, generator=draws, dtype=torch.float64).pow(6).softmax(1)
    shares_[:50] = torch.nn.functional.one_hot(torch.arange(50) % 13, 13).double()
    shares_[50:60] = 1 / 13
    found = systematic(shares_, torch.rand(300, generator=draws, dtype=torch.float64))
    for share, ancestors in zip(shares_, found, strict=True):
        taken = ancestors.bincount(minlength=13)
        for one, times in zip(share.tolist(), taken.tolist(), strict=True):
            assert floor(13 * one + 1e-9) <= times <= floor(13 * one - 1e-9) + 1


def test_systematic_resampling_is_unbiased():
    share = torch.tensor([0.05, 0.5, 0.0, 0.45], dtype=torch.float64)
    luck = (torch.arange(2000).double() + 0.5) / 2000
    found = systematic(share.expand(2000, 4), luck).flatten().bincount(minlength=4).double() / 8000
    torch.testing.assert_close(found, share, atol=1e-3, rtol=0)


@pytest.mark.parametrize("luck", [0.0, 1 - 2**-24])
def test_what_has_no_weight_is_never_an_ancestor(luck: float):
    share = torch.tensor([[0.0, 0.4, 0.6, 0.0]], dtype=torch.float64)
    assert set(systematic(share, torch.tensor([luck], dtype=torch.float64))[0].tolist()) == {1, 2}


def test_copies_part_ways_and_the_number_of_particles_stays():
    """Resampled at every step: those with one ancestor draw noise of their own."""
    seen: list[State] = []
    process, steering = Sampler(8, order=1, eta=1), Smc(Linear(), 0.02, 6, 1.0)
    process.sample(Toy(), ["left", "right"], Key(0), steer=steering, visit=seen.append)
    assert [len(state) for state in seen] == [12] * 8 + [2]
    for state in seen[:-1]:
        assert len(state.latents.unique(dim=0)) == 12


def test_one_particle_is_the_plain_sampler():
    for process in (Sampler(6, order=1, eta=1), Sampler(6, guidance=2, order=1, eta=1), Sampler(6)):
        plain = process.sample(Toy(), ["left", "right", "x"], Key(2)).latents
        assert torch.equal(
            process.sample(Toy(), ["left", "right", "x"], Key(2), steer=Smc(Linear(), 1.0, 1)).latents, plain
        )


def test_prompts_are_resampled_apart():
    """One prompt's particles all promise far more than the other's, and both get what they get alone."""
    process, steering = Exact(10), Smc(Linear(), 0.5, 8, 1.0, micro_batch=MANY)
    both = process.sample(Bell(), ["0", "50"], Key(0), steer=steering).latents
    for place, prompt in enumerate(("0", "50")):
        alone = process.sample(Bell(), [prompt], Key(0), items=[place], steer=steering).latents
        assert torch.equal(both[place : place + 1], alone)

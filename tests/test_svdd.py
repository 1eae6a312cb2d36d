"""SVDD against closed forms: the tilted Gaussian, its finite-M bias, an enumerable chain, and bits."""

from itertools import pairwise
from math import inf

import pytest
import torch

from beds import MANY, Bell, Exact, Linear, Quadratic, SoftValue, error, narrowed, run, steered
from dragontune.process import State
from dragontune.sampling import Sampler
from dragontune.seeding import Key, gumbels
from dragontune.steering.choice import pick
from dragontune.steering.svdd import Svdd
from dragontune.testing import Toy
from dragontune.unmasking import Unmasking
from enumerable import Enumerable
from tables import Listed, Table, TableValue, shares, tilted, variation

BED = Exact(20)


@pytest.mark.parametrize(
    ("candidates", "count", "known"), [(2, 20_000, 0.486), (5, 12_000, 0.798), (20, 6_000, 0.940), (100, 3_000, 0.990)]
)
def test_a_linear_reward_is_reached_with_a_bias_of_one_in_m(candidates: int, count: int, known: float):
    """m = 0, s = w = alpha = 1: the tilted mean is 1 and the variance stays 1 (systems.md 10.5)."""
    x = run(Svdd(Linear(), candidates, 1.0, SoftValue(1.0), MANY), BED, Bell(), count)[:, 0]
    mean, variance = steered(BED, Bell(), 1.0, 1.0, candidates)
    assert mean == pytest.approx(1 - 1 / candidates, abs=0.02)
    assert x.mean().item() == pytest.approx(mean, abs=3.5 * error(x))
    assert x.mean().item() == pytest.approx(known, abs=max(0.03, 3.5 * error(x)) if candidates == 100 else 0.03)
    assert x.var().item() == pytest.approx(variance, abs=3.5 * (2 / count) ** 0.5)


def test_the_posterior_mean_is_exact_for_a_linear_reward():
    """It differs from the soft value by a constant a step: the same choices, bit for bit but for rounding."""
    exact, mean = (
        run(Svdd(Linear(), 5, 1.0, *value, micro_batch=MANY), BED, Bell(0.3, 0.7), 3000, 1)
        for value in ([SoftValue(1.0)], [])
    )
    torch.testing.assert_close(exact, mean, rtol=0, atol=1e-9)


def test_another_mean_spread_and_temperature():
    """N(m + s^2 w / alpha, s^2), less one in M."""
    bell, process = Bell(-0.5, 0.6), Exact(30)
    x = run(Svdd(Linear(-2.0), 20, 0.5, SoftValue(0.5), MANY), process, bell, 3000)[:, 0]
    assert steered(process, bell, -2.0, 0.5, inf)[0] == pytest.approx(-0.5 - 2 * 0.36 / 0.5)
    mean, variance = steered(process, bell, -2.0, 0.5, 20)
    assert x.mean().item() == pytest.approx(mean, abs=3.5 * error(x))
    assert x.var().item() == pytest.approx(variance, rel=3.5 * (2 / 3000) ** 0.5)


def test_a_quadratic_reward_with_exact_values():
    """kappa 1, a 2, alpha .5: the law is N(4/3, 1/3)."""
    reward = Quadratic()
    assert narrowed(BED, Bell(), reward, 0.5, exact=True) == pytest.approx((4 / 3, 1 / 3))
    x = run(Svdd(reward, 200, 0.5, SoftValue(0.5), MANY), BED, Bell(), 1000)[:, 0]
    assert x.mean().item() == pytest.approx(1.331, abs=3 * error(x))
    assert x.var().item() == pytest.approx(0.332, rel=3 * (2 / 1000) ** 0.5)


def test_the_posterior_mean_is_too_eager_for_a_quadratic_reward():
    """1.698 and .254 in place of 1.333 and .333 (systems.md 10.5)."""
    reward = Quadratic()
    assert narrowed(BED, Bell(), reward, 0.5, exact=False) == pytest.approx((1.698, 0.254), abs=0.003)
    x = run(Svdd(reward, 200, 0.5, micro_batch=MANY), BED, Bell(), 1000)[:, 0]
    assert x.mean().item() == pytest.approx(1.698, abs=3 * error(x))
    assert x.var().item() == pytest.approx(0.254, rel=3 * (2 / 1000) ** 0.5)


def test_the_best_of_every_step_collapses_on_the_optimum():
    """Mean 2.000, variance about 4e-5."""
    x = run(Svdd(Quadratic(), 20, micro_batch=MANY), BED, Bell(), 4000)[:, 0]
    assert x.mean().item() == pytest.approx(2.0, abs=0.002)
    assert 2e-5 < x.var().item() < 8e-5


def test_an_infinite_temperature_is_the_plain_law_and_a_tiny_one_keeps_the_best():
    x = run(Svdd(Quadratic(), 5, 1e9, micro_batch=MANY), BED, Bell(), 10_000)[:, 0]
    assert x.mean().item() == pytest.approx(0, abs=3.5 * error(x))
    assert x.var().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(run(Svdd(Quadratic(), 5, inf, micro_batch=MANY), BED, Bell(), 100)[:, 0], x[:100])
    best, nearly = (run(Svdd(Quadratic(), 5, alpha, micro_batch=MANY), BED, Bell(), 500) for alpha in (0.0, 1e-12))
    assert torch.equal(best, nearly)


def test_a_soft_choice_draws_by_exp_of_value_over_alpha():
    """With the noise that is used in earnest, and not the beds'."""
    values = torch.tensor([[1.0, 0.2, -0.5, 0.9]], dtype=torch.float64)
    luck = gumbels(Key(5), torch.arange(20_000), 4)
    found = pick(values.expand(20_000, 4), 0.4, luck).bincount(minlength=4).double() / 20_000
    expected = (values[0] / 0.4).softmax(0)
    assert ((found - expected).abs() < 4 * (expected / 20_000).sqrt()).all()


def test_equal_values_are_drawn_from_evenly_and_the_best_wins_for_sure():
    values = torch.tensor([[1.0, 2.0, 2.0, -3.0, 2.0]], dtype=torch.float64).expand(6000, 5)
    found = pick(values, 0.0, gumbels(Key(1), torch.arange(6000), 5)).bincount(minlength=5)
    assert found[[0, 3]].tolist() == [0, 0]
    assert ((found[[1, 2, 4]] - 2000).abs() < 150).all()


@pytest.fixture(scope="module")
def chain() -> tuple[Enumerable, Table, torch.Tensor]:
    generator = Enumerable()
    numbers = torch.randn(27, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    return generator, Table(generator, 4), numbers


def test_the_table_is_the_process(chain):
    generator, table, _ = chain
    plain = table.sample(generator, [""] * 40_000, Key(0)).latents
    assert variation(shares(generator, plain), table.law()) < 0.015
    real = Unmasking(4).sample(generator, [""] * 2000, Key(0)).latents
    assert variation(shares(generator, real), table.law()) < 0.06


def test_the_law_of_a_discrete_chain_is_reached_as_candidates_grow(chain):
    """p exp(r / alpha) / Z with exact values: total variation below .02, falling."""
    generator, table, numbers = chain
    alpha = 0.7
    value = TableValue(table, table.soft_values(numbers, alpha))
    target, reward = tilted(table.law(), numbers, alpha), Listed(generator, numbers)
    off = [variation(table.law(), target)]
    for candidates in (2, 5, 40):
        x = run(Svdd(reward, candidates, alpha, value, MANY), table, generator, 30_000)
        off.append(variation(shares(generator, x), target))
    assert off[0] > 0.2
    assert all(b < 0.75 * a for a, b in pairwise(off)), off
    assert off[-1] < 0.02


def test_the_real_process_of_tokens_is_steered_to_the_same_law_and_revealed_tokens_stay(chain):
    generator, table, numbers = chain
    alpha, count = 0.7, 800
    value = TableValue(table, table.soft_values(numbers, alpha))
    seen: list[State] = []
    steering = Svdd(Listed(generator, numbers), 6, alpha, value, MANY)
    x = Unmasking(4).sample(generator, [""] * count, Key(3), steer=steering, visit=seen.append).latents
    assert len(seen) == 5
    for before, after in pairwise(seen):
        known = before.latents != generator.mask
        assert torch.equal(before.latents[known], after.latents[known])
    assert (x < generator.mask).all()
    target = tilted(table.law(), numbers, alpha)
    assert variation(shares(generator, x), target) < 0.4 * variation(table.law(), target)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_one_candidate_is_the_plain_sampler(alpha: float):
    for process in (Sampler(6, order=1, eta=1), Sampler(6, guidance=2, order=1, eta=1), Sampler(6)):
        plain = process.sample(Toy(), ["left", "right", "x"], Key(2)).latents
        steered = process.sample(Toy(), ["left", "right", "x"], Key(2), steer=Svdd(Linear(), 1, alpha)).latents
        assert torch.equal(plain, steered)
    generator = Enumerable()
    reward = Listed(generator, torch.arange(27.0))
    plain = Unmasking(5).sample(generator, ["a", "b"] * 5, Key(2)).latents
    assert torch.equal(Unmasking(5).sample(generator, ["a", "b"] * 5, Key(2), steer=Svdd(reward, 1)).latents, plain)


def test_every_choice_raises_the_value_that_is_looked_at():
    """With alpha 0 the mean reward grows with M, and above the plain one."""
    process, prompts = Sampler(8, order=1, eta=1), ["left"] * 200
    means = [
        process.sample(Toy(), prompts, Key(0), steer=Svdd(Linear(), m, micro_batch=MANY)).latents[:, 0].mean().item()
        for m in (1, 2, 4, 8)
    ]
    assert all(b > a + 0.05 for a, b in pairwise(means)), means

"""The value of noisy latents against closed forms on the Gaussian bed, its fit, and prompts as vectors."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dragontune.algorithms.value import Regression, Value, Visits, explained
from dragontune.data import Rows
from dragontune.generators.adapters import Lora
from dragontune.generators.pretrained import load
from dragontune.generators.tiny_music import Condition
from dragontune.schedule import Edm, Flow, Schedule
from dragontune.seeding import Key
from dragontune.testing import Toy, Weights
from tiny_models import save_tiny_music

M, S2 = torch.tensor([1.0, 0.0]), 0.09
W, AIM, KAPPA = torch.tensor([0.5, -1.0]), torch.tensor([1.0, 1.0]), 2.0


def linear(clean: Tensor) -> Tensor:
    return clean @ W


def quadratic(clean: Tensor) -> Tensor:
    return -KAPPA / 2 * (clean - AIM).square().sum(1)


@pytest.mark.parametrize("schedule", [Flow(), Edm()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("reward", [linear, quadratic], ids=lambda r: r.__name__)
def test_the_regression_finds_the_expected_reward(reward: Callable[[Tensor], Tensor], schedule: Schedule):
    """w mu_t, or -kappa/2 (|mu_t - a|^2 + 2 v_t), to 8 % of the reward's spread, and their slopes to 15 %.

    x_0 ~ N(M, 0.09) in two dimensions: mu_t = M + a s^2 / (a^2 s^2 + sigma^2) (x_t - a M).
    """
    draws = torch.Generator().manual_seed(0)
    clean, noise = M + S2**0.5 * torch.randn(20000, 2, generator=draws), torch.randn(20000, 2, generator=draws)
    t = schedule.training_times(torch.rand(20000, generator=draws).clamp(1e-3, 1 - 1e-3))
    data = Visits(schedule.diffuse(clean, noise, t), t, torch.zeros(20000, 1), reward(clean))
    value = Value.fresh(data, clean, 32, 2, Key(0))
    Regression(700, 256, 3e-3).fit(value, data, schedule, Key(0))

    x, t = data.latents[:2000].clone().requires_grad_(), t[:2000]
    a, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    spread = a**2 * S2 + sigma**2
    mu, left = M + a * S2 / spread * (x - a * M), (S2 * sigma**2 / spread)[:, 0]
    expected = linear(mu) if reward is linear else quadratic(mu) - KAPPA / 2 * 2 * left
    found = value.mean + value.std * value(x, t, torch.zeros(2000, 1), schedule)
    assert (found - expected).square().mean().sqrt() < 0.08 * value.std
    slopes, right = (torch.autograd.grad(values.sum(), x, retain_graph=True)[0] for values in (found, expected))
    assert ((slopes - right) * spread.sqrt()).norm() < 0.15 * (right * spread.sqrt()).norm()
    if reward is linear:
        torch.testing.assert_close(right, W * a * S2 / spread)


def test_explained_variance():
    """1 for all of it, 0 for the mean, less for worse, and 0 where there is none to explain."""
    score = torch.tensor([1.0, 3.0] * 5)
    data = Visits(torch.ones(10, 2), torch.zeros(10), torch.zeros(10, 1), score)
    value = Value.fresh(data, Key(0).normal(range(10), (2,)), 8, 1, Key(0))
    nn.init.zeros_(value.leave.weight)
    for bias, expected in ((0.0, 0.0), (1.0, -1.0)):
        nn.init.constant_(value.leave.bias, bias)
        assert explained(value, data, Flow(), 3) == pytest.approx(expected, abs=1e-6)
    assert explained(value, replace(data, score=torch.ones(10)), Flow(), 3) == 0


@pytest.mark.parametrize("shape", [(3,), (3, 7), (3, 4, 5)], ids=str)
def test_latents_of_any_shape(shape: tuple[int, ...]):
    latents = Key(0).normal(range(30), shape)
    data = Visits(latents, torch.linspace(0, 1, 30), torch.zeros(30, 0), latents.flatten(1).mean(1))
    value = Value.fresh(data, latents, 8, 2, Key(0))
    Regression(40, 10, 1e-2).fit(value, data, Flow(), Key(0))
    assert explained(value, data, Flow(), 7) > 0.2
    again = Value.of(value.state_dict(), latents.device)
    assert torch.equal(again(latents, data.t, data.prompt, Flow()), value(latents, data.t, data.prompt, Flow()))


def test_the_fit_ends_where_held_out_rows_are_predicted_best():
    """Scores that are noise: more steps only learn them by heart."""
    latents, score = Key(0).normal(range(60), (2,)), Key(1).normal(range(60), (1,))[:, 0]
    data = Visits(latents, torch.zeros(60), torch.zeros(60, 1), score)
    shown, held = data[torch.arange(30)], data[torch.arange(30, 60)]
    fits = []
    for given in (None, held):
        value = Value.fresh(shown, latents, 64, 1, Key(0))
        Regression(600, 30, 1e-2).fit(value, shown, Flow(), Key(0), given)
        fits.append(explained(value, held, Flow(), 30))
    assert fits[0] < -0.5
    assert fits[1] > fits[0] + 0.3


@dataclass(frozen=True, eq=False)
class Told(Rows):
    tokens: Float[Tensor, " n tokens width"]
    length: Float[Tensor, " n"]
    ids: Int[Tensor, " n"]
    deeper: Weights


def test_prompt_vectors():
    """Means over tokens, columns side by side, whole numbers left out; with a mask only what is real."""
    tokens = torch.arange(12.0).view(2, 3, 2)
    told = Told(tokens, torch.tensor([7.0, 8.0]), torch.tensor([1, 2]), Weights(torch.eye(2)))
    expected = torch.tensor([[2.0, 3.0, 7.0, 1.0, 0.0], [8.0, 9.0, 8.0, 0.0, 1.0]])
    assert torch.equal(Toy().prompt_vectors(told), expected)


def test_prompt_vectors_of_tiny_music_do_not_see_the_padding(tmp_path: Path):
    save_tiny_music(tmp_path)
    generator = load(str(tmp_path), Lora(rank=2))
    condition = generator.encode_prompts(["a reel in G major", "a jig"])
    assert isinstance(condition, Condition)
    found = generator.prompt_vectors(condition)
    for row, count in enumerate(condition.mask.sum(1).tolist()):
        torch.testing.assert_close(found[row], condition.text[row, :count].mean(0))

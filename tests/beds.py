"""A bed with known answers for steering: a Gaussian with its exact reverse kernel.

Draws are a hash of (key, step, item), so that many thousand particles cost no loop and yet each has noise of its own.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from hashlib import sha256
from math import inf, sqrt
from typing import Any
from unittest.mock import patch

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.costs import Costs
from dragontune.data import Media, Rows, Samples
from dragontune.generators.base import Generator
from dragontune.process import ReverseProcess, State
from dragontune.rewards.base import DifferentiableReward, Features, InstanceReward, Reward
from dragontune.sampling import Estimates, Transition
from dragontune.schedule import Cosine, Schedule
from dragontune.seeding import Key
from dragontune.steering import walk
from dragontune.steering.base import Steering
from dragontune.steering.foresight import Foresight, look_costs


def uniforms(key: Key, items: Tensor) -> Tensor:
    """A number in (0, 1) for each item, float64 (SplitMix64's last steps)."""
    start = int.from_bytes(sha256(repr((key.seed, key.path)).encode()).digest()[:8], "little", signed=True)
    x = (items + 1) * -7046029254386353131 + start
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    x = x ^ ((x >> 31) & ((1 << 33) - 1))
    return (((x >> 11) & ((1 << 53) - 1)).double() + 0.5) / 2**53


def normals(key: Key, items: Tensor, dim: int) -> Tensor:
    return torch.stack([torch.special.ndtri(uniforms(key.fold("axis", axis), items)) for axis in range(dim)], 1)


@dataclass(frozen=True, eq=False)
class Centres(Rows):
    means: Float[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class Bell(Generator):
    """x_0 ~ N(m, s^2) on every axis; a prompt that is a number shifts the mean by it. Float64, nothing to train."""

    mean: float = 0.0
    spread: float = 1.0
    schedule: Schedule = field(default_factory=Cosine)
    latent_shape: tuple[int, ...] = (1,)
    name: str = "bell"
    sample_rate: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def encode_prompts(self, prompts: Sequence[str]) -> Centres:
        known = {prompt: float(prompt) if prompt else 0.0 for prompt in set(prompts)}
        return Centres(self.mean + torch.tensor([known[prompt] for prompt in prompts], dtype=torch.float64))

    def denoise(self, noisy: Tensor, t: Tensor, condition: Rows) -> Tensor:
        return self.estimate(noisy, self.schedule.alpha(t.double()), self.schedule.sigma(t.double()), condition)

    def estimate(self, noisy: Tensor, alpha: Tensor, sigma: Tensor, condition: Rows) -> Tensor:
        """E[x_0 | x_t], systems.md 0.4."""
        assert isinstance(condition, Centres)
        a, s, m = alpha.view(-1, 1), sigma.view(-1, 1), condition.means[:, None]
        return m + a * self.spread**2 / (a**2 * self.spread**2 + s**2) * (noisy - a * m)

    def decode(self, latents: Tensor) -> Media:
        return latents * 1

    def encode(self, media: Media) -> Tensor:
        assert isinstance(media, Tensor)
        return media

    def parameters(self):
        return iter(())

    def reference(self):
        return nullcontext()

    def scaled(self, gamma: float):
        return nullcontext()

    def save_adapter(self, folder: str) -> None:
        raise NotImplementedError

    def load_adapter(self, folder: str) -> None:
        raise NotImplementedError

    def mix_adapters(self, parts: Any) -> None:
        raise NotImplementedError

    def rescale(self, gamma: float) -> None:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Hop(Transition):
    """A Gaussian step whose noise is a hash."""

    def draw(self, key: Key) -> Tensor:
        noise = normals(key.fold("step", int(self.step[0])), self.item, self.mean.shape[1])
        return self.mean + self.std[:, None] * noise


@dataclass(frozen=True)
class Exact(ReverseProcess):
    """The exact reverse kernel p(x_{t-1} | x_t) of a `Bell` (systems.md 0.4); every step is random, the last, too."""

    steps: int = 20

    @property
    def random_steps(self) -> int:
        return self.steps

    def calls(self, count: int) -> int:
        return count * self.steps

    def coefficients(self, bell: Bell) -> tuple[Tensor, Tensor]:
        """Alpha and sigma before each step, and after the last."""
        times = bell.schedule.times(self.steps)
        return bell.schedule.alpha(times), bell.schedule.sigma(times)

    def kernel(self, bell: Bell) -> tuple[Tensor, Tensor, Tensor]:
        """Of each step: a, the gain of x_t - a a' m, and the variance."""
        a, s = self.coefficients(bell)
        ratio, q = a[:-1] / a[1:], s[:-1] ** 2 - (a[:-1] / a[1:] * s[1:]) ** 2
        spread = a[1:] ** 2 * bell.spread**2 + s[1:] ** 2
        total = ratio**2 * spread + q
        return ratio, spread * ratio / total, spread - (spread * ratio) ** 2 / total

    def noise(self, generator: Generator, key: Key, items: Tensor) -> Tensor:
        assert isinstance(generator, Bell)
        a, s = self.coefficients(generator)
        assert a[0] < 1e-9, "what the start does not know of the mean must be nothing"
        return (a[0] ** 2 * generator.spread**2 + s[0] ** 2).sqrt() * normals(
            key.fold("start"), items, generator.latent_shape[0]
        )

    def start(self, generator: Generator, prompts: Sequence[str], key: Key, items: Sequence[int]) -> State:
        item = torch.tensor(list(items), dtype=torch.long)
        latents, condition = self.noise(generator, key, item), generator.encode_prompts(prompts)
        return State(latents, condition, None, torch.zeros_like(item), item, Estimates.none(latents))

    def transition(self, generator: Generator, state: State) -> Hop:
        assert isinstance(generator, Bell)
        k, m = state.step, state.condition.means[:, None]  # pyright: ignore[reportAttributeAccessIssue]
        a, s = self.coefficients(generator)
        clean = generator.estimate(state.latents, a[k], s[k], state.condition)
        ratio, gain, variance = (each[k] for each in self.kernel(generator))
        after = a[k + 1][:, None]
        mean = after * m + gain[:, None] * (state.latents - ratio[:, None] * after * m)
        return Hop(mean, variance.sqrt(), clean, k, state.item, Estimates.none(clean))


@dataclass(frozen=True)
class Linear(InstanceReward[Tensor], DifferentiableReward[Tensor]):
    """w x of the first axis."""

    w: float = 1.0

    def encode(self, samples: Samples) -> Tensor:
        assert isinstance(samples.media, Tensor)
        return samples.media[:, 0]

    def score(self, features: Tensor) -> Tensor:
        return self.w * features

    def soft(self, mean: Tensor, variance: Tensor, alpha: float) -> Tensor:
        """The soft value, with x_0 ~ N(mean, variance)."""
        return self.w * mean + self.w**2 * variance / (2 * alpha)


@dataclass(frozen=True)
class Quadratic(InstanceReward[Tensor], DifferentiableReward[Tensor]):
    """-kappa / 2 (x - a)^2 of the first axis."""

    kappa: float = 1.0
    a: float = 2.0

    def encode(self, samples: Samples) -> Tensor:
        assert isinstance(samples.media, Tensor)
        return samples.media[:, 0]

    def score(self, features: Tensor) -> Tensor:
        return -self.kappa / 2 * (features - self.a).square()

    def soft(self, mean: Tensor, variance: Tensor, alpha: float) -> Tensor:
        narrow = 1 + self.kappa * variance / alpha
        return -self.kappa / 2 * (mean - self.a).square() / narrow - alpha / 2 * narrow.log()


@dataclass(frozen=True)
class SoftValue(Foresight):
    """The exact soft value of `Linear` or `Quadratic` on the Gaussian bed at temperature `alpha`."""

    alpha: float = 1.0

    def look(self, walk: walk.Walk, reward: Reward, beams: walk.Beams) -> Features:
        assert isinstance(walk.process, Exact)
        assert isinstance(walk.generator, Bell)
        assert isinstance(reward, Linear | Quadratic)
        a, s = (each[beams.state.step] for each in walk.process.coefficients(walk.generator))
        mean = walk.generator.estimate(beams.state.latents, a, s, beams.state.condition)[:, 0]
        variance = walk.generator.spread**2 * s**2 / (a**2 * walk.generator.spread**2 + s**2)
        return reward.soft(mean, variance, self.alpha)

    def values(self, reward: Reward, seen: Features, prompts: tuple[str, ...], shape: tuple[int, ...]) -> Tensor:
        assert isinstance(seen, Tensor)
        return seen.view(shape)

    def costs(self, process: ReverseProcess, reward: Reward, step: int) -> Costs:
        return look_costs(reward)


def chosen(tilt: float, candidates: int, draws: int = 200_000) -> tuple[float, float]:
    """Mean and variance of one of M standard normal numbers z, kept with probability proportional to exp(tilt z)."""
    z = torch.randn(max(1, draws // candidates), candidates, generator=torch.Generator().manual_seed(1)).double()
    gain = (tilt * z).softmax(1) - 1 / candidates  # against the plain mean, which is known
    mean = (gain * z).sum(1).mean().item()
    return mean, 1 + (gain * z.square()).sum(1).mean().item() - mean**2


def steered(process: Exact, bell: Bell, w: float, alpha: float, candidates: float) -> tuple[float, float]:
    """Mean and variance that choosing among M by exact values leads to, for the reward w x.

    The value is linear in the state, so what is kept does not depend on where the particle is.
    """
    a, s = process.coefficients(bell)
    slopes = w * a * bell.spread**2 / (a**2 * bell.spread**2 + s**2) / alpha
    _, gains, variances = process.kernel(bell)
    mean, variance = 0.0, (a[0] ** 2 * bell.spread**2 + s[0] ** 2).item()
    for k in range(process.steps):
        std = variances[k].sqrt().item()
        tilt = slopes[k + 1].item() * std
        of_kept = (tilt, 1.0) if candidates == inf else chosen(tilt, int(candidates))
        mean = gains[k].item() * mean + std * of_kept[0]
        variance = gains[k].item() ** 2 * variance + std**2 * of_kept[1]
    return bell.mean + mean, variance


def narrowed(process: Exact, bell: Bell, reward: Quadratic, alpha: float, exact: bool) -> tuple[float, float]:
    """Mean and variance that infinitely many candidates lead to, by exact values or by those of the posterior mean.

    Each kernel, a Gaussian, is multiplied by the exponential of a quadratic. For m = 0 and s = 1.
    """
    a, s = process.coefficients(bell)
    _, gains, variances = process.kernel(bell)
    mean, variance = 0.0, (a[0] ** 2 + s[0] ** 2).item()
    for k in range(process.steps):
        c, left = (each[k + 1].item() for each in (a / (a**2 + s**2), s**2 / (a**2 + s**2)))
        kappa = reward.kappa / (1 + reward.kappa * left / alpha) if exact else reward.kappa
        gain, q = gains[k].item(), variances[k].item()
        precision = 1 / q + kappa * c**2 / alpha
        mean = (gain * mean / q + kappa * c * reward.a / alpha) / precision
        variance = (gain / q / precision) ** 2 * variance + 1 / precision
    return mean, variance


def hashed(key: Key, items: Tensor, count: int) -> Tensor:
    """`seeding.gumbels` without a loop over items."""
    found = torch.stack([uniforms(key.fold("column", column), items) for column in range(count)], 1)
    return -(-found.log()).log()


def run(steering: Steering, process: ReverseProcess, generator: Generator, count: int, seed: int = 0) -> Tensor:
    """The latents of `count` items of one prompt; what a particle is chosen by is hashed, too."""
    with patch.object(walk, "gumbels", hashed):
        return process.sample(generator, [""] * count, Key(seed), steer=steering).latents


MANY = 10**9
"""A micro-batch that holds everything."""


def error(values: Tensor) -> float:
    """The standard error of a mean."""
    return values.double().std().item() / sqrt(len(values))

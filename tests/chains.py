"""A linear denoiser with weights of its own for every step, in double precision, and the chain it makes, by hand."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dragontune.algorithms.base import Algorithm
from dragontune.data import Media, Rows, Samples
from dragontune.generators.base import Generator
from dragontune.rewards.base import DifferentiableReward, DistributionReward, InstanceReward
from dragontune.sampling import Sampler
from dragontune.schedule import Flow, Schedule
from dragontune.seeding import Key


@dataclass(frozen=True, eq=False)
class Nothing(Rows):
    places: Float[Tensor, " n"]


class Chain(Generator):
    """Step k of `steps` estimates A_k x + b_k."""

    def __init__(self, steps: int, dim: int = 2, seed: int = 0, schedule: Schedule | None = None):
        self.name, self.device, self.sample_rate = "chain", torch.device("cpu"), 1
        self.schedule, self.latent_shape, self.steps = schedule or Flow(), (dim,), steps
        draws = torch.Generator().manual_seed(seed)
        self.matrices = [nn.Parameter(0.5 * torch.randn(dim, dim, generator=draws).double()) for _ in range(steps)]
        self.shifts = [nn.Parameter(0.5 * torch.randn(dim, generator=draws).double()) for _ in range(steps)]
        self.frozen = [w.detach().clone() for w in (*self.matrices, *self.shifts)]
        self.off, self.calls = False, 0

    def encode_prompts(self, prompts: Sequence[str]) -> Nothing:
        return Nothing(torch.zeros(len(prompts)))

    def denoise(
        self, noisy: Float[Tensor, " n *latent"], t: Float[Tensor, " n"], condition: Rows
    ) -> Float[Tensor, " n *latent"]:
        self.calls += len(noisy)
        times = self.schedule.times(self.steps)[:-1]
        found = []
        for x, time in zip(noisy, t, strict=True):
            k = int((times - time.double()).abs().argmin())
            matrix, shift = (
                (self.frozen[k], self.frozen[self.steps + k]) if self.off else (self.matrices[k], self.shifts[k])
            )
            found.append(matrix.to(x) @ x + shift.to(x))
        return torch.stack(found)

    def decode(self, latents: Float[Tensor, " n *latent"]) -> Media:
        return latents * 1

    def encode(self, media: Media) -> Float[Tensor, " n *latent"]:
        assert isinstance(media, Tensor)
        return media

    def parameters(self) -> Iterator[nn.Parameter]:
        yield from self.matrices
        yield from self.shifts

    @contextmanager
    def reference(self) -> Iterator[None]:
        before, self.off = self.off, True
        try:
            yield
        finally:
            self.off = before

    def scaled(self, gamma: float):
        raise NotImplementedError

    def rescale(self, gamma: float) -> None:
        raise NotImplementedError

    def mix_adapters(self, parts: Any) -> None:
        raise NotImplementedError

    def save_adapter(self, folder: str) -> None:
        raise NotImplementedError

    def load_adapter(self, folder: str) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Near(InstanceReward[Tensor], DifferentiableReward[Tensor]):
    """-|x - goal|^2 / 2."""

    goal: tuple[float, ...] = (2.0, -1.0)

    def encode(self, samples: Samples) -> Tensor:
        assert isinstance(samples.media, Tensor)
        return samples.media

    def score(self, features: Tensor) -> Tensor:
        return -(features - torch.tensor(self.goal).to(features)).square().sum(1) / 2


@dataclass(frozen=True)
class Along(InstanceReward[Tensor], DifferentiableReward[Tensor]):
    """w.x"""

    w: tuple[float, ...] = (1.0, -0.5)

    def encode(self, samples: Samples) -> Tensor:
        assert isinstance(samples.media, Tensor)
        return samples.media

    def score(self, features: Tensor) -> Tensor:
        return features @ torch.tensor(self.w).to(features)


@dataclass(frozen=True)
class Together(DistributionReward[Tensor], DifferentiableReward[Tensor]):
    """The set's mean near a goal, its spread near 1: every item matters to every other."""

    def encode(self, samples: Samples) -> Tensor:
        assert isinstance(samples.media, Tensor)
        return samples.media.tanh()

    def score(self, features: Tensor) -> Tensor:
        x = features.double()
        return -(x.mean(0) - 0.3).square().sum() - (x.var(0, correction=0) - 1).square().sum() * x.norm()


def gradient(
    algorithm: Algorithm[Any, Any], prompts: Sequence[str], key: Key, micro_batch: int = 1000
) -> tuple[list[Tensor], dict[str, float]]:
    """What one update follows, as the loop would compute it."""
    weights = list(algorithm.parameters())
    with torch.no_grad():
        experience, _ = algorithm.collect(prompts, key.fold("collect"))
        prepared = algorithm.prepare(experience, key.fold("update"))
    total, numbers = [torch.zeros_like(weight) for weight in weights], dict[str, float]()
    for part in prepared.chunks(micro_batch):
        loss, metrics = algorithm.loss(part)
        share = len(part) / len(prepared)
        for sum_, slope in zip(total, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
            sum_ += share * (torch.zeros_like(sum_) if slope is None else slope)
        for name, value in {**metrics, "loss": loss.item()}.items():
            numbers[name] = numbers.get(name, 0.0) + share * value
    return total, numbers


def walk(chain: Chain, noise: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The first-order deterministic sampler by its formula, in double precision: x <- k x + (a' - a k) (A x + b)."""
    times = chain.schedule.times(chain.steps)
    a, s = chain.schedule.alpha(times), chain.schedule.sigma(times)
    x = noise.double()
    for k in range(chain.steps):
        keep = s[k + 1] / s[k]
        x = keep * x + (a[k + 1] - a[k] * keep) * (x @ weights[k].T + weights[chain.steps + k])
    return x


def first_order(steps: int, **more: Any) -> Sampler:
    return Sampler(steps=steps, order=1, **more)

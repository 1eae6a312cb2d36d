"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) eps, with t = 1 noise and t = 0 clean.

Coefficients are elementwise in `t`, on any device, in the precision of `t`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import pi

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

_TAIL = 1e-3
"""`Edm`: the part of [0, 1] that lies below `sigma_min`."""


class Schedule(ABC):
    """How much of the data and how much noise there is at each time, and how training draws times."""

    @abstractmethod
    def alpha(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """What is left of the data; falls from 1 at t = 0 (or stays 1)."""

    @abstractmethod
    def sigma(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """The standard deviation of the noise; exactly 0 at t = 0, increasing."""

    @abstractmethod
    def training_times(self, uniforms: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """Times distributed as in the model's training: the inverse distribution function of numbers in [0, 1)."""

    def weight(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """Weight of a squared error of the clean estimate: 1/sigma^2, which makes it the error of the velocity."""
        return self.sigma(t).clamp(min=1e-3) ** -2

    def times(self, steps: int) -> Float[Tensor, " times"]:
        """The `steps + 1` times a sampler visits, from 1 to 0 (float64, CPU)."""
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)

    def log_snr(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """log(alpha^2 / sigma^2): infinite at t = 0."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def diffuse(
        self, clean: Float[Tensor, " n *latent"], noise: Float[Tensor, " n *latent"], t: Float[Tensor, " n"]
    ) -> Float[Tensor, " n *latent"]:
        """The noisy latents at times `t`."""
        return expand(self.alpha(t), clean) * clean + expand(self.sigma(t), clean) * noise


@dataclass(frozen=True)
class Edm(Schedule):
    """EDM (Karras et al. 2022): the data unscaled, sigma from `sigma_max` to `sigma_min`, then 0.

    Time is linear in sigma^(1/rho) (their eq. 5), and below `sigma_min` (the last thousandth) linear in sigma, so that
    it has an inverse. Training draws sigma = exp(N(p_mean, p_std^2)), cut to [sigma_min, sigma_max].
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    p_mean: float = -0.4
    p_std: float = 1.0
    sigma_data: float = 0.5

    def alpha(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """1: the data is not scaled."""
        return torch.ones_like(t)

    def sigma(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """Karras et al. eq. 5, with a linear tail to 0."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        main = (low + (t - _TAIL).clamp(min=0) / (1 - _TAIL) * (high - low)) ** self.rho
        return torch.where(t < _TAIL, t / _TAIL * self.sigma_min, main)

    def time(self, sigma: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """The time at which the noise is `sigma`: the inverse of `sigma`."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        main = _TAIL + (1 - _TAIL) * (sigma.clamp(min=self.sigma_min) ** (1 / self.rho) - low) / (high - low)
        return torch.where(sigma < self.sigma_min, sigma / self.sigma_min * _TAIL, main)

    def training_times(self, uniforms: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """The logarithm of sigma is normal."""
        sigma = (self.p_mean + self.p_std * torch.special.ndtri(uniforms)).exp()
        return self.time(sigma.clamp(self.sigma_min, self.sigma_max))

    def weight(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (Karras et al., table 1)."""
        sigma = self.sigma(t).clamp(min=self.sigma_min)
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2

    def times(self, steps: int) -> Float[Tensor, " times"]:
        """sigma_max to sigma_min in `steps` values, then 0."""
        karras = torch.linspace(1, _TAIL, steps, dtype=torch.float64)
        return torch.cat([karras, karras.new_zeros(1)])


@dataclass(frozen=True)
class Cosine(Schedule):
    """Variance preserving with a cosine (Stable Audio Open's training): uniform times."""

    def alpha(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """cos(pi t / 2)."""
        return torch.cos(t * (pi / 2)).clamp(min=0)

    def sigma(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """sin(pi t / 2)."""
        return torch.sin(t * (pi / 2))

    def training_times(self, uniforms: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """Uniform."""
        return uniforms


@dataclass(frozen=True)
class Flow(Schedule):
    """Rectified flow (Liu et al. 2022): a straight line from data to noise. Logit-normal times (Esser et al. 2024)."""

    def alpha(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """1 - t."""
        return 1 - t

    def sigma(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """The time itself."""
        return t

    def training_times(self, uniforms: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """logit(t) is standard normal."""
        return torch.special.ndtri(uniforms.clamp(1e-6, 1 - 1e-6)).sigmoid()


def expand(values: Shaped[Tensor, " n"], like: Shaped[Tensor, " n *latent"]) -> Shaped[Tensor, " n *ones"]:
    """Append axes to per-item `values` until they broadcast over `like`."""
    return values.view(values.shape + (1,) * (like.ndim - values.ndim))

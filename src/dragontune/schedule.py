"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) eps, with t = 1 noise and t = 0 clean.

Coefficients are elementwise in `t`, on any device, in the precision of `t`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from math import pi
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dragontune.errors import InputError

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

    def start(self) -> float:
        """The standard deviation of the noise that samplers start from: that at t = 1."""
        return self.sigma(torch.ones(1)).item()

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


@dataclass(frozen=True)
class ShiftedFlow(Schedule):
    """The process of `Flow`, visited at s t / (1 + (s - 1) t), s the `shift`, of evenly spaced t.

    These go from 1 to `last`, or, if not `closed`, from 1 towards it, one step short. With a `terminal` time what was
    shifted is stretched until the last of it is there.
    """

    shift: float = 1.0
    last: float = 0.001
    closed: bool = True
    terminal: float | None = None

    def alpha(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """1 - t."""
        return Flow().alpha(t)

    def sigma(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """The time itself."""
        return Flow().sigma(t)

    def training_times(self, uniforms: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """Those of `Flow`, shifted."""
        return self.shifted(Flow().training_times(uniforms))

    def times(self, steps: int) -> Float[Tensor, " times"]:
        """As diffusers' FlowMatchEulerDiscreteScheduler (`closed`) or UniPCMultistepScheduler (not), then 0."""
        spaced = torch.linspace(1, self.last, steps + (not self.closed), dtype=torch.float64)[:steps]
        visited = self.shifted(spaced)
        if self.terminal is not None and steps > 1:
            visited = 1 - (1 - visited) * (1 - self.terminal) / (1 - visited[-1])
        return torch.cat([visited, visited.new_zeros(1)])

    def shifted(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """Nearer to the noise where `shift` is over 1."""
        return self.shift * t / (1 + (self.shift - 1) * t)


@dataclass(frozen=True, eq=False)
class Discrete(Schedule):
    """Variance preserving in N discrete times (Ho et al. 2020): the i-th, from 0, is t = (i + 1) / N.

    `products` are the products of 1 - beta up to each time, " N"; between two times sigma / alpha is interpolated
    linearly, and below the first down to 0. A sampler visits times in one of the ways of Lin et al. 2024 (table 2),
    as diffusers' schedulers do: `leading` ones are `offset` later, `linspace` ones are rounded if `whole`, and if
    `short`, the last of either is left out of one more. It ends at t = 0, or, if not `to_clean`, at the first time.
    `prediction` is what the network was trained to say, and decides `weight`.
    """

    products: Float[Tensor, " N"]
    spacing: Literal["leading", "trailing", "linspace"] = "leading"
    offset: int = 1
    to_clean: bool = True
    prediction: Literal["epsilon", "velocity"] = "epsilon"
    whole: bool = True
    short: bool = False
    unit: bool = True
    """Samplers start from noise of standard deviation 1, although some of the data is left; else from sigma(1)."""
    _tables: dict[tuple[torch.device, torch.dtype], Tensor] = field(default_factory=dict, init=False, repr=False)

    def alpha(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """1 / sqrt(1 + (sigma / alpha)^2)."""
        return (1 + self.ratio(t) ** 2).rsqrt()

    def sigma(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """sqrt(1 - alpha^2)."""
        ratio = self.ratio(t)
        return ratio * (1 + ratio**2).rsqrt()

    def ratio(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """Sigma / alpha."""
        table = self._table(t.device, t.dtype)
        place = (t * len(self.products)).clamp(0, len(self.products))
        low = place.floor().clamp(max=len(self.products) - 1)
        return torch.lerp(table[low.long()], table[low.long() + 1], place - low)

    def index(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """The number of a time, as networks are told it: whole where it is all but whole, and 0 at least."""
        place = t * len(self.products) - 1
        return torch.where((place - place.round()).abs() < 1e-3, place.round(), place).clamp(min=0)

    def training_times(self, uniforms: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """One of the N, all equally likely."""
        count = len(self.products)
        return ((uniforms * count).floor().clamp(max=count - 1) + 1) / count

    def start(self) -> float:
        """1, or sigma(1)."""
        return 1.0 if self.unit else self.sigma(torch.ones(1, dtype=torch.float64)).item()

    def weight(self, t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
        """alpha^2 / sigma^2, which makes it the error of the noise, or 1 / sigma^2, the error of the velocity."""
        sigma = self.sigma(t).clamp(min=1e-3)
        return (self.alpha(t) / sigma) ** 2 if self.prediction == "epsilon" else sigma**-2

    def times(self, steps: int) -> Float[Tensor, " times"]:
        """As diffusers' schedulers.

        Raises:
            InputError: more steps than there are times.
        """
        count, spaced = len(self.products), steps + self.short
        match self.spacing:
            case "leading":
                places = torch.arange(spaced, dtype=torch.float64).flip(0) * (count // spaced) + self.offset
            case "trailing":
                places = torch.from_numpy(np.arange(count, 0, -count / steps)).round() - 1  # ties fall as NumPy's do
            case "linspace":
                places = torch.linspace(count - 1, 0, spaced, dtype=torch.float64)
                places = places.round() if self.whole else places
        places = places[:steps]
        if places[0] > count - 1 or (places.diff() >= 0).any():
            raise InputError(f"expected fewer sampler steps than {steps} for a model of {count} times; lower them")
        last = 0.0 if self.to_clean else 1 / count
        return torch.cat([(places + 1) / count, places.new_full((1,), last)])

    def _table(self, device: torch.device, dtype: torch.dtype) -> Float[Tensor, " times"]:
        """Sigma / alpha at t = 0, 1 / N ... 1; once on each device, so that steps need not wait for it."""
        if (device, dtype) not in self._tables:
            known = ((1 - self.products) / self.products).sqrt()
            self._tables[device, dtype] = torch.cat([known.new_zeros(1), known]).to(device, dtype)
        return self._tables[device, dtype]


def expand(values: Shaped[Tensor, " n"], like: Shaped[Tensor, " n *latent"]) -> Shaped[Tensor, " n *ones"]:
    """Append axes to per-item `values` until they broadcast over `like`."""
    return values.view(values.shape + (1,) * (like.ndim - values.ndim))

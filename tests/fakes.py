"""A generator of tones and rewards with known answers, for tests of evaluation and report."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dragontune.data import Media, Rows, Samples
from dragontune.generators.base import Generator
from dragontune.media.audio import Audio
from dragontune.rewards.base import DistributionReward, Features, InstanceReward
from dragontune.schedule import Edm, Schedule


@dataclass(frozen=True, eq=False)
class Lengths(Rows):
    lengths: Float[Tensor, " n"]


class Tones(Generator):
    """Latents are (pitch, brightness) near a mean that the adapter shifts; media is a tone of that pitch."""

    def __init__(self, shift: float = 1.0, seconds: float = 0.5):
        self.name = "tones"
        self.schedule: Schedule = Edm()
        self.latent_shape = (2,)
        self.sample_rate = 16000
        self.device = torch.device("cpu")
        self.shift = nn.Parameter(torch.tensor([shift, shift]))
        self.gamma, self.seconds = 1.0, seconds

    def encode_prompts(self, prompts: Sequence[str]) -> Rows:
        return Lengths(torch.tensor([float(len(prompt) % 7) for prompt in prompts]))

    def denoise(
        self, noisy: Float[Tensor, " n *latent"], t: Float[Tensor, " n"], condition: Rows
    ) -> Float[Tensor, " n *latent"]:
        assert isinstance(condition, Lengths)
        mean = self.gamma * self.shift + 0.1 * condition.lengths[:, None]
        variance, sigma = 0.25, self.schedule.sigma(t)[:, None]
        return mean + variance / (variance + sigma**2) * (noisy - mean)

    def decode(self, latents: Float[Tensor, " n *latent"]) -> Media:
        time = torch.arange(int(self.seconds * self.sample_rate)) / self.sample_rate
        pitch = 330 * 2 ** latents[:, :1].clamp(-3, 3)
        bright = latents[:, 1:].sigmoid()
        tone = sum(bright**k * (2 * torch.pi * pitch * (k + 1) * time).sin() for k in range(5))
        return Audio((0.15 * tone * (-2 * time).exp())[:, None].float(), self.sample_rate)

    def encode(self, media: Media) -> Float[Tensor, " n *latent"]:
        raise NotImplementedError

    def parameters(self) -> Iterator[nn.Parameter]:
        yield self.shift

    @contextmanager
    def scaled(self, gamma: float) -> Iterator[None]:
        before, self.gamma = self.gamma, gamma
        try:
            yield
        finally:
            self.gamma = before

    @contextmanager
    def reference(self) -> Iterator[None]:
        with self.scaled(0):
            yield

    def save_adapter(self, folder: str) -> None:
        raise NotImplementedError

    def load_adapter(self, folder: str) -> None:
        raise NotImplementedError

    def mix_adapters(self, parts: Sequence[tuple[str, float]]) -> None:
        raise NotImplementedError

    def rescale(self, gamma: float) -> None:
        with torch.no_grad():
            self.shift.mul_(gamma)


@dataclass(frozen=True)
class Pitch(InstanceReward):
    """The first latent, times a sign; looks at no media."""

    sign: float = 1.0

    @property
    def needs_media(self) -> bool:
        return False

    def encode(self, samples: Samples) -> Features:
        return samples.latents[:, 0]

    def score(self, features: Features) -> Float[Tensor, " n"]:
        assert isinstance(features, Tensor)
        return self.sign * features


@dataclass(frozen=True)
class Loudness(InstanceReward):
    """Needs media."""

    def encode(self, samples: Samples) -> Features:
        assert isinstance(samples.media, Audio)
        return samples.media.loudness()

    def score(self, features: Features) -> Float[Tensor, " n"]:
        assert isinstance(features, Tensor)
        return features


@dataclass(frozen=True)
class Centre(DistributionReward):
    """Minus the squared distance of the set's mean to a goal."""

    goal: float = 1.0
    least: int = 2

    @property
    def distance(self) -> bool:
        return True

    @property
    def minimum(self) -> int:
        return self.least

    def encode(self, samples: Samples) -> Features:
        return samples.latents

    def score(self, features: Features) -> Float[Tensor, ""]:
        assert isinstance(features, Tensor)
        return -(features.mean(0) - self.goal).square().sum().double()


@dataclass(frozen=True)
class Spread(DistributionReward):
    """The standard deviation of the set; NaN on request."""

    broken: bool = False

    def encode(self, samples: Samples) -> Features:
        return samples.latents

    def score(self, features: Features) -> Float[Tensor, ""]:
        assert isinstance(features, Tensor)
        return features.std() * (float("nan") if self.broken else 1)

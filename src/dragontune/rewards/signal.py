"""Rewards that are measured on the signal alone: loudness, brightness, tempo, key. Nothing to download or to trust.

With a `target` a score is minus the distance to it, so that the best possible score, 0, is known: good for trying out
methods, and for asking for one property of the sound. None of them is a measure of quality: tune towards one alone, and
the rest of the music is free to suffer. Left out: gradients.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.data import Samples
from dragontune.errors import InputError, NonFiniteError
from dragontune.media import descriptors
from dragontune.media.audio import Audio
from dragontune.media.kinds import expect
from dragontune.media.loudness import integrated_loudness
from dragontune.rewards.base import InstanceReward


class Signal(InstanceReward[Tensor]):
    """Something measured on each clip: the value, or minus its distance to `target` if there is one."""

    target: float | None

    def __post_init__(self) -> None:
        if self.target is not None and not math.isfinite(self.target):
            raise InputError(
                f"expected a finite target, got {self.target}; leave it out to ask for as much as possible"
            )

    @property
    def distance(self) -> bool:
        """With a target."""
        return self.target is not None

    @abstractmethod
    def measure(self, audio: Audio) -> Float[Tensor, " n"]:
        """The value of each clip, float64 on the CPU."""

    @torch.no_grad()
    def encode(self, samples: Samples) -> Float[Tensor, " n"]:
        """The values, one clip after another.

        Raises:
            NonFiniteError: a clip holds NaN or infinity; the message names it.
        """
        return torch.cat([self.measure(clip) for clip in finite_audio(samples, self.label).chunks(1)])

    def score(self, features: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The values, or minus their distances to the target."""
        return features if self.target is None else -(features - self.target).abs()


@dataclass(frozen=True, eq=False)
class Loudness(Signal):
    """Integrated loudness in LUFS (ITU-R BS.1770-4): streaming services ask for about -14, broadcasters for -23.

    -70 for silence; at most about 6 for stereo within full scale.

    >>> Loudness(target=-14.0)(samples)
    tensor([-0.6, -9.2], dtype=torch.float64)
    """

    target: float | None = None

    def measure(self, audio: Audio) -> Float[Tensor, " n"]:
        """In LUFS."""
        return integrated_loudness(audio)


@dataclass(frozen=True, eq=False)
class SpectralCentroid(Signal):
    """Brightness: the power-weighted mean frequency in hertz, from 0 (also for silence) to half the sample rate."""

    target: float | None = None

    def measure(self, audio: Audio) -> Float[Tensor, " n"]:
        """In hertz."""
        return descriptors.spectral_centroid(audio)


@dataclass(frozen=True, eq=False)
class Tempo(Signal):
    """The strongest period of the onsets in beats a minute, between `lowest` and `highest`.

    0 for silence and where nothing starts. Half or double what a listener would tap is the usual mistake; narrow the
    range where you know better. A clip needs a few beats: twice the period at the very least.
    """

    target: float | None = None
    lowest: float = 50.0
    highest: float = 200.0

    def __post_init__(self) -> None:
        Signal.__post_init__(self)
        if not 10 <= self.lowest < self.highest <= 600:
            raise InputError(
                f"expected 10 <= lowest < highest <= 600 beats a minute, got {self.lowest} and {self.highest}; widen it"
            )

    def measure(self, audio: Audio) -> Float[Tensor, " n"]:
        """In beats a minute."""
        return descriptors.tempo(audio, self.lowest, self.highest)


@dataclass(frozen=True, eq=False)
class KeyStrength(Signal):
    """How clearly a key is established: the best correlation with the 24 key profiles of Krumhansl & Kessler (1982).

    At most 1; around 0.8 for music that stays in a key, lower for atonal music, noise and clips that change the key; 0
    for silence.
    """

    target: float | None = None

    def measure(self, audio: Audio) -> Float[Tensor, " n"]:
        """A correlation."""
        return descriptors.key_correlations(audio).amax(1)


def finite_audio(samples: Samples, who: str) -> Audio:
    """The decoded audio.

    Raises:
        InputError: the media are something else; the message says that `who` asked.
        NonFiniteError: a clip holds NaN or infinity; the message names it, and `who` asked.
    """
    audio = expect(samples.media, Audio, who)
    wrong = (~audio.waveform.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
    if wrong:
        raise NonFiniteError(
            f"{who} needs finite samples, got NaN or infinity in item {wrong[0] + 1} of the {len(samples)} it was "
            f"given (prompt {samples.prompts[wrong[0]]!r}); look at that clip"
        )
    return audio

"""What a run must not pass over in silence: numbers that are not finite, an adapter that changes nothing audible."""

import math
from collections.abc import Sequence

from dragontune.errors import NonFiniteError
from dragontune.media.audio import Audio

AUDIBLE = -40.0
"""Decibels: a change weaker than this beside the sound it changes is taken to be inaudible (a rule of thumb)."""


def finite(name: str, value: float, round: int) -> float:
    """The value itself.

    Raises:
        NonFiniteError: it is NaN or infinite.
    """
    if not math.isfinite(value):
        raise NonFiniteError(
            f"the {name} became {value} in round {round}, so the run stopped; the state before that round is saved: "
            "try a smaller loop.lr, a smaller beta or a smaller loop.max_norm"
        )
    return value


def change(before: Audio, after: Audio) -> float:
    """How strong the difference between two clips is, in decibels relative to the first (-240: the same samples)."""
    length = min(before.waveform.shape[-1], after.waveform.shape[-1])
    one, other = before.waveform[..., :length].double(), after.waveform[..., :length].double()
    ratio = (other - one).square().mean() / one.square().mean().clamp(min=1e-12)
    return 10 * math.log10(max(ratio.item(), 1e-24))


def inaudible(before: Sequence[Audio], after: Sequence[Audio]) -> bool:
    """Whether no clip differs audibly from its counterpart."""
    return all(change(one, other) < AUDIBLE for one, other in zip(before, after, strict=True))

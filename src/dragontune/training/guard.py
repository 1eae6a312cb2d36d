"""What a run must not pass over in silence: numbers that are not finite, an adapter that nobody can hear or see."""

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from dragontune.data import Rows
from dragontune.errors import NonFiniteError
from dragontune.media.audio import Audio
from dragontune.media.image import Images
from dragontune.media.video import Video

AUDIBLE = -40.0
"""Decibels: a change weaker than this beside the sound it changes is taken to be inaudible (a rule of thumb)."""
VISIBLE = -48.0
"""Decibels of full scale, one step of 8 bits: a weaker change of pixels, as a root mean square, counts as invisible."""
SENSES = {
    "AUDIBLE": f"{AUDIBLE:.0f} dB",
    "VISIBLE": f"one step of 8 bits ({VISIBLE:.0f} dB of full scale)",
}
"""What can be noticed, and how much of a change is."""


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


def change(before: Rows, after: Rows) -> float | None:
    """How strong the difference between two items is, in decibels (-240: the same); None where they cannot be compared.

    Of audio relative to the first, of images and video relative to full scale.
    """
    match before, after:
        case Audio(), Audio():
            return _heard(before, after)
        case (Images(), Images()) | (Video(), Video()):
            one, other = (item.pixels if isinstance(item, Images) else item.frames for item in (before, after))
            return _decibels((other.double() - one.double()).square().mean()) if one.shape == other.shape else None
        case _:
            return None


def unnoticed(before: Sequence[Rows], after: Sequence[Rows]) -> str | None:
    """A key of `SENSES`: what no item differs by from its counterpart; None where one does, or nothing is known."""
    changes = [change(one, other) for one, other in zip(before, after, strict=True)]
    sense, least = ("AUDIBLE", AUDIBLE) if isinstance(next(iter(before), None), Audio) else ("VISIBLE", VISIBLE)
    return sense if changes and all(each is not None and each < least for each in changes) else None


def _heard(before: Audio, after: Audio) -> float:
    length = min(before.waveform.shape[-1], after.waveform.shape[-1])
    one, other = before.waveform[..., :length].double(), after.waveform[..., :length].double()
    return _decibels((other - one).square().mean() / one.square().mean().clamp(min=1e-12))


def _decibels(ratio: Float[Tensor, ""]) -> float:
    return 10 * math.log10(max(ratio.item(), 1e-24))

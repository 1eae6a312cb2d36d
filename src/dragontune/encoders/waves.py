"""Clips as encoders take them: one or two channels at one sample rate, cut into windows. Gradients pass."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from dragontune.data import Media
from dragontune.media.audio import Audio
from dragontune.media.kinds import expect


def audio_of(media: Media, who: str) -> Audio:
    """The media, which must be audio for `who` asks (else InputError); without a sample it is one of silence."""
    audio = expect(media, Audio, who)
    return Audio(at_least(audio.waveform, 1), audio.sample_rate)


def mono(media: Media, rate: int, who: str) -> Float[Tensor, " n samples"]:
    """The mean of all channels at `rate` hertz."""
    return audio_of(media, who).mono().resample(rate).waveform[:, 0].float()


def with_channels(media: Media, rate: int, channels: int, who: str) -> Float[Tensor, " n channels samples"]:
    """At `rate` hertz; another number of channels is mixed down to one, which is repeated."""
    audio = audio_of(media, who).resample(rate)
    if audio.waveform.shape[1] != channels:
        audio = Audio(audio.mono().waveform.expand(-1, channels, -1), audio.sample_rate)
    return audio.waveform.float()


def at_least(waveform: Float[Tensor, " *clips samples"], samples: int) -> Float[Tensor, " *clips longer"]:
    """Padded with silence to `samples`, where it is shorter."""
    return pad(waveform, (0, max(0, samples - waveform.shape[-1])))


def spread(waveform: Float[Tensor, " n samples"], length: int) -> Float[Tensor, " n windows length"]:
    """As few windows of `length` samples as cover the clip, evenly spread: the first at its start, the last at its end.

    A clip no longer than that is one window, of its own length.
    """
    samples = waveform.shape[1]
    if samples <= length:
        return waveform[:, None]
    count = -(-samples // length)
    starts = [round(k * (samples - length) / (count - 1)) for k in range(count)]
    return torch.stack([waveform[:, start : start + length] for start in starts], 1)


def reach(config: Any) -> int:  # noqa: ANN401 - of HuBERT and its kin
    """The samples behind one frame of a stack of convolutions."""
    found, step = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        found, step = found + (kernel - 1) * step, step * stride
    return found

"""How loud audio is to a listener: integrated loudness after ITU-R BS.1770-4 (2015), annex 1.

K-weighting, blocks of 400 ms that overlap by 75 %, and two gates, so that pauses do not count. The filters are those
the standard gives for 48 kHz; audio at other rates is converted first, which keeps their response exactly. Left out:
true peak (annex 2), loudness range, momentary values, and loudspeaker layouts beyond 5.1 (annex 3).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.errors import InputError
from dragontune.media.audio import Audio

RATE = 48000
K_WEIGHTING = (
    (1.53512485958697, -2.69169618940638, 1.19839281085285, 1.0, -1.69065929318241, 0.73248077421585),
    (1.0, -2.0, 1.0, 1.0, -1.99004745483398, 0.99007225036621),
)
"""Tables 1 and 2, b0 b1 b2 a0 a1 a2: the head as a shelf of 4 dB above 1.7 kHz, then a high-pass at 38 Hz."""
WEIGHTS = {1: (1.0,), 2: (1.0, 1.0), 5: (1.0, 1.0, 1.0, 1.41, 1.41), 6: (1.0, 1.0, 1.0, 0.0, 1.41, 1.41)}
"""Table 3, by the number of channels: mono, stereo, 5.0 (L R C Ls Rs), 5.1 (L R C LFE Ls Rs)."""
SILENCE = -70.0
"""The absolute gate in LUFS: quieter blocks never count."""
BLOCK, STEP = RATE * 4 // 10, RATE // 10


def integrated_loudness(audio: Audio) -> Float[Tensor, " n"]:
    """The loudness of each clip in LUFS, float64 on the CPU: a 997 Hz sine at full scale in one channel has -3.01.

    -70, the absolute gate, for silence. A clip shorter than 400 ms is one block.

    Raises:
        InputError: another number of channels than 1, 2, 5 or 6.
    """
    from scipy.signal import sosfilt

    channels = audio.waveform.shape[1]
    if channels not in WEIGHTS:
        raise InputError(f"expected 1, 2, 5 or 6 channels to measure loudness, got {channels}; mix them down")
    waves = audio.resample(RATE).waveform.detach().to("cpu", torch.float64)
    if not waves.shape[2]:  # of a sample or two at a higher rate nothing is left
        return torch.full((len(waves),), SILENCE, dtype=torch.float64)
    weighted = torch.from_numpy(sosfilt(K_WEIGHTING, waves.numpy()))
    blocks = weighted.unfold(2, min(BLOCK, weighted.shape[2]), STEP).square().mean(3)
    power = (torch.tensor(WEIGHTS[channels], dtype=torch.float64)[:, None] * blocks).sum(1)
    return torch.stack([_gated(clip) for clip in power])


def _gated(power: Float[Tensor, " blocks"]) -> Float[Tensor, ""]:
    """The mean of the blocks above both gates, as loudness."""
    loud = power[_lufs(power) > SILENCE]
    if not len(loud):
        return torch.tensor(SILENCE, dtype=torch.float64)
    return _lufs(loud[_lufs(loud) > _lufs(loud.mean()) - 10].mean())


def _lufs(power: Float[Tensor, " *any"]) -> Float[Tensor, " *any"]:
    return -0.691 + 10 * power.log10()

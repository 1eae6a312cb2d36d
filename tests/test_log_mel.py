import math

import pytest
import torch

from dragontune.encoders.log_mel import SCALE, SILENCE, LogMel
from dragontune.errors import InputError
from dragontune.media.audio import Audio
from dragontune.media.spectrum import mel_filters
from dragontune.testing import check_encoder


def tone(hertz: float, rate: int = 16000, seconds: float = 1.0, level: float = 0.5) -> Audio:
    time = torch.arange(int(rate * seconds)) / rate
    return Audio((level * torch.sin(2 * math.pi * hertz * time))[None, None], rate)


def test_promises():
    noise = torch.randn(4, 1, 16384, generator=torch.Generator().manual_seed(0))
    check_encoder(LogMel(), Audio(noise, 16000))


def test_silence_is_the_floor():
    frames = LogMel().embed(Audio(torch.zeros(1, 1, 16000), 16000)).frames
    torch.testing.assert_close(frames, torch.full_like(frames, math.log(SILENCE) / SCALE))


@pytest.mark.parametrize("hertz", [220.0, 1000.0, 4000.0])
def test_a_tone_lies_in_its_band(hertz):
    filters = mel_filters(16000, 1024, 64)
    band = int(filters[:, round(hertz * 1024 / 16000)].argmax())
    assert abs(int(LogMel().embed(tone(hertz)).frames[0].mean(0).argmax()) - band) <= 1


def test_twice_the_amplitude_is_four_times_the_power():
    encoder = LogMel()
    quiet, loud = (encoder.embed(tone(1000, level=level)).frames.amax(2) for level in (0.25, 0.5))
    torch.testing.assert_close(loud - quiet, torch.full_like(loud, math.log(4) / SCALE), atol=1e-4, rtol=0)


def test_frames_are_counted_from_windows():
    assert LogMel().embed(tone(440, seconds=0.01)).frames.shape == (1, 1, 64)
    assert LogMel().embed(tone(440, seconds=1.0)).frames.shape == (1, 1 + (16000 - 1024) // 512, 64)
    assert LogMel(mels=20, hop=256).embed(tone(440)).frames.shape == (1, 1 + (16000 - 1024) // 256, 20)


def test_other_rates_are_converted():
    at_44, at_16 = (LogMel().embed(tone(440, rate)).frames.mean(1) for rate in (44100, 16000))
    assert int(at_44.argmax()) == int(at_16.argmax())


def test_gradients_reach_the_media_even_at_silence():
    for wave in (tone(440).waveform, torch.zeros(1, 1, 4000)):
        leaf = wave.clone().requires_grad_()
        LogMel().embed(Audio(leaf, 16000)).frames.sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


def test_settings_are_part_of_the_digest():
    assert LogMel().digest == LogMel().digest
    assert len({LogMel().digest, LogMel(mels=40).digest, LogMel(hop=256).digest, LogMel(sample_rate=22050).digest}) == 4


@pytest.mark.parametrize("settings", [{"mels": 0}, {"hop": 0}, {"fft": 2}, {"sample_rate": 10}, {"mels": 500}])
def test_settings_that_make_no_sense(settings):
    with pytest.raises(InputError):
        LogMel(**settings)

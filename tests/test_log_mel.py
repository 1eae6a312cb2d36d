import itertools
import math

import pytest
import torch

from dragontune.encoders.log_mel import MIDDLE, SCALE, SILENCE, LogMel
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


@pytest.mark.parametrize("fft", [512, 1024, 4096])
@pytest.mark.parametrize("level", [None, -20.0])
def test_values_are_mean_squares_at_every_window_size(fft: int, level: float | None):
    encoder = LogMel(fft=fft, mels=20, level=level)

    def power(wave: torch.Tensor) -> torch.Tensor:
        return MIDDLE * (SCALE * encoder.embed(Audio(wave, 16000)).frames.mean(1)[0]).exp() - SILENCE

    assert power(torch.zeros(1, 1, 16000)).abs().max() < 1e-3 * SILENCE + 1e-16, "silence is the floor"
    bands = torch.stack([power(tone(hertz, level=1.0).waveform).amax() for hertz in range(900, 1100, 5)])
    assert bands.max().item() == pytest.approx(0.5 if level is None else 0.01, rel=0.06), "a tone in the middle of one"
    noise = 0.1 * torch.randn(1, 1, 64000, generator=torch.Generator().manual_seed(0))
    share = mel_filters(16000, fft, 20).sum(1) / (fft / 2)
    torch.testing.assert_close(power(noise), 0.01 * share, rtol=0.5, atol=0)
    assert encoder.embed(Audio(noise.sign(), 16000)).frames.amax() < 1.23
    assert math.log(SILENCE / MIDDLE) / SCALE == pytest.approx(-1.15, abs=0.005)


def test_a_level_makes_loudness_irrelevant_down_to_silence():
    encoder, clips = LogMel(level=-20.0), torch.cat([tone(440, level=x).waveform for x in (1.0, 0.01, 5e-4)])
    found = encoder.embed(Audio(clips, 16000)).frames
    torch.testing.assert_close(found[1:], found[:1].expand(2, -1, -1), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[0], LogMel().embed(tone(440, level=0.1 * 2**0.5)).frames[0], atol=1e-4, rtol=0)
    quiet = tone(440, level=1e-4)
    torch.testing.assert_close(encoder.embed(quiet).frames, LogMel().embed(quiet).frames, atol=0, rtol=0)


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
    for wave, level in itertools.product((tone(440).waveform, torch.zeros(1, 1, 4000)), (None, -20.0)):
        leaf = wave.clone().requires_grad_()
        LogMel(level=level).embed(Audio(leaf, 16000)).frames.sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert bool(leaf.grad.any()) == bool(wave.any())


def test_the_slope_through_the_level_has_no_part_along_the_clip():
    noise = torch.randn(1, 1, 2048, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (slope,) = torch.autograd.grad(LogMel(level=-20.0).embed(Audio(noise, 16000)).frames.square().sum(), noise)
    along = (slope * noise).sum().abs() / (slope.norm() * noise.norm())
    assert slope.norm() > 0
    assert along < 1e-3, "louder or quieter changes nothing"


def test_settings_are_part_of_the_digest():
    assert LogMel().digest == LogMel().digest
    others = [{"mels": 40}, {"hop": 256}, {"sample_rate": 22050}, {"fft": 2048}, {"level": -20.0}, {"level": -23.0}]
    assert len({LogMel().digest, *(LogMel(**settings).digest for settings in others)}) == 7


@pytest.mark.parametrize(
    "settings",
    [{"mels": 0}, {"hop": 0}, {"fft": 2}, {"sample_rate": 10}, {"mels": 500}, {"level": 3.0}, {"level": float("nan")}],
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(InputError):
        LogMel(**settings)

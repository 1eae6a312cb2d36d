"""Rewards measured on the signal: closed forms, at every sample rate."""

import math

import numpy as np
import pytest
import torch

from dragontune.data import Samples
from dragontune.errors import InputError, NonFiniteError
from dragontune.media import descriptors
from dragontune.media.audio import Audio
from dragontune.media.loudness import integrated_loudness
from dragontune.rewards.signal import KeyStrength, Loudness, SpectralCentroid, Tempo
from dragontune.testing import check_reward

RATES = [8000, 11025, 16000, 22050, 44100, 48000, 96000]
ALL = [Loudness(), SpectralCentroid(), Tempo(), KeyStrength()]
AIMED = [Loudness(-14.0), SpectralCentroid(1000.0), Tempo(120.0), KeyStrength(0.5)]
SCALE = (60, 62, 64, 65, 67, 69, 71, 72)


def sine(hertz: float, rate: int, seconds: float, decibels: float = 0.0) -> torch.Tensor:
    time = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    return (10 ** (decibels / 20) * (2 * math.pi * hertz * time).sin()).float()


def noise(seconds: float, rate: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(round(seconds * rate), generator=torch.Generator().manual_seed(seed)) / 4


def clip(*channels: torch.Tensor, rate: int) -> Audio:
    return Audio(torch.stack(channels)[None], rate)


def clicks(beats: float, rate: int, seconds: float) -> torch.Tensor:
    """A short tone at every beat."""
    wave = torch.zeros(round(seconds * rate))
    tone = sine(1000, rate, 0.01) * torch.linspace(1, 0, round(0.01 * rate))
    for beat in range(math.ceil(seconds * beats / 60)):
        start = round(beat * 60 / beats * rate)
        wave[start : start + len(tone)] += tone[: len(wave) - start]
    return wave


def melody(notes: tuple[int, ...], rate: int, seconds: float = 0.25) -> torch.Tensor:
    """MIDI notes one after another, of equal length, each fading in and out."""
    window = torch.hann_window(round(seconds * rate))
    return torch.cat([sine(440 * 2 ** ((note - 69) / 12), rate, seconds) * window for note in notes])


@pytest.mark.parametrize("reward", ALL + AIMED, ids=lambda r: f"{type(r).__name__}-{r.target}")
def test_contract(reward):
    waves = torch.stack([noise(1.0, 16000, seed) * (seed + 1) / 4 + melody(SCALE[:4], 16000) for seed in range(4)])
    check_reward(reward, Samples(("a", "b", "c", "d"), torch.zeros(4, 2), Audio(waves[:, None].repeat(1, 2, 1), 16000)))


@pytest.mark.parametrize("rate", RATES)
def test_the_calibration_of_bs1770(rate):
    """A 997 Hz sine at full scale in one front channel is -3.01 LUFS; in both channels, 3.01 more."""
    one, none = sine(997, rate, 2), torch.zeros(2 * rate)
    assert integrated_loudness(clip(one, rate=rate)).item() == pytest.approx(-3.01, abs=0.01)
    assert integrated_loudness(clip(none, one, rate=rate)).item() == pytest.approx(-3.01, abs=0.01)
    assert integrated_loudness(clip(one, one, rate=rate)).item() == pytest.approx(0.0, abs=0.01)


def loudness_of(*parts: tuple[float, float], rate: int = 16000) -> float:
    """Of a stereo tone of 1 kHz whose level goes through `parts` (decibels, seconds), as in EBU Tech 3341."""
    wave = torch.cat([sine(1000, rate, seconds, level) for level, seconds in parts])
    return integrated_loudness(clip(wave, wave, rate=rate)).item()


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([(-23, 20)], -23.0),
        ([(-33, 20)], -33.0),
        ([(-36, 10), (-23, 60), (-36, 10)], -23.0),
        ([(-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)], -23.0),
        ([(-26, 20), (-20, 20.1), (-26, 20)], -23.0),
    ],
    ids=["1", "2", "3: relative gate", "4: both gates", "5: nothing gated"],
)
def test_the_cases_of_ebu_tech_3341(parts, expected):
    assert loudness_of(*parts) == pytest.approx(expected, abs=0.1)


def test_surround_channels_weigh_more_and_the_subwoofer_nothing():
    """Case 6 of EBU Tech 3341: -28 dB left and right, -24 centre, -30 behind."""
    left, centre, behind = (sine(1000, 48000, 5, level) for level in (-28, -24, -30))
    five = clip(left, left, centre, behind, behind, rate=48000)
    assert integrated_loudness(five).item() == pytest.approx(-23.0, abs=0.1)
    rumble = sine(1000, 48000, 5)
    with_rumble = clip(left, left, centre, rumble, behind, behind, rate=48000)
    assert integrated_loudness(with_rumble).item() == integrated_loudness(five).item()
    with pytest.raises(InputError, match="got 3"):
        integrated_loudness(clip(left, left, left, rate=48000))


def test_loudness_between_gates():
    """Without gates half a silent clip would cost 3 dB; a part 9 dB down counts, one 11 dB under the mean does not."""
    assert loudness_of((-20, 20), (-200, 20)) == pytest.approx(loudness_of((-20, 20)), abs=0.1)
    power = (10**-2.0 + 10**-2.9) / 2
    assert loudness_of((-20, 20), (-29, 20)) == pytest.approx(10 * math.log10(power), abs=0.1)


def test_the_relative_gate_is_that_of_what_passed_the_absolute_one():
    """With much below -70 the mean of everything would be 8 dB lower, and the part at -35 would count."""
    assert loudness_of((-20, 10), (-35, 10), (-80, 100)) == pytest.approx(-20, abs=0.1)


def test_a_clip_of_one_sample_is_silent():
    assert integrated_loudness(clip(torch.ones(1), rate=192000)).item() == -70.0


def test_the_profiles_are_those_of_krumhansl_and_kessler():
    """Table 2.1 of Krumhansl (1990); the sums guard against a slip of a digit."""
    assert descriptors.MAJOR[:5] == (6.35, 2.23, 3.48, 2.33, 4.38)
    assert descriptors.MINOR[:5] == (6.33, 2.68, 3.52, 5.38, 2.60)
    assert sum(descriptors.MAJOR) == pytest.approx(41.79)
    assert sum(descriptors.MINOR) == pytest.approx(44.51)


def test_the_k_weighting_is_that_of_48_khz():
    """The response of the standard's own filters, at frequencies every rate has."""
    from scipy.signal import sosfreqz

    from dragontune.media.loudness import K_WEIGHTING

    for hertz in (50, 200, 1000, 3000):
        _, response = sosfreqz(K_WEIGHTING, [hertz], fs=48000)
        expected = -0.691 + 20 * math.log10(np.abs(np.asarray(response)[0])) - 3.0103
        for rate in RATES:
            assert integrated_loudness(clip(sine(hertz, rate, 3), rate=rate)).item() == pytest.approx(
                expected, abs=0.02
            )


def test_short_clips_have_a_loudness():
    assert integrated_loudness(clip(sine(1000, 48000, 0.3), rate=48000)).item() == pytest.approx(-3.0, abs=0.1)
    assert integrated_loudness(clip(torch.ones(1), rate=48000)).isfinite()


@pytest.mark.parametrize("rate", RATES)
def test_the_centroid_of_a_sine_is_its_frequency(rate):
    for hertz in (220.0, 1000.0, 3000.0):
        assert descriptors.spectral_centroid(clip(sine(hertz, rate, 1), rate=rate)).item() == pytest.approx(
            hertz, abs=0.5
        )


def test_the_centroid_weighs_by_power():
    rate = 16000
    both = sine(1000, rate, 1) + sine(3000, rate, 1, -20)
    expected = (1000 + 3000 / 100) / 1.01
    assert descriptors.spectral_centroid(clip(both, rate=rate)).item() == pytest.approx(expected, abs=1)
    apart = clip(sine(1000, rate, 1), sine(3000, rate, 1, -20), rate=rate)
    assert descriptors.spectral_centroid(apart).item() == pytest.approx(expected, abs=1)
    opposite = clip(sine(1000, rate, 1), -sine(1000, rate, 1), rate=rate)
    assert descriptors.spectral_centroid(opposite).item() == pytest.approx(1000, abs=0.5)
    assert descriptors.spectral_centroid(clip(noise(4, rate), rate=rate)).item() == pytest.approx(4000, rel=0.02)
    offset = clip(sine(1000, rate, 1) + 0.5, rate=rate)
    assert descriptors.spectral_centroid(offset).item() == pytest.approx(1000, abs=0.5)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("beats", [55, 73, 90, 100, 120, 128, 150, 174, 190])
def test_the_tempo_of_clicks(rate, beats):
    assert descriptors.tempo(clip(clicks(beats, rate, 6), rate=rate), 50, 200).item() == pytest.approx(beats, rel=0.002)


@pytest.mark.parametrize("beats", [60, 97, 120, 180])
def test_the_tempo_under_noise_at_any_level_and_of_chords(beats):
    rate = 16000
    wave = clicks(beats, rate, 8) + 0.02 * noise(8, rate)
    for level in (1.0, 1e-3):
        found = descriptors.tempo(clip(level * wave, rate=rate), 50, 200).item()
        assert found == pytest.approx(beats, rel=0.01)
    chords = melody((60, 64, 67, 72) * 3, rate, 60 / beats)
    assert descriptors.tempo(clip(chords, rate=rate), 50, 200).item() == pytest.approx(beats, rel=0.02)


def test_the_range_of_tempi_decides_between_octaves():
    wave = clip(clicks(90, 16000, 8), rate=16000)
    assert descriptors.tempo(wave, 50, 200).item() == pytest.approx(90, rel=0.01)
    assert descriptors.tempo(wave, 30, 60).item() == pytest.approx(45, rel=0.01)
    assert descriptors.tempo(clip(clicks(90, 16000, 0.2), rate=16000), 50, 200).item() == 0


@pytest.mark.parametrize("rate", RATES)
def test_the_key_of_a_scale_and_not_of_noise(rate):
    correlations = descriptors.key_correlations(clip(melody(SCALE, rate), rate=rate))[0]
    assert int(correlations.argmax()) == 0
    even = np.zeros(12)
    np.add.at(even, np.array(SCALE) % 12, 1)
    ideal = np.corrcoef(even, descriptors.MAJOR)[0, 1]
    assert correlations[0].item() == pytest.approx(ideal, abs=0.03)
    hiss = descriptors.key_correlations(clip(noise(4, rate), rate=rate)).max().item()
    assert hiss < 0.6 < correlations[0].item()


def test_every_key_is_recognised():
    rate = 8000
    major, minor = (0, 4, 7, 0, 5, 9, 7, 11, 2, 0), (0, 3, 7, 0, 5, 8, 7, 11, 2, 0)
    for mode, notes in enumerate((major, minor)):
        for tonic in range(12):
            wave = clip(melody(tuple(60 + tonic + note for note in notes), rate), rate=rate)
            assert int(descriptors.key_correlations(wave).argmax()) == 12 * mode + tonic


def test_all_twelve_tones_are_in_no_key():
    rate = 16000
    chromatic = clip(melody(tuple(range(60, 72)), rate), rate=rate)
    scale = clip(melody(SCALE, rate), rate=rate)
    strengths = [KeyStrength()(Samples(("",), torch.empty(1, 0), each)).item() for each in (chromatic, scale)]
    assert strengths[0] < 0.5 < 0.8 < strengths[1]


@pytest.mark.parametrize(("reward", "silent"), zip(ALL, [-70.0, 0.0, 0.0, 0.0], strict=True))
def test_silence_has_the_documented_value(reward, silent):
    for wave in (torch.zeros(8000), torch.full((8000,), 0.25), torch.zeros(1), torch.zeros(100)):
        if isinstance(reward, Loudness) and wave.any():
            continue  # a step is heard: the standard keeps what the high-pass lets through
        assert reward(Samples(("",), torch.empty(1, 0), clip(wave, rate=8000))).item() == silent


def test_a_target_turns_values_into_distances():
    audio = Audio(torch.stack([sine(500, 16000, 1), sine(1500, 16000, 1)])[:, None], 16000)
    samples = Samples(("a", "b"), torch.zeros(2, 1), audio)
    assert SpectralCentroid()(samples).tolist() == pytest.approx([500, 1500], abs=0.5)
    assert SpectralCentroid(1200.0)(samples).tolist() == pytest.approx([-700, -300], abs=0.5)
    assert SpectralCentroid(1200.0).distance
    assert not SpectralCentroid().distance


@pytest.mark.parametrize("kind", [Loudness, SpectralCentroid, Tempo, KeyStrength])
def test_bad_input(kind):
    for target in (math.nan, math.inf):
        with pytest.raises(InputError, match="finite target"):
            kind(target)
    waves = torch.zeros(3, 1, 8000)
    waves[1, 0, 5] = math.nan
    with pytest.raises(NonFiniteError, match=r"item 2 of the 3 it was given \(prompt 'b'\)"):
        kind()(Samples(("a", "b", "c"), torch.zeros(3, 1), Audio(waves, 8000)))
    with pytest.raises(InputError, match=f"expected audio for {kind.__name__}, got Tensor"):
        kind()(Samples(("a",), torch.zeros(1, 1), torch.zeros(1, 1)))


@pytest.mark.parametrize(("lowest", "highest"), [(0.0, 100.0), (100.0, 100.0), (50.0, 1000.0), (math.nan, 100.0)])
def test_bad_ranges_of_tempi(lowest, highest):
    with pytest.raises(InputError, match="lowest < highest"):
        Tempo(None, lowest, highest)

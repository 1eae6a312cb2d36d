import math

import numpy as np
import pytest
import soundfile
import torch

from dragontune.errors import InputError
from dragontune.media import audio
from dragontune.media.audio import Audio


def sine(hertz: float = 440.0, seconds: float = 0.5, rate: int = 16000, amplitude: float = 0.5) -> Audio:
    times = torch.arange(int(seconds * rate)) / rate
    return Audio(amplitude * torch.sin(2 * math.pi * hertz * times)[None, None], rate)


@pytest.mark.parametrize(("suffix", "error"), [(".wav", 1e-4), (".flac", 1e-4), (".ogg", 0.1)])
def test_what_is_written_is_read(tmp_path, suffix, error):
    clip = Audio(torch.cat([sine().waveform, sine(660).waveform], dim=1), 16000)
    clip.write(tmp_path / f"clip{suffix}")
    again = audio.read(tmp_path / f"clip{suffix}")
    assert again.sample_rate == 16000
    assert again.waveform.shape == clip.waveform.shape
    assert (again.waveform - clip.waveform).abs().max() < error


def test_a_long_clip_becomes_vorbis(tmp_path):
    sine(seconds=90).write(tmp_path / "long.ogg")
    assert audio.read(tmp_path / "long.ogg").seconds == pytest.approx(90)


def test_mp3_is_read(tmp_path):
    soundfile.write(tmp_path / "clip.mp3", sine().waveform[0, 0].numpy(), 16000)
    assert audio.read(tmp_path / "clip.mp3").seconds == pytest.approx(0.5, abs=0.1)


def test_full_scale_is_clipped_not_wrapped(tmp_path):
    sine(amplitude=3.0).write(tmp_path / "loud.wav")
    loud = audio.read(tmp_path / "loud.wav").waveform[0, 0]
    assert (loud - sine(amplitude=3.0).waveform[0, 0].clamp(-1, 1)).abs().max() < 1e-3


def test_resampling_keeps_the_tone():
    up = sine(rate=16000).resample(44100)
    assert up.waveform.shape == (1, 1, 22050)
    inner = slice(2000, -2000)
    assert (up.waveform - sine(rate=44100).waveform)[..., inner].abs().max() < 1e-3


def test_resampling_to_the_same_rate_is_the_identity():
    clip = Audio(sine().waveform.requires_grad_(), 16000)
    assert clip.resample(16000) is clip


@pytest.mark.parametrize(("old", "new"), [(16000, 44100), (44100, 16000), (48000, 44100), (800, 16000)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_resampling_with_gradients_is_as_good_as_without(old: int, new: int, share: float):
    """A tone at a share of the lower Nyquist frequency, in stereo; and the gradient is that of a linear map."""
    frequency = share * min(old, new) / 2
    before, after = (torch.arange(rate // 2, dtype=torch.float64) / rate for rate in (old, new))
    tone = (2 * torch.pi * frequency * before).sin().expand(1, 2, -1).clone().requires_grad_()
    found = Audio(tone, old).resample(new).waveform
    assert found.shape == (1, 2, new // 2)
    with torch.no_grad():
        assert Audio(tone, old).resample(new).waveform.shape == found.shape
    inner = slice(new // 10, -new // 10)
    error = (found - (2 * torch.pi * frequency * after).sin())[..., inner].abs().max()
    assert error < (2e-3 if share == 0.9 else 1e-4)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (slope,) = torch.autograd.grad((weights * found).sum(), tone)
    assert (slope * tone).sum().item() == pytest.approx((weights * found).sum().item(), rel=1e-6)


def test_mono_is_the_mean():
    stereo = Audio(torch.tensor([[[1.0, 0.0], [0.0, 0.5]]]), 2)
    assert stereo.mono().waveform.tolist() == [[[0.5, 0.25]]]


def test_loudness_of_a_sine():
    assert sine(amplitude=1.0).loudness().item() == pytest.approx(-3.01, abs=0.01)
    assert Audio(torch.zeros(1, 1, 8), 8).loudness().item() == pytest.approx(-120)


def test_clips_are_rows():
    both = Audio.join([sine(), sine(660)])
    assert len(both) == 2
    assert torch.equal(both[torch.tensor([1])].waveform, sine(660).waveform)
    with pytest.raises(ValueError, match="constants"):
        Audio.join([sine(), sine(seconds=1.0, rate=8000)])


def test_a_folder_is_sorted_and_recursive(tmp_path):
    for name in ("b/2.flac", "b/1.WAV", "a.ogg", ".hidden/3.wav", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [file.relative_to(tmp_path).as_posix() for file in audio.folder(tmp_path)] == [
        "a.ogg",
        "b/1.WAV",
        "b/2.flac",
    ]


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="none"):
        audio.folder(tmp_path)
    with pytest.raises(InputError, match="nowhere"):
        audio.folder(tmp_path / "nowhere")


def corrupt(path):
    path.write_bytes(b"RIFF and then nothing")


def empty(path):
    soundfile.write(path, np.zeros((0, 1)), 16000)


def not_a_number(path):
    soundfile.write(path, np.array([0.0, np.nan]), 16000, subtype="FLOAT")


@pytest.mark.parametrize("spoil", [corrupt, empty, not_a_number, lambda path: path.mkdir(), lambda path: None])
def test_bad_files_are_named(tmp_path, spoil):
    spoil(tmp_path / "bad.wav")
    with pytest.raises(InputError, match=r"bad\.wav"):
        audio.read(tmp_path / "bad.wav")


def test_writing_refuses_other_kinds_and_several_clips(tmp_path):
    with pytest.raises(InputError, match=r"\.flac"):
        sine().write(tmp_path / "clip.mp4")
    with pytest.raises(ValueError, match="one clip"):
        Audio.join([sine(), sine()]).write(tmp_path / "clip.wav")

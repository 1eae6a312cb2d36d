"""Files that declare more than they hold: refused in one sentence, with memory for what is there."""

import io
import struct
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from dragontune.errors import InputError
from dragontune.media import audio, image, video
from dragontune.media.image import Images


def wav(rate: int = 8000, channels: int = 1, declared: int | None = None, samples: int = 64) -> bytes:
    """A 16-bit file whose header says what it likes."""
    data = bytes(2 * samples)
    length = len(data) if declared is None else declared
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        (36 + length) % 2**32,
        b"WAVE",
        b"fmt ",
        16,
        1,
        channels,
        rate % 2**32,
        rate * channels * 2 % 2**32,
        channels * 2 % 2**16,
        16,
        b"data",
        length % 2**32,
    )
    return head + data


def flac(frames: int, rate: int = 16000, total: int | None = None) -> bytes:
    """A file of silence whose header declares `total` frames (36 bits)."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros((frames, 1)), rate, "PCM_16", format="FLAC")
    content = bytearray(file.getvalue())
    if total is not None:
        (bits,) = struct.unpack(">Q", content[18:26])
        content[18:26] = struct.pack(">Q", bits >> 36 << 36 | total)
    return bytes(content)


def test_what_is_read_is_what_the_decoder_says(tmp_path: Path):
    wave = 0.3 * np.sin(np.arange(9000)[:, None] / (7, 9))
    for suffix, subtype in (
        ("wav", "PCM_16"),
        ("flac", "PCM_16"),
        ("ogg", "VORBIS"),
        ("mp3", "MPEG_LAYER_III"),
        ("aiff", "FLOAT"),
    ):
        path = tmp_path / f"clip.{suffix}"
        soundfile.write(path, wave, 16000, subtype, format=suffix.upper())
        expected, _ = soundfile.read(path, dtype="float32", always_2d=True)
        got = audio.read(path).waveform[0].numpy()
        assert np.allclose(got, expected.T, atol=1e-6), (suffix, abs(got - expected.T).max())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("hours.flac", flac(4096, total=2**36 - 1), "samples"),
        ("days.flac", flac(4096, total=40_000_000), "declares|readable"),
        ("channels.wav", wav(channels=1024, samples=4096), "channels"),
        ("many.wav", wav(channels=65535, samples=70_000), "readable|channels"),
        ("none.wav", wav(channels=0), "readable|channels"),
        ("still.wav", wav(rate=0), "readable|rate"),
        ("slow.wav", wav(rate=1), "rate"),
        ("fast.wav", wav(rate=2**31 - 1), "rate"),
        ("faster.wav", wav(rate=2**31), "readable|rate"),
        ("bare.wav", wav()[:44], "no sample"),
        ("head.wav", wav()[:20], "readable"),
    ],
)
def test_headers_that_cannot_be(tmp_path: Path, name: str, content: bytes, words: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as refused:
        audio.read(tmp_path / name)
    assert any(word in str(refused.value) for word in words.split("|")), refused.value
    assert name in str(refused.value)


def test_a_wav_of_a_broken_stream_is_what_it_holds(tmp_path: Path):
    (tmp_path / "a.wav").write_bytes(wav(declared=2**32 - 2))
    assert audio.read(tmp_path / "a.wav").waveform.shape == (1, 1, 64)


def test_the_limit_is_the_users(tmp_path: Path, monkeypatch):
    (tmp_path / "a.wav").write_bytes(wav(rate=48000, samples=500))
    monkeypatch.setenv(audio.MOST, "499")
    with pytest.raises(InputError, match="at most 499 samples"):
        audio.read(tmp_path / "a.wav")
    monkeypatch.setenv(audio.MOST, "500")
    assert audio.read(tmp_path / "a.wav").waveform.shape[2] == 500
    for nonsense in ("", "x", "-1", "0", "1e9", "9" * 99):
        monkeypatch.setenv(audio.MOST, nonsense)
        with pytest.raises(InputError, match="positive whole number"):
            audio.read(tmp_path / "a.wav")


def test_a_slow_rate_counts_as_it_will_be_resampled(tmp_path: Path, monkeypatch):
    (tmp_path / "a.wav").write_bytes(wav(rate=100, samples=500))
    monkeypatch.setenv(audio.MOST, str(500 * 480 - 1))
    with pytest.raises(InputError, match="at most"):
        audio.read(tmp_path / "a.wav")


def test_memory_is_for_what_is_there(tmp_path: Path):
    """Files that declare gigabytes, each read with 256 MiB to spare: refused, not killed."""
    (tmp_path / "a.flac").write_bytes(flac(4096, total=2**27))
    (tmp_path / "b.flac").write_bytes(flac(4096, total=2**36 - 1))
    with wave.open(str(tmp_path / "c.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(64))
    torn = bytearray((tmp_path / "c.wav").read_bytes())
    torn[40:44] = struct.pack("<I", 2**32 - 2)
    (tmp_path / "c.wav").write_bytes(torn)
    code = """
import resource, sys
from pathlib import Path
from dragontune.errors import InputError
from dragontune.media import audio
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        print(path.name, audio.read(path).waveform.shape[2])
    except InputError as error:
        print(path.name, "refused")
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.split("\n")[:3] == ["a.flac refused", "b.flac refused", "c.wav 32"], done.stderr


def test_a_picture_may_not_unpack_to_more_than_fits(tmp_path: Path, monkeypatch):
    Image.new("L", (8100, 8100)).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size < 100_000
    with pytest.raises(InputError, match="at most 64 megapixels"):
        Images.read(tmp_path / "large.png")
    Image.new("L", (20, 20)).save(tmp_path / "small.png")
    monkeypatch.setenv(image.MOST, "399")
    with pytest.raises(InputError, match="scale it down, or set DRAGONTUNE_MOST_PIXELS"):
        Images.read(tmp_path / "small.png")


def test_nor_may_a_video(tmp_path: Path):
    frames = [Image.new("P", (6000, 5000), i % 2) for i in range(9)]
    frames[0].save(tmp_path / "long.gif", save_all=True, append_images=frames[1:], duration=20)
    with pytest.raises(InputError, match="at most 256 megapixels in all frames"):
        video.read(tmp_path / "long.gif")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif"])
def test_a_size_that_is_only_declared(tmp_path: Path, kind: str):
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, kind)
    content, at = bytearray(file.getvalue()), {"png": 16, "gif": 6, "webp": 26}.get(kind)
    if at is None:
        at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = b"\xff\x3f\xff\x3f" if kind != "png" else b"\x00\x01\x00\x00"
    (tmp_path / f"a.{kind}").write_bytes(content)
    with pytest.raises(InputError):
        Images.read(tmp_path / f"a.{kind}")

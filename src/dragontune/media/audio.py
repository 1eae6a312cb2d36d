"""Audio: waveforms with their sample rate, read from and written to files (soundfile), resampled (soxr)."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.data import Rows
from dragontune.errors import InputError
from dragontune.media import limits, resampling

READABLE = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".opus")
WRITABLE = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
BLOCK = 1 << 16  # frames handed to the codec at once: the Vorbis encoder needs stack in proportion

MOST_SAMPLES = 1 << 29
"""Of one file, in all channels, counted as at 48 kHz where its rate is lower: 93 minutes of stereo, 2 GiB in memory."""
MOST = "DRAGONTUNE_MOST_SAMPLES"
"""The environment variable that sets another limit."""
MOST_CHANNELS = 256
RATES = (100, 2_000_000)
"""The lowest and the highest sample rate that are taken for one, in hertz."""
LONGEST_LIST = 64 << 20
"""Bytes of a playlist."""
LONGEST_NAME = 4096
"""Bytes of a path, of which no system takes more."""


@dataclass(frozen=True, eq=False)
class Audio(Rows):
    """Equally long clips at one sample rate; full scale is -1 to 1.

    >>> Audio(torch.zeros(2, 1, 16000), 16000).seconds
    1.0
    """

    waveform: Float[Tensor, " n channels samples"]
    sample_rate: int

    @property
    def seconds(self) -> float:
        """The duration of a clip."""
        return self.waveform.shape[-1] / self.sample_rate

    def mono(self) -> "Audio":
        """One channel: the mean of all."""
        return self if self.waveform.shape[1] == 1 else Audio(self.waveform.mean(1, keepdim=True), self.sample_rate)

    def resample(self, rate: int) -> "Audio":
        """The same clips at `rate` hertz. Gradients pass: where they are asked for, another filter does the work."""
        if rate == self.sample_rate:
            return self
        if torch.is_grad_enabled() and self.waveform.requires_grad:
            return Audio(resampling.resample(self.waveform, self.sample_rate, rate), rate)
        clips = self.waveform.detach().cpu().float().numpy()
        moved = np.stack([soxr.resample(clip.T, self.sample_rate, rate).T for clip in clips])
        return Audio(torch.from_numpy(np.ascontiguousarray(moved)).to(self.waveform), rate)

    def loudness(self) -> Float[Tensor, " n"]:
        """The root mean square of each clip in decibels of full scale, at least -120. Not a perceptual loudness."""
        return 10 * self.waveform.square().flatten(1).mean(1).clamp(min=1e-12).log10()

    def write(self, path: str | Path) -> None:
        """One clip to a 16-bit `.wav` or `.flac` or a Vorbis `.ogg` file; what exceeds full scale is clipped.

        Raises:
            InputError: another suffix.
            OSError: the file cannot be written, for example because the disk is full.
        """
        path = Path(path)
        if path.suffix.lower() not in WRITABLE:
            raise InputError(f"expected a name ending in {', '.join(WRITABLE)}, got {path.name}; rename the output")
        if len(self) != 1:
            raise ValueError(f"expected one clip to write, got {len(self)}; index a row first")
        kind, subtype = WRITABLE[path.suffix.lower()]
        frames = self.waveform[0].detach().cpu().float().T.numpy()
        encoded = io.BytesIO()  # the codec writes to memory, so that a full disk is an OSError and nothing else
        with soundfile.SoundFile(encoded, "w", self.sample_rate, frames.shape[1], subtype, format=kind) as file:
            for start in range(0, len(frames), BLOCK):
                file.write(frames[start : start + BLOCK])
        path.write_bytes(encoded.getvalue())


def read(path: str | Path) -> Audio:
    """One file as one row, every channel kept.

    Raises:
        InputError: the file is missing, not audio, torn, without a sample, not finite, or of more samples or channels
            or another rate than can be (`MOST_SAMPLES`, `MOST_CHANNELS`, `RATES`); the message names it.
    """
    path = Path(path)
    if not limits.there(path):
        raise InputError(f"expected an audio file, got {path}, which is not there; check the path")
    try:
        with soundfile.SoundFile(path) as file:
            waveform, rate = _waveform(path, file), file.samplerate
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"expected audio that fits into memory, got {path}; cut it, or remove the file") from error
    except (soundfile.SoundFileError, OSError, ValueError, TypeError) as error:
        raise InputError(f"expected readable audio, got {path} ({error}); replace or remove the file") from error
    if waveform.shape[1] == 0:
        raise InputError(f"expected audio of some length, got {path} with no sample in it; replace or remove the file")
    if not np.isfinite(waveform).all():
        raise InputError(f"expected finite samples, got {path} with NaN or infinity; replace or remove the file")
    return Audio(torch.from_numpy(waveform)[None], rate)


def folder(path: str | Path) -> list[Path]:
    """The audio files in a folder and its sub-folders, hidden ones left out, in sorted order.

    Raises:
        InputError: there is no such folder, or no audio file in it.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"expected a folder of audio files, got {path}, which is not a folder; check the path")
    found = sorted(_audio_files(path))
    if not found:
        raise InputError(f"expected audio files ({', '.join(READABLE)}) in {path}, got none; choose another folder")
    return found


def playlist(path: str | Path) -> list[Path]:
    """The files an `.m3u` playlist names, one a line, relative to the playlist; lines with # are comments.

    They may lie anywhere: a playlist is the user's word, and what it names is only ever read, as media.

    Raises:
        InputError: it is not text, or names no file; a file that is not there is named when it is read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST_LIST + 1)
        if len(content) > LONGEST_LIST:
            raise ValueError(f"more than {LONGEST_LIST} bytes")
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"expected a playlist in UTF-8, one file a line, got {path} ({error}); correct it") from error
    if any(len(line.encode()) > LONGEST_NAME for line in lines):
        raise InputError(
            f"expected a file in each line of {path}, got one of more than {LONGEST_NAME} bytes; correct it"
        )
    found = [path.parent / line for line in lines if line and not line.startswith("#")]
    if not found:
        raise InputError(f"expected one audio file a line in {path}, got none; name some")
    return found


def _waveform(path: Path, file: soundfile.SoundFile) -> Float[np.ndarray, " channels samples"]:
    """What a file holds; more than the limit is not even asked for.

    It is read at once: soundfile seeks after every part, and MP3 goes on wrongly after that.
    """
    if not 1 <= file.channels <= MOST_CHANNELS:
        raise InputError(f"expected at most {MOST_CHANNELS} channels, got {path} of {file.channels}; mix them down")
    if not RATES[0] <= file.samplerate <= RATES[1]:
        raise InputError(
            f"expected a sample rate from {RATES[0]} to {RATES[1]} Hz, got {path} of {file.samplerate} Hz; convert it"
        )
    _bearable(path, file)
    frames = file.read(dtype="float32", always_2d=True)
    if len(frames) < file.frames and file.format not in ("MP3", "MPEG"):  # whose length is often an estimate
        raise InputError(
            f"expected the {file.frames} samples that {path} declares, got {len(frames)}; replace or remove the file"
        )
    return np.ascontiguousarray(frames.T)


def _bearable(path: Path, file: soundfile.SoundFile) -> None:
    """InputError for a length that would fill the memory, also once it is resampled."""
    limit = limits.most(MOST, MOST_SAMPLES)
    counted = file.frames * file.channels * max(48000, file.samplerate) // file.samplerate
    if counted > limit:
        raise InputError(
            f"expected at most {limit} samples (as at 48 kHz) in one file, got {path}, which declares {counted}; cut "
            f"it, or set {MOST}"
        )


def _audio_files(path: Path) -> Iterator[Path]:
    for file in path.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.suffix.lower() in READABLE and file.is_file() and not hidden:
            yield file

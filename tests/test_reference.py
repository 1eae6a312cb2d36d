"""References: statistics, storage, provenance, and what they refuse."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from torch import Tensor

from dragontune.data import Media
from dragontune.encoders.base import Embeddings, Encoder
from dragontune.errors import InputError
from dragontune.media.audio import Audio
from dragontune.reference import Reference, open_reference
from dragontune.testing import ToyEncoder


@dataclass(frozen=True)
class Blocks(Encoder):
    """Mean and loudness of every hundred samples: an encoder of audio for tests."""

    name: str = "blocks"
    dim: int = 2

    @property
    def digest(self) -> str:
        return sha256(self.name.encode()).hexdigest()

    def embed(self, media: Media) -> Embeddings:
        assert isinstance(media, Audio)
        blocks = media.mono().waveform[:, 0].unfold(1, 100, 100)
        return Embeddings.of(torch.stack([blocks.mean(2), blocks.square().mean(2)], 2))


def points(count: int = 30) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(0)) + 1


def tone(path: Path, seconds: float = 0.1, level: float = 0.5) -> None:
    soundfile.write(path, level * np.sin(np.arange(int(8000 * seconds))), 8000)


def test_statistics_do_not_depend_on_the_batches():
    encoder = ToyEncoder(frames=3)
    whole = Reference.build(encoder, [points()], "songs")
    parts = Reference.build(encoder, points().split([1, 12, 17]), "songs")
    frames = encoder.embed(points()).frames.reshape(-1, 2).double()
    torch.testing.assert_close(whole.mean, frames.mean(0))
    torch.testing.assert_close(whole.covariance, torch.cov(frames.mT))
    torch.testing.assert_close(parts.covariance, whole.covariance)
    assert (whole.count, whole.items, whole.modality) == (90, 30, "audio")
    assert (whole.encoder, whole.encoder_digest, whole.source) == ("toy-encoder", encoder.digest, "songs")


def test_storage_keeps_everything(tmp_path: Path):
    reference = Reference.build(ToyEncoder(), [points()], "songs é")
    reference.save(tmp_path / "deep" / "songs.safetensors")
    again = Reference.load(tmp_path / "deep" / "songs.safetensors")
    assert torch.equal(again.mean, reference.mean)
    assert torch.equal(again.covariance, reference.covariance)
    assert again.digest == reference.digest
    assert (again.count, again.items, again.source) == (30, 30, "songs é")
    assert open_reference(ToyEncoder(), str(tmp_path / "deep" / "songs.safetensors")).digest == reference.digest


def test_digest_depends_on_statistics_and_provenance():
    reference = Reference.build(ToyEncoder(), [points()], "songs")
    others = [
        Reference.build(ToyEncoder(), [points(29)], "songs"),
        Reference.build(ToyEncoder(), [points()], "other songs"),
        replace(reference, mean=reference.mean + 1e-9),
    ]
    assert len({reference.digest, *(other.digest for other in others)}) == 4
    assert Reference.build(ToyEncoder(), [points()], "songs").digest == reference.digest


def test_another_encoder_is_refused(tmp_path: Path):
    reference = Reference.build(ToyEncoder(), [points()], "songs")
    reference.save(tmp_path / "songs.safetensors")
    for exemplars in (reference, tmp_path / "songs.safetensors"):
        with pytest.raises(InputError, match="made by encoder toy-encoder"):
            open_reference(ToyEncoder(frames=2), exemplars)
    assert open_reference(ToyEncoder(), reference) is reference


def test_damaged_files_are_refused(tmp_path: Path):
    path = tmp_path / "songs.safetensors"
    Reference.build(ToyEncoder(), [points()], "songs").save(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1]), b"not a reference"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"songs\.safetensors"):
            Reference.load(path)
    save_file({"mean": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="not a reference"):
        Reference.load(path)


@pytest.mark.parametrize("exemplars", [[], [torch.zeros(1, 2)]], ids=["none", "one frame"])
def test_too_few_exemplars(exemplars: Sequence[Tensor]):
    with pytest.raises(InputError, match="2 frames"):
        Reference.build(ToyEncoder(), exemplars, "songs")


def test_exemplars_that_are_not_finite():
    with pytest.raises(InputError, match="not finite"):
        Reference.build(ToyEncoder(), [torch.tensor([[0.0, 1.0], [float("nan"), 0.0]])], "songs")


def test_a_folder_of_audio_of_several_kinds(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    for i, name in enumerate(("b.wav", "a.flac", "deep/c.ogg")):
        tone(tmp_path / name, seconds=0.1 + i / 20)
    (tmp_path / "notes.txt").write_text("not audio")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reference = open_reference(Blocks(), tmp_path)
    assert (reference.items, reference.count, reference.modality) == (3, 8 + 12 + 16, "audio")
    assert reference.source == str(tmp_path)


def test_unreadable_files_are_named_and_left_out(tmp_path: Path):
    tone(tmp_path / "good.wav")
    (tmp_path / "torn.flac").write_bytes(b"fLaC but no more")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8000)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 8000, subtype="FLOAT")
    with pytest.warns(UserWarning, match="left out of the exemplars") as caught:
        reference = open_reference(Blocks(), tmp_path)
    assert reference.items == 1
    text = " ".join(str(warning.message) for warning in caught)
    assert all(name in text for name in ("torn.flac", "empty.wav", "nan.wav"))


def test_folders_without_audio_and_paths_that_are_not_there(tmp_path: Path):
    with pytest.raises(InputError):
        open_reference(Blocks(), tmp_path)
    with pytest.raises(InputError):
        open_reference(Blocks(), tmp_path / "nothing")
    (tmp_path / "torn.wav").write_bytes(b"RIFF")
    with pytest.warns(UserWarning, match=r"torn\.wav"), pytest.raises(InputError, match="audio file that can be read"):
        open_reference(Blocks(), tmp_path)
    (tmp_path / "odd.npz").write_bytes(b"")
    with pytest.raises(InputError, match=r"odd\.npz"):
        open_reference(Blocks(), tmp_path / "odd.npz")


def test_captions(tmp_path: Path):
    path = tmp_path / "captions.txt"
    path.write_text("left\n\n  right \nanything\n", encoding="utf-8")
    reference = open_reference(ToyEncoder(), path)
    assert (reference.items, reference.count, reference.modality) == (3, 3, "text")
    torch.testing.assert_close(reference.mean, torch.tensor([0.0, 1 / 3], dtype=torch.float64))
    with pytest.raises(InputError, match="encoder of text"):
        open_reference(Blocks(), path)
    for content in (b"\n \n", b"\xff\xfe\x00"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"captions\.txt"):
            open_reference(ToyEncoder(), path)


def test_captions_and_media_do_not_mix():
    with pytest.raises(InputError, match="both"):
        Reference.build(ToyEncoder(), [points(), "left"], "songs")  # pyright: ignore[reportArgumentType]

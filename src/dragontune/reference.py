"""Reference: the statistics of exemplars in an encoder's space, with where they came from.

Stored as safetensors (mean, covariance) with a JSON header of provenance. A reference answers only to the encoder that
made it: the encoder's digest is part of it. Left out: keeping the single embeddings (kernel distances need them).
"""

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dragontune.data import Media
from dragontune.distances.frechet import Gaussian
from dragontune.distances.moments import Moments
from dragontune.embedded import locate
from dragontune.encoders.base import Embeddings, Encoder, TextEncoder
from dragontune.errors import InputError
from dragontune.media import audio

_FIELDS = ("count", "items", "encoder", "encoder_digest", "source", "modality")


@dataclass(frozen=True, eq=False)
class Reference:
    """A Gaussian fitted to the frames of exemplars.

    >>> Reference.build(TinyClap(), (audio.read(path) for path in files), "my songs").save("songs.safetensors")
    """

    mean: Float[Tensor, " dim"]
    covariance: Float[Tensor, " dim dim"]
    count: int
    """Frames."""
    items: int
    encoder: str
    encoder_digest: str
    source: str
    modality: str
    """`audio` or `text`."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the statistics and their provenance."""
        total = hashlib.sha256(repr([getattr(self, name) for name in _FIELDS]).encode())
        for tensor in (self.mean, self.covariance):
            total.update(tensor.contiguous().numpy().tobytes())
        return total.hexdigest()

    @cached_property
    def gaussian(self) -> Gaussian:
        """The statistics, ready for distances."""
        return Gaussian.of_moments(self.mean, self.covariance)

    @classmethod
    def build(cls, encoder: Encoder, exemplars: Iterable[Media] | Iterable[str], source: str) -> "Reference":
        """Embed exemplars: batches of media, or single texts (not both).

        Raises InputError where there are fewer than two frames, or where an embedding is not finite.
        """
        total: Moments | None = None
        items, modalities = 0, set[str]()
        with torch.no_grad():
            for exemplar in exemplars:
                embeddings = _embed(encoder, exemplar)
                modalities.add("text" if isinstance(exemplar, str) else "audio")
                items += len(embeddings)
                part = Moments.of(embeddings.frames, embeddings.mask()).merge()
                total = part if total is None else Moments.join([total, part]).merge()
        if total is None or total.count.item() < 2:
            raise InputError(f"a reference needs 2 frames of exemplars or more, got fewer from {source}: add some")
        if len(modalities) != 1:
            raise InputError(f"the exemplars of a reference are all media or all texts, got both from {source}")
        mean, covariance = total.mean[0], total.covariance()[0]
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise InputError(f"the embeddings of {source} by {encoder.name} are not finite: look for a broken exemplar")
        return cls(mean, covariance, int(total.count), items, encoder.name, encoder.digest, source, modalities.pop())

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        header = {name: str(getattr(self, name)) for name in _FIELDS} | {"digest": self.digest}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file({"mean": self.mean.contiguous(), "covariance": self.covariance.contiguous()}, str(path), header)

    @classmethod
    def load(cls, path: str | Path) -> "Reference":
        """Read a safetensors file; InputError where it is not a reference or is damaged."""
        try:
            with safe_open(str(path), framework="pt") as file:
                header = file.metadata() or {}
                mean, covariance = file.get_tensor("mean"), file.get_tensor("covariance")
            count, items = int(header["count"]), int(header["items"])
            words = [header[name] for name in _FIELDS[2:]]
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise InputError(f"{path} is not a reference ({error}): build it with `dragontune reference`") from error
        reference = cls(mean, covariance, count, items, *words)
        if reference.digest != header.get("digest"):
            raise InputError(f"{path} does not agree with its own digest, it was damaged or edited: build it again")
        return reference

    def check(self, encoder: Encoder) -> None:
        """InputError unless `encoder` is the one that made this reference."""
        if encoder.digest != self.encoder_digest:
            raise InputError(
                f"the reference of {self.source} was made by encoder {self.encoder} ({self.encoder_digest[:12]}), but "
                f"the reward uses {encoder.name} ({encoder.digest[:12]}): use that encoder or build the reference again"
            )


def open_reference(encoder: Encoder, exemplars: str | Path | Reference) -> Reference:
    """The reference behind what a recipe names: a stored one, a folder of audio, a `.txt` of captions (one a line).

    Audio files that cannot be read are left out with a warning that names them. InputError where nothing is left, where
    the encoder does not fit, or where captions meet an encoder without text.
    """
    if isinstance(exemplars, Reference):
        exemplars.check(encoder)
        return exemplars
    path = locate(exemplars)
    if path.is_dir():
        return Reference.build(encoder, _readable(path), str(exemplars))
    match path.suffix.lower():
        case ".safetensors":
            reference = Reference.load(path)
            reference.check(encoder)
            return reference
        case ".txt":
            return Reference.build(encoder, _captions(path), str(exemplars))
        case _:
            raise InputError(
                f"exemplars are a folder of audio, a .txt of captions or a .safetensors reference, got {exemplars}"
            )


def _embed(encoder: Encoder, exemplar: Media | str) -> Embeddings:
    if not isinstance(exemplar, str):
        return encoder.embed(exemplar)
    if not isinstance(encoder, TextEncoder):
        raise InputError(f"captions as exemplars need an encoder of text, but {encoder.name} embeds media only")
    return encoder.embed_text([exemplar])


def _readable(folder: Path) -> Iterator[audio.Audio]:
    """The audio files of a folder that can be read."""
    count = 0
    for path in audio.folder(folder):
        try:
            clip = audio.read(path)
        except InputError as error:
            warnings.warn(f"left out of the exemplars: {error}", stacklevel=2)
            continue
        count += 1
        yield clip
    if count == 0:
        raise InputError(f"none of the audio files in {folder} can be read: give a folder with at least one good file")


def _captions(path: Path) -> list[str]:
    """The lines of a file that are not blank."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"expected UTF-8 text, one caption a line, in {path}: {error}") from error
    captions = [line for line in lines if line]
    if not captions:
        raise InputError(f"expected one caption a line in {path}, got none")
    return captions

"""Reference: the statistics of exemplars in an encoder's space, with where they came from.

Stored as safetensors (mean, covariance, one vector an exemplar) with a header of provenance. A reference answers only
to the encoder that made it: the encoder's digest is part of it. Left out: keeping every frame of every exemplar.
"""

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dragontune.data import Media, Rows
from dragontune.distances.frechet import Gaussian
from dragontune.distances.moments import Moments
from dragontune.embedded import locate
from dragontune.encoders.base import Embeddings, Encoder, TextEncoder
from dragontune.errors import InputError
from dragontune.media import audio, kinds
from dragontune.media.kinds import Kind

_FIELDS = ("count", "items", "encoder", "encoder_digest", "source", "modality")


@dataclass(frozen=True, eq=False)
class Reference:
    """A Gaussian fitted to the frames of exemplars, and the mean frame of each exemplar.

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
    """`audio`, `images`, `video` or `text`."""
    vectors: Float[Tensor, " items dim"] | None = None
    """The mean frame of each exemplar, in single precision; None where only the Gaussian was kept."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the statistics and their provenance."""
        total = hashlib.sha256(repr([getattr(self, name) for name in _FIELDS]).encode())
        for tensor in self._tensors().values():
            total.update(tensor.numpy().tobytes())
        return total.hexdigest()

    @cached_property
    def gaussian(self) -> Gaussian:
        """The statistics, ready for distances."""
        return Gaussian.of_moments(self.mean, self.covariance)

    @cached_property
    def item_vectors(self) -> Float[Tensor, " items dim"]:
        """One vector an exemplar, in double precision; InputError where they were not kept."""
        if self.vectors is None:
            raise InputError(
                f"expected a reference with one vector an exemplar, got one of {self.source} with mean and covariance "
                "only: name the exemplars themselves, or build the reference again"
            )
        return self.vectors.double()

    @classmethod
    def build(cls, encoder: Encoder, exemplars: Iterable[Media] | Iterable[str], source: str) -> "Reference":
        """Embed exemplars: batches of media, or single texts (not both).

        Raises InputError where there are fewer than two frames, or where an embedding is not finite.
        """
        total: Moments | None = None
        vectors, modalities = list[Tensor](), set[str]()
        with torch.no_grad():
            for exemplar in exemplars:
                embeddings = _embed(encoder, exemplar)
                modalities.add("text" if isinstance(exemplar, str) else _modality(exemplar))
                vectors.append(embeddings.mean().float().cpu())
                part = Moments.of(embeddings.frames, embeddings.mask()).merge()
                total = part if total is None else Moments.join([total, part]).merge()
        if total is None or total.count.item() < 2:
            raise InputError(f"a reference needs 2 frames of exemplars or more, got fewer from {source}: add some")
        if len(modalities) != 1:
            raise InputError(f"the exemplars of a reference are all media or all texts, got both from {source}")
        mean, covariance = total.mean[0], total.covariance()[0]
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise InputError(f"the embeddings of {source} by {encoder.name} are not finite: look for a broken exemplar")
        kept = torch.cat(vectors)
        count, modality = int(total.count), modalities.pop()
        return cls(mean, covariance, count, len(kept), encoder.name, encoder.digest, source, modality, kept)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        header = {name: str(getattr(self, name)) for name in _FIELDS} | {"digest": self.digest}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file(self._tensors(), str(path), header)

    def _tensors(self) -> dict[str, Tensor]:
        """What is stored: the vectors only where there are some."""
        found = {"mean": self.mean, "covariance": self.covariance, "vectors": self.vectors}
        return {name: tensor.contiguous() for name, tensor in found.items() if tensor is not None}

    @classmethod
    def load(cls, path: str | Path) -> "Reference":
        """Read a safetensors file; InputError where it is not a reference or is damaged."""
        try:
            with safe_open(str(path), framework="pt") as file:
                header = file.metadata() or {}
                mean, covariance = file.get_tensor("mean"), file.get_tensor("covariance")
                vectors = file.get_tensor("vectors") if "vectors" in file.keys() else None  # noqa: SIM118 - no mapping
            count, items = int(header["count"]), int(header["items"])
            words = [header[name] for name in _FIELDS[2:]]
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise InputError(f"{path} is not a reference ({error}): build it with `dragontune reference`") from error
        encoder, digest, source, modality = words
        reference = cls(mean, covariance, count, items, encoder, digest, source, modality, vectors)
        if reference.digest != header.get("digest"):
            raise InputError(f"{path} does not agree with its own digest, it was damaged or edited: build it again")
        return reference

    def check(self, encoder: Encoder) -> None:
        """InputError unless `encoder` is the one that made this reference."""
        if encoder.digest != self.encoder_digest:
            raise InputError(
                f"the reference of {self.source} was made by encoder {self.encoder} ({self.encoder_digest[:12]}), but "
                f"the reward uses {encoder.name} ({encoder.digest[:12]}), maybe with other settings: use that encoder "
                "or build the reference again"
            )


def open_reference(encoder: Encoder, exemplars: str | Path | Reference) -> Reference:
    """The reference behind what a recipe names: a stored one, a folder of media, a playlist, or a `.txt` of captions.

    Media are audio, images or video, of one kind. A playlist (`.m3u`, `.m3u8`) names one file a line, relative to
    itself; captions stand one a line. Files that cannot be read are left out with a warning that names them. InputError
    where nothing is left, where the encoder does not fit, or where captions meet an encoder without text.
    """
    if isinstance(exemplars, Reference):
        exemplars.check(encoder)
        return exemplars
    path = locate(exemplars)
    if path.is_dir():
        return Reference.build(encoder, _readable(path, *kinds.folder(path)), str(exemplars))
    match path.suffix.lower():
        case ".m3u" | ".m3u8":
            kind, files = kinds.one_kind(audio.playlist(path), path)
            return Reference.build(encoder, _readable(path, kind, files), str(exemplars))
        case ".safetensors":
            reference = Reference.load(path)
            reference.check(encoder)
            return reference
        case ".txt":
            return Reference.build(encoder, _captions(path), str(exemplars))
        case _:
            raise InputError(
                "expected exemplars as a folder of media, an .m3u playlist, a .txt of captions or a .safetensors "
                f"reference, got {exemplars}: name one of these"
            )


def _embed(encoder: Encoder, exemplar: Media | str) -> Embeddings:
    if not isinstance(exemplar, str):
        return encoder.embed(exemplar)
    if not isinstance(encoder, TextEncoder):
        raise InputError(f"captions as exemplars need an encoder of text, but {encoder.name} embeds media only")
    return encoder.embed_text([exemplar])


def _modality(media: Media) -> str:
    """What is made known of exemplars; plain tensors count as audio."""
    kind = kinds.kind_of(media)
    return kind.name if kind else kinds.AUDIO.name


def _readable(source: Path, kind: Kind, paths: Sequence[Path]) -> Iterator[Rows]:
    """The files that can be read."""
    count = 0
    for path in paths:
        try:
            clip = kind.read(path)
        except InputError as error:
            warnings.warn(f"left out of the exemplars: {error}", stacklevel=2)
            continue
        count += 1
        yield clip
    if count == 0:
        raise InputError(f"expected {kind.one} that can be read in {source}, got none: add a good one")


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

"""Reference: the statistics of exemplars in an encoder's space, with where they came from.

Stored as safetensors (mean, covariance, one vector an exemplar) with a header of provenance. A reference answers only
to the encoder that made it: the encoder's digest is part of it. Left out: keeping every frame of every exemplar.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from dragontune import streaming, tensor_files
from dragontune.data import Media
from dragontune.distances.frechet import Gaussian
from dragontune.distances.moments import BLOCK, Moments, RunningMoments
from dragontune.embedded import locate
from dragontune.encoders.base import Embeddings, Encoder, TextEncoder
from dragontune.errors import InputError
from dragontune.media import audio, kinds
from dragontune.media.kinds import Kind
from dragontune.streaming import Reading

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
        modalities = set[str]()

        def embedded() -> Iterator[Embeddings]:
            for exemplar in exemplars:
                modalities.add("text" if isinstance(exemplar, str) else _modality(exemplar))
                embeddings = _embed(encoder, exemplar)
                yield from (streaming.alone(embeddings, row) for row in range(len(embeddings)))

        moments, vectors = _gathered(encoder, embedded(), source)
        if len(modalities) != 1:
            raise InputError(f"the exemplars of a reference are all media or all texts, got both from {source}")
        return cls._of(encoder, moments, vectors, source, modalities.pop())

    @classmethod
    def embedded(cls, encoder: Encoder, embeddings: Iterable[Embeddings], source: str, modality: str) -> "Reference":
        """Of embeddings that `encoder` made, as they come; errors as in `build`."""
        return cls._of(encoder, *_gathered(encoder, embeddings, source), source, modality)

    @classmethod
    def _of(
        cls, encoder: Encoder, moments: Moments, vectors: Float[Tensor, " items dim"], source: str, modality: str
    ) -> "Reference":
        count, items, mean, covariance = int(moments.count), len(vectors), moments.mean[0], moments.covariance()[0]
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise InputError(f"the statistics of {source} by {encoder.name} are not finite: look for a broken exemplar")
        return cls(mean, covariance, count, items, encoder.name, encoder.digest, source, modality, vectors)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; the same reference gives the same bytes."""
        header = {name: str(getattr(self, name)) for name in _FIELDS} | {"digest": self.digest}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file(self._tensors(), str(path), header)
        _sort_header(Path(path))

    def _tensors(self) -> dict[str, Tensor]:
        """What is stored: the vectors only where there are some."""
        found = {"mean": self.mean, "covariance": self.covariance, "vectors": self.vectors}
        return {name: tensor.contiguous() for name, tensor in found.items() if tensor is not None}

    @classmethod
    def load(cls, path: str | Path) -> "Reference":
        """Read a safetensors file; InputError where it is not a reference, does not fit together or is damaged."""
        try:
            found = tensor_files.read(path)
            header, tensors = found.metadata, dict(found.tensors)
            count, items = int(header["count"]), int(header["items"])
            words = [header[name] for name in _FIELDS[2:]]
            mean, covariance, vectors = tensors.pop("mean"), tensors.pop("covariance"), tensors.pop("vectors", None)
            _check_shapes(mean, covariance, vectors, count, items)
            if tensors:
                raise ValueError(f"a tensor too many, {min(tensors)}")
        except (OSError, KeyError, ValueError) as error:
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


def _sort_header(path: Path) -> None:
    """Give the header of a safetensors file, whose names come in a random order, the order of the alphabet."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def open_reference(encoder: Encoder, exemplars: str | Path | Reference, reading: Reading | None = None) -> Reference:
    """The reference behind what a recipe names: a stored one, a folder of media, a playlist, or a `.txt` of captions.

    Media are audio, images or video, of one kind. A playlist (`.m3u`, `.m3u8`) names one file a line, relative to
    itself; captions stand one a line. Files that cannot be read are left out; warnings name the first and count the
    rest, and `reading.unreadable` has them all. `reading` says how files are read (default: with no cache). InputError
    where nothing is left, where the encoder does not fit, or where captions meet an encoder without text.
    """
    reading = reading or Reading()
    if isinstance(exemplars, Reference):
        exemplars.check(encoder)
        return exemplars
    path = locate(exemplars)
    if path.is_dir():
        return _of_files(encoder, *kinds.folder(path), exemplars, reading)
    match path.suffix.lower():
        case ".m3u" | ".m3u8":
            kind, files = kinds.one_kind(audio.playlist(path), path)
            return _of_files(encoder, kind, files, exemplars, reading)
        case ".safetensors":
            reference = Reference.load(path)
            reference.check(encoder)
            return reference
        case ".txt":
            return _of_captions(encoder, path, exemplars, reading)
        case _:
            raise InputError(
                "expected exemplars as a folder of media, an .m3u playlist, a .txt of captions or a .safetensors "
                f"reference, got {exemplars}: name one of these"
            )


@torch.no_grad()
def _gathered(
    encoder: Encoder, embeddings: Iterable[Embeddings], source: str
) -> tuple[Moments, Float[Tensor, " items dim"]]:
    """The moments of all frames and the mean frame of each item, in single precision; little is held besides."""
    running, blocks, vectors = RunningMoments(), list[Tensor](), list[Tensor]()
    count = 0
    for some in embeddings:
        frames = some.pooled()
        if not frames.isfinite().all():
            raise InputError(f"the embeddings of {source} by {encoder.name} are not finite: look for a broken exemplar")
        running.add(frames.cpu())
        vectors.append(some.mean().float().cpu())
        count += len(frames)
        if len(vectors) >= BLOCK:  # many small tensors take several times the memory of their numbers
            blocks.append(torch.cat(vectors))
            vectors = []
    if count < 2:
        raise InputError(f"a reference needs 2 frames of exemplars or more, got fewer from {source}: add some")
    return running.total(), torch.cat([*blocks, *vectors])


def _check_shapes(mean: Tensor, covariance: Tensor, vectors: Tensor | None, count: int, items: int) -> None:
    """ValueError unless these are finite statistics of that many frames and exemplars."""
    dim = len(mean) if mean.ndim == 1 else 0
    kinds = mean.dtype == covariance.dtype == torch.float64 and (vectors is None or vectors.dtype == torch.float32)
    if not kinds or not dim or covariance.shape != (dim, dim) or count < 2 or not 1 <= items <= count:
        raise ValueError("numbers of other types, shapes or counts than statistics have")
    if vectors is not None and vectors.shape != (items, dim):
        raise ValueError(f"vectors of shape {tuple(vectors.shape)} for {items} exemplars")
    tensor_files.check_finite(
        {"mean": mean, "covariance": covariance, **({} if vectors is None else {"vectors": vectors})}
    )


def _embed(encoder: Encoder, exemplar: Media | str) -> Embeddings:
    if not isinstance(exemplar, str):
        return encoder.embed(exemplar)
    return _text_encoder(encoder).embed_text([exemplar])


def _modality(media: Media) -> str:
    """What is made known of exemplars; plain tensors count as audio."""
    kind = kinds.kind_of(media)
    return kind.name if kind else kinds.AUDIO.name


def _of_files(encoder: Encoder, kind: Kind, paths: Sequence[Path], source: str | Path, reading: Reading) -> Reference:
    """The reference of those files that can be read."""
    left_out = len(reading.unreadable)
    embeddings = streaming.embed_files(encoder, kind, paths, reading)

    def some() -> Iterator[Embeddings]:
        yield from embeddings
        if len(reading.unreadable) - left_out == len(paths):
            raise InputError(f"expected {kind.one} that can be read in {source}, got none: add a good one")

    return Reference.embedded(encoder, some(), str(source), kind.name)


def _of_captions(encoder: Encoder, path: Path, source: str | Path, reading: Reading) -> Reference:
    """The reference of the lines of a file."""
    texts = _captions(path)
    embeddings = streaming.embed_texts(_text_encoder(encoder), texts, reading)
    return Reference.embedded(encoder, embeddings, str(source), "text")


def _text_encoder(encoder: Encoder) -> TextEncoder:
    if not isinstance(encoder, TextEncoder):
        raise InputError(f"captions as exemplars need an encoder of text, but {encoder.name} embeds media only")
    return encoder


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

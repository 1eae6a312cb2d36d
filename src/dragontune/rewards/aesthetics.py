"""How people would rate a clip: a regression on its embedding, fitted to ratings (DRAGON, Bai et al. 2025, section 5).

The head that ships was fitted to simulated ratings, not to people's (docs/aesthetics.md); bring your own with
`dragontune fit-aesthetics`. Left out: heads that are networks, and a prediction of how sure the head is.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from dragontune import json_files, tensor_files
from dragontune.data import Samples
from dragontune.embedded import locate
from dragontune.encoders.base import Embeddings, Encoder
from dragontune.encoders.log_mel import LogMel
from dragontune.errors import InputError
from dragontune.rewards.base import DifferentiableReward, InstanceReward
from dragontune.rewards.regression import KernelRidge, NadarayaWatson, Regression

Pooling = Literal["mean", "mean-std"]
SHIPPED = "tiny-music/aesthetics.safetensors"
FINE = LogMel(fft=4096, hop=1024, mels=128, level=-10.0)
"""The encoder of the shipped head, as in tiny-music/ratings/encoder.yaml."""
_REMEDY = "fit it with `dragontune fit-aesthetics`"


@dataclass(frozen=True, eq=False)
class Head:
    """A regression from pooled embeddings to ratings, with where it came from.

    >>> Head.load("my-head.safetensors").predict(encoder.embed(media))
    """

    regression: Regression
    pooling: Pooling
    encoder: str
    encoder_digest: str
    source: str
    about: dict[str, Any]
    """Counts, what was chosen, and how well it predicted held-out ratings; anything JSON can hold."""

    @property
    def kind(self) -> str:
        """`ridge` or `nadaraya-watson`."""
        return "ridge" if isinstance(self.regression, KernelRidge) else "nadaraya-watson"

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the numbers and their provenance."""
        total = hashlib.sha256(repr(sorted(self._header().items())).encode())
        for tensor in (self.regression.points, self.regression.values):
            total.update(tensor.contiguous().numpy().tobytes())
        return total.hexdigest()

    def predict(self, embeddings: Embeddings) -> Float[Tensor, " n"]:
        """One score an item, about -2 to 2."""
        return self.regression.predict(pool(embeddings, self.pooling))

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        tensors = {"points": self.regression.points.contiguous(), "values": self.regression.values.contiguous()}
        save_file(tensors, str(path), self._header() | {"digest": self.digest})

    @classmethod
    def load(cls, path: str | Path) -> "Head":
        """Read a safetensors file; InputError where it is not a head or is damaged."""
        try:
            found = tensor_files.read(path)
            header, points, values = found.metadata, found.tensors["points"], found.tensors["values"]
            bandwidth = float(header["bandwidth"])
            _check_numbers(found.tensors, bandwidth, float(header.get("offset", 0)))
            regression = (
                KernelRidge(points, values, bandwidth, float(header["offset"]))
                if header["kind"] == "ridge"
                else NadarayaWatson(points, values, bandwidth)
            )
            pooling: Any = header["pooling"]
            if pooling not in get_args(Pooling) or header["kind"] not in ("ridge", "nadaraya-watson"):
                raise ValueError(f"a head of kind {header['kind'][:40]} and pooling {pooling[:40]}")
            origin = header["encoder"], header["encoder_digest"], header["source"]
            about = json_files.loads(header["about"])
            if not isinstance(about, dict):
                raise ValueError("nothing about where it came from")
            head = cls(regression, pooling, *origin, about)
        except (OSError, KeyError, ValueError) as error:
            raise InputError(f"expected the head of an aesthetics reward, got {path} ({error}); {_REMEDY}") from error
        if head.digest != header.get("digest"):
            raise InputError(f"expected a head that agrees with its digest, got {path}, damaged or edited; {_REMEDY}")
        return head

    def check(self, encoder: Encoder) -> None:
        """InputError unless `encoder` is the one whose embeddings this head was fitted to."""
        if encoder.digest != self.encoder_digest:
            raise InputError(
                f"expected the encoder of the head, {self.encoder} ({self.encoder_digest[:12]}), got {encoder.name} "
                f"({encoder.digest[:12]}), perhaps with other settings; use that encoder or fit a head for this one"
            )

    def _header(self) -> dict[str, str]:
        own = {"kind": self.kind, "bandwidth": repr(self.regression.bandwidth), "pooling": self.pooling}
        if isinstance(self.regression, KernelRidge):
            own["offset"] = repr(self.regression.offset)
        origin = {"encoder": self.encoder, "encoder_digest": self.encoder_digest, "source": self.source}
        return own | origin | {"about": json.dumps(self.about, sort_keys=True)}


@dataclass(frozen=True, eq=False)
class Aesthetics(InstanceReward[Tensor], DifferentiableReward):
    """The rating a head predicts from an item's embedding, about -2 to 2 (standard deviations of its ratings).

    `head` is a file of `dragontune fit-aesthetics` or a `Head`, and answers only to its own encoder; read at the first
    use. Without either they are those that ship: `LogMel(fft=4096, hop=1024, mels=128, level=-10.0)` and its head; name
    the encoder of a head of your own.

    >>> Aesthetics()(samples)
    tensor([ 0.9, -0.4], dtype=torch.float64)
    """

    encoder: Encoder | None = None
    head: str | Path | Head = SHIPPED

    @property
    def needs_media(self) -> bool:
        """As the encoder."""
        return self.embedder.needs_media

    @property
    def embedder(self) -> Encoder:
        """The encoder given, else that of the head that ships."""
        return FINE if self.encoder is None else self.encoder

    @cached_property
    def fitted(self) -> Head:
        """The head."""
        head = self.head if isinstance(self.head, Head) else Head.load(locate(self.head))
        head.check(self.embedder)
        return head

    def encode(self, samples: Samples) -> Float[Tensor, " n dim"]:
        """The pooled embeddings, on the CPU in double precision."""
        return pool(self.embedder.encode(samples), self.fitted.pooling)

    def score(self, features: Float[Tensor, " n dim"]) -> Float[Tensor, " n"]:
        """The predictions."""
        return self.fitted.regression.predict(features)


def _check_numbers(tensors: Mapping[str, Tensor], bandwidth: float, offset: float) -> None:
    """ValueError unless these can be the numbers of a regression."""
    points, values = tensors["points"], tensors["values"]
    shapes = points.ndim == 2 and points.numel() and values.shape == points.shape[:1]
    if not shapes or len(tensors) != 2 or not points.dtype == values.dtype == torch.float64:
        raise ValueError(f"points of shape {tuple(points.shape)} and values of shape {tuple(values.shape)}")
    if not (0 < bandwidth < math.inf and math.isfinite(offset)):
        raise ValueError(f"a bandwidth of {bandwidth} and an offset of {offset}")
    tensor_files.check_finite(tensors)


def pool(embeddings: Embeddings, pooling: Pooling) -> Float[Tensor, " n dim"]:
    """The mean frame of each item, and with `mean-std` the standard deviation of its frames beside it, at unit length.

    On the CPU in double precision.
    """
    embeddings = embeddings.double_on_cpu()
    mean = embeddings.mean()
    if pooling == "mean":
        return normalize(mean, dim=1)
    off = (embeddings.frames - mean[:, None]) * embeddings.mask()
    variance = off.square().sum(1) / embeddings.count[:, None]
    return normalize(torch.cat([mean, (variance + 1e-12).sqrt()], 1), dim=1)  # a slope where all frames are equal

"""Encoders that look into a cache before they embed, and rewards with such encoders in place of their own.

The key is the decoded media and not the file: a reward may show its encoder a window of an item, or another version.
Left out: texts, and encoders that a reward makes for itself.
"""

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, TypeVar, get_args, get_type_hints

import torch

from dragontune import embedding_cache
from dragontune.data import Media, Samples
from dragontune.embedding_cache import EmbeddingCache
from dragontune.encoders.base import Embeddings, Encoder, TextEncoder
from dragontune.streaming import alone

R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Remembering(Encoder, ABC):
    """An encoder whose embeddings of media come from a cache, or go there; one item at a time, on the CPU."""

    encoder: Encoder
    cache: EmbeddingCache

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the encoder."""
        return self.encoder.name

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the encoder."""
        return self.encoder.dim

    @property
    def digest(self) -> str:
        """As the encoder."""
        return self.encoder.digest

    @property
    def needs_media(self) -> bool:
        """As the encoder."""
        return self.encoder.needs_media

    @cached_property
    def owner(self) -> bytes:
        """Whose the embeddings are."""
        return embedding_cache.identity(self.encoder)

    def embed(self, media: Media) -> Embeddings:
        """Looked up, or embedded."""
        return _recalled(self.encoder, self.owner, self.cache, media)

    def encode(self, samples: Samples) -> Embeddings:
        """Files are looked up; what has latents is left to the encoder."""
        return _encoded(self, self.encoder, samples)


@dataclass(frozen=True, eq=False)
class Remembered(Remembering):
    """Of media alone."""


@dataclass(frozen=True, eq=False)
class RememberedText(Remembering, TextEncoder):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Of texts too, which are embedded anew."""

    encoder: TextEncoder  # pyright: ignore[reportIncompatibleVariableOverride] - frozen, so it may be narrower

    def embed_text(self, texts: Sequence[str]) -> Embeddings:
        """By the encoder."""
        return self.encoder.embed_text(texts)


def remembering(part: R, cache: EmbeddingCache) -> R:
    """A reward, or whatever holds some, with `cache` before every encoder in it that may be any encoder.

    Rewards of other people are left as they are, unless they are dataclasses that are made of their fields.
    """
    if isinstance(part, dict):
        changed = {name: remembering(each, cache) for name, each in part.items()}
        return part if all(changed[name] is part[name] for name in part) else changed  # pyright: ignore
    if isinstance(part, list | tuple):
        members = [remembering(each, cache) for each in part]
        if type(part) not in (list, tuple) or all(new is old for new, old in zip(members, part, strict=True)):
            return part
        return type(part)(members)  # pyright: ignore
    if not is_dataclass(part) or isinstance(part, type | Encoder):
        return part
    try:
        known = get_type_hints(type(part))
    except NameError:  # somebody's annotations that cannot be looked up
        return part
    changed = dict[str, Any]()
    for each in fields(part):
        value = getattr(part, each.name)
        new = _wrapped(value, known[each.name], cache) if isinstance(value, Encoder) else remembering(value, cache)
        if new is not value and each.init:
            changed[each.name] = new
    return replace(part, **changed) if changed else part


def _wrapped(encoder: Encoder, hint: object, cache: EmbeddingCache) -> Encoder:
    """Unless the field asks for one encoder and no other."""
    allowed = get_args(hint) or (hint,)
    if isinstance(encoder, TextEncoder):
        return RememberedText(encoder, cache) if {Encoder, TextEncoder} & set(allowed) else encoder
    return Remembered(encoder, cache) if Encoder in allowed else encoder


def _recalled(encoder: Encoder, owner: bytes, cache: EmbeddingCache, media: Media) -> Embeddings:
    parts = list[Embeddings]()
    for row in range(len(media)):
        one = media[torch.tensor([row])]
        key = embedding_cache.key(owner, embedding_cache.media_content(one))
        found = cache.get(key)
        if found is None:
            found = alone(encoder.embed(one), 0)
            cache.put([(key, found)])
        parts.append(found)
    return Embeddings.join(parts)


def _encoded(self: Encoder, encoder: Encoder, samples: Samples) -> Embeddings:
    files = samples.media is not None and samples.latents.numel() == 0
    return self.embed(samples.media) if files and samples.media is not None else encoder.encode(samples)

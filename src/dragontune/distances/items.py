"""Items of one frame or many, as what exchanging them needs: counts, means, frames about their mean."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dragontune.data import Rows
from dragontune.distances.inputs import Array, finite, tensor, usual, vectors
from dragontune.errors import InputError


@dataclass(frozen=True, eq=False)
class Items(Rows):
    """`centred` holds each item's frames about the item's own mean, rows of zeros where an item has fewer."""

    count: Float[Tensor, " n"]
    mean: Float[Tensor, " n dim"]
    centred: Float[Tensor, " n frames dim"]

    @classmethod
    def of(cls, given: Array | Sequence[Array], name: str) -> "Items":
        """From vectors (n x dim), items of equal length (n x frames x dim), or a list of items (frames x dim).

        Raises InputError for other shapes, no items, empty items, NaN or infinity.
        """
        if isinstance(given, Tensor | np.ndarray):
            values = tensor(given)
            if values.ndim == 2:
                rows = usual(vectors(values, name, 1), name)
                return cls(torch.ones_like(rows[:, 0]), rows, rows[:, None][:, :0])
            if values.ndim != 3 or 0 in values.shape:
                raise InputError(
                    f"expected {name} as vectors (n x dim) or items of frames (n x frames x dim), got shape "
                    f"{tuple(values.shape)}: reshape it"
                )
            return cls._of_frames(usual(finite(values, name), name), torch.full_like(values[:, 0, 0], values.shape[1]))
        if not isinstance(given, list | tuple):
            raise InputError(f"expected {name} as an array or a list of items, got {type(given).__name__}: convert it")
        parts = [usual(vectors(part, f"item {number} of {name}", 1), name) for number, part in enumerate(given)]
        dims = sorted({part.shape[1] for part in parts})
        if len(dims) != 1:
            raise InputError(
                f"expected items of one dimension in {name}, got {dims or 'no items'}: embed all with the same encoder"
            )
        longest = max(len(part) for part in parts)
        frames = torch.stack([torch.nn.functional.pad(part, (0, 0, 0, longest - len(part))) for part in parts])
        return cls._of_frames(frames, torch.tensor([len(part) for part in parts]).to(frames))

    @classmethod
    def _of_frames(cls, frames: Float[Tensor, " n frames dim"], count: Float[Tensor, " n"]) -> "Items":
        if frames.shape[1] == 1:
            return cls(count, frames[:, 0], frames[:, :0])
        real = (torch.arange(frames.shape[1], device=frames.device) < count[:, None]).to(frames)[..., None]
        mean = (frames * real).sum(1) / count[:, None]
        centred = (frames - mean[:, None]) * real
        rest = centred.sum(1) / count[:, None]
        return cls(count, mean + rest, centred - rest[:, None] * real)

    @property
    def frames(self) -> int:
        """Of the longest item."""
        return max(1, self.centred.shape[1])

    def project(self, root: Float[Tensor, " dim rank"]) -> "Items":
        """In the coordinates of a root of the reference's covariance."""
        return Items(self.count, self.mean @ root, self.centred @ root)

    def detached(self) -> "Items":
        """Without gradients."""
        return Items(self.count, self.mean.detach(), self.centred.detach())

    def scaled(self, factor: float) -> "Items":
        """All frames multiplied."""
        return Items(self.count, factor * self.mean, factor * self.centred)

    def moved(self, origin: Float[Tensor, " dim"]) -> "Items":
        """About another origin."""
        return Items(self.count, self.mean - origin, self.centred)

    def pooled_mean(self) -> Float[Tensor, " dim"]:
        """Of all frames together."""
        origin = self.mean[0]
        return origin + ((self.mean - origin) * self.count[:, None]).sum(0) / self.count.sum()

    def stacked(self) -> Float[Tensor, " n rows dim"]:
        """Rows whose Gram matrix is the item's second moment about the origin: its centred frames and its mean."""
        return torch.cat([self.centred, (self.mean * self.count.sqrt()[:, None])[:, None]], 1)

    def contrasts(self) -> "Items":
        """The same with as few centred rows as span them (frames - 1 or the dimension), orthogonal to each other."""
        if self.centred.shape[1] == 0:
            return self
        _, values, right = torch.linalg.svd(self.centred, full_matrices=False)
        keep = min(self.centred.shape[1] - 1, self.centred.shape[2])
        values = torch.where(values > 1e-14 * values[:, :1], values, 0.0)
        return Items(self.count, self.mean, (values[..., None] * right)[:, :keep])


@dataclass(frozen=True, eq=False)
class Traces:
    """The scatter's trace, and the sum of the frames, after exchanges: closed forms, about the members' pooled mean."""

    count: Float[Tensor, " m"]
    sums: Float[Tensor, " m dim"]
    squares: Float[Tensor, " m"]
    other_count: Float[Tensor, " c"]
    other_sums: Float[Tensor, " c dim"]
    other_squares: Float[Tensor, " c"]

    @classmethod
    def of(cls, members: Items, candidates: Items) -> "Traces":
        """Both about the members' pooled mean."""
        return cls(*_totals(members), *_totals(candidates))

    def table(self) -> "Exchanged":
        """Of every exchange."""
        own, other = self.sums.square().sum(1), self.other_sums.square().sum(1)
        apart = (own[:, None] + other - 2 * self.sums @ self.other_sums.mT).clamp(min=0)
        count = self.count.sum() - self.count[:, None] + self.other_count
        return Exchanged(count, apart, self.squares.sum() - self.squares[:, None] + self.other_squares)

    def hidden_by(self, share: float) -> Bool[Tensor, " m"]:
        """Members without which less than `share` of the scatter is left."""
        left = (self.count.sum() - self.count).clamp(min=1)
        rest = self.squares.sum() - self.squares - self.sums.square().sum(1) / left
        return rest < share * self.squares.sum()

    def pairs(self, i: Int[Tensor, " k"], j: Int[Tensor, " k"]) -> "Exchanged":
        """Of some exchanges."""
        apart = (self.other_sums[j] - self.sums[i]).square().sum(1)
        count = self.count.sum() - self.count[i] + self.other_count[j]
        return Exchanged(count, apart, self.squares.sum() - self.squares[i] + self.other_squares[j])


@dataclass(frozen=True, eq=False)
class Exchanged:
    """After an exchange: number of frames, squared length of their sum, sum of their squared lengths."""

    count: Float[Tensor, " *k"]
    sum_square: Float[Tensor, " *k"]
    squares: Float[Tensor, " *k"]

    @property
    def scatter(self) -> Float[Tensor, " *k"]:
        """The trace of the scatter about the new mean."""
        return self.squares - self.sum_square / self.count


def _totals(items: Items) -> tuple[Tensor, Tensor, Tensor]:
    sums = items.mean * items.count[:, None]
    return items.count, sums, items.count * items.mean.square().sum(1) + items.centred.square().sum((1, 2))

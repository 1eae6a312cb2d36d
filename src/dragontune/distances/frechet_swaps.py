"""Every exchange of a set's Fréchet distance at once. docs/distances.md derives it.

Means and traces after an exchange have closed forms; the trace of the root comes from an integral of small determinants
where items have few frames (exact for all pairs at once), else from one eigenvalue problem a pair.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dragontune.distances.frechet import Fit, Gaussian
from dragontune.distances.frechet import reference as as_reference
from dragontune.distances.inputs import Array, positive
from dragontune.distances.items import Exchanged, Items, Traces
from dragontune.distances.roots_frames import FrameRoots
from dragontune.distances.roots_moments import MomentRoots, exchanged, padded
from dragontune.distances.roots_vector import VectorRoots
from dragontune.distances.swaps import MEMORY, Positions, Swaps
from dragontune.errors import InputError

GIANT = 1e-3
"""The share of a set's scatter below which the other members are hidden by one."""


class FrechetSwaps(Swaps):
    """The Fréchet distance of a set to `reference`, and after exchanges with `candidates`.

    `x` and `candidates` are vectors (m x dim, c x dim), items of frames (m x frames x dim) or lists of items of any
    length; frames are pooled. `reference` is as in `frechet_distance`: samples keep more digits than a covariance that
    is not of full rank. `tolerance` is the error of a table relative to the traces, `memory` the bytes for
    intermediate results. Float64, on the device of `x`, without gradients. m of 2 or more.

    >>> swaps = FrechetSwaps(torch.eye(3), torch.eye(3), -torch.eye(3))
    >>> swaps.value, tuple(swaps.table().shape)
    (0.0, (3, 3))
    """

    def __init__(
        self,
        x: Array | Sequence[Array],
        reference: Fit,
        candidates: Array | Sequence[Array],
        *,
        tolerance: float = 1e-12,
        memory: int = MEMORY,
    ) -> None:
        members, others = Items.of(x, "x"), Items.of(candidates, "candidates")
        target = as_reference(reference).to(members.mean.device)
        for name, items in (("x", members), ("candidates", others)):
            if items.mean.shape[1] != target.dim:
                raise InputError(
                    f"expected {name} of the reference's dimension {target.dim}, got {items.mean.shape[1]}: "
                    "use the same encoder for all"
                )
        if len(members) < 2:
            raise InputError(f"expected a set of 2 items or more, got {len(members)}: add items")
        super().__init__(len(members), len(others))
        if not 1e-15 <= positive(tolerance, "tolerance") <= 1e-2:
            raise InputError(f"expected a tolerance from 1e-15 to 0.01, got {tolerance}: leave it out for the default")
        self.tolerance, self.memory = tolerance, int(positive(memory, "memory"))
        items = Items.join([padded(members, others), padded(others, members)]).detached().moved(target.mean.detach())
        self._unit = _unit(items, target)
        self._items = items.scaled(1 / self._unit)
        self._root = target.root.detach() / self._unit
        projected = self._items.project(self._root)
        self.approximate = not _few_frames(projected)
        self._projected = projected if self.approximate else projected.contrasts()
        self._state: _State | None = None

    @property
    def value(self) -> float:
        """The distance of the members."""
        state = self._now
        count = state.traces.count.sum()
        root = state.roots.value / (count - 1) ** 0.5
        traces = state.traces.squares.sum() / (count - 1) + self._root.square().sum()
        return (state.mean.square().sum() + traces - 2 * root).clamp(min=0).item() * self._unit**2

    def table(self) -> Float[Tensor, " m c"]:
        """The distance after every exchange."""
        state = self._now
        found = self._distances(state.traces.table(), state.along_table(), state.roots.table(state.change_table()))
        return self._without_giants(found)

    def screen(self) -> Float[Tensor, " m c"]:
        """The distance after every exchange, to second order where `approximate`."""
        state = self._now
        if not isinstance(state.roots, MomentRoots):
            return self.table()
        found = self._distances(state.traces.table(), state.along_table(), state.roots.screen())
        return self._without_giants(found)

    def pairs(self, i: Positions, j: Positions) -> Float[Tensor, " k"]:
        """The distance after exchanging member i[k] with candidate j[k]."""
        state = self._now
        first, second = (x.to(state.mean.device) for x in self.positions(i, j))
        traces = state.traces
        along = (traces.other_sums[second] - traces.sums[first]) @ state.mean
        change = state.projected.pairs(first, second).scatter - state.projected.squares.sum()
        found = self._distances(traces.pairs(first, second), along, state.roots.pairs(first, second, change))
        for place in state.giants[first].nonzero()[:, 0].tolist():
            found[place] = self._afresh(int(first[place]), int(second[place]))
        return found

    def _without_giants(self, table: Float[Tensor, " m c"]) -> Float[Tensor, " m c"]:
        """With the rows of members that hide the others computed from what is left, not by subtraction."""
        for i in self._now.giants.nonzero()[:, 0].tolist():
            table[i] = table.new_tensor([self._afresh(i, j) for j in range(table.shape[1])])
        return table

    def _afresh(self, i: int, j: int) -> float:
        """The distance after one exchange, from the items alone."""
        rows, others = (x.to(self._items.mean.device) for x in (self.members, self.candidates))
        items = exchanged(self._items[rows], self._items[others], i, j)
        mean, count = items.pooled_mean(), items.count.sum()
        frames = items.moved(mean).stacked().flatten(0, 1)
        root = torch.linalg.svdvals(frames @ self._root).sum() / (count - 1).sqrt()
        traces = frames.square().sum() / (count - 1) + self._root.square().sum()
        return (mean.square().sum() + traces - 2 * root).clamp(min=0).item() * self._unit**2

    @property
    def _now(self) -> "_State":
        """What follows from who is a member: made anew after an exchange, so that nothing drifts."""
        if self._state is None:
            own, other = (rows.to(self._items.mean.device) for rows in (self.members, self.candidates))
            self._state = _State.of(
                self._items[own], self._items[other], self._projected[own], self._projected[other], self
            )
        return self._state

    def _exchanged(self, i: int, j: int) -> None:
        self._state = None

    def _distances(self, after: Exchanged, along: Tensor, roots: Tensor) -> Tensor:
        """From the closed forms, the change of the sum of frames along the mean, and the traces of the root."""
        mean = self._now.mean.square().sum() + 2 * along / after.count + after.sum_square / after.count.square()
        traces = after.scatter / (after.count - 1) + self._root.square().sum()
        return (mean + traces - 2 * roots / (after.count - 1).sqrt()).clamp(min=0) * self._unit**2


@dataclass(frozen=True, eq=False)
class _State:
    """Of one composition of the set: its mean about the reference's, and everything about that mean."""

    mean: Float[Tensor, " dim"]
    traces: Traces
    projected: Traces
    roots: VectorRoots | FrameRoots | MomentRoots
    giants: Bool[Tensor, " m"]
    """Members beside which the rest of the set is small: its size would be the difference of two large numbers."""

    @classmethod
    def of(cls, members: Items, others: Items, own: Items, other: Items, swaps: FrechetSwaps) -> "_State":
        """From the items as they are and projected onto the root of the reference."""
        mean, origin = members.pooled_mean(), own.pooled_mean()
        # what centring leaves of items that are all the same
        longest = max(own.stacked().norm(dim=2).max().item(), origin.norm().item())
        noise = 8 * len(own) ** 0.5 * torch.finfo(torch.float64).eps * longest
        own, other = own.moved(origin), other.moved(origin)
        roots: VectorRoots | FrameRoots | MomentRoots
        if swaps.approximate:
            roots = MomentRoots(own, other, (members.moved(mean), others.moved(mean)), swaps._root, swaps.memory)
        elif own.centred.shape[1] == 0:
            roots = VectorRoots(own.mean, other.mean, noise, swaps.tolerance, swaps.memory)
        else:
            roots = FrameRoots(own, other, noise, swaps.tolerance, swaps.memory)
        traces, projected = Traces.of(members.moved(mean), others.moved(mean)), Traces.of(own, other)
        giants = traces.hidden_by(GIANT) | projected.hidden_by(GIANT)
        return cls(mean, traces, projected, roots, giants)

    def along_table(self) -> Float[Tensor, " m c"]:
        """The change of the sum of all frames, along the mean."""
        return self.traces.other_sums @ self.mean - (self.traces.sums @ self.mean)[:, None]

    def change_table(self) -> Float[Tensor, " m c"]:
        """The change of the trace of the projected scatter."""
        return self.projected.table().scatter - self.projected.squares.sum()


def _unit(items: Items, target: Gaussian) -> float:
    """A power of two of the size of the numbers, so that their squares stay in range."""
    largest = max(*(x.abs().max().item() for x in (items.stacked(), target.root)), 0.0)
    return 2.0 ** math.frexp(largest)[1] if largest else 1.0


def _few_frames(items: Items) -> bool:
    """Whether determinants of the size of an item's frames are cheaper than eigenvalues of the size of the space."""
    frames, dim = items.frames, items.mean.shape[1]
    if frames == 1:
        return True
    rank = min(int(items.count.sum()), dim)
    return 130 * (2e-9 * frames**3 + 1e-10 * frames**2 * rank) < 3e-10 * dim**3

"""The trace of the root of a scatter matrix after every exchange of items of a few frames, all at once.

As `roots_vector`, with items of k rows: k - 1 contrasts between an item's frames, and the item's mean. Leaving an item
out and putting another one in divide the determinant into two of size k, both of positive definite matrices, so that
nothing cancels. An item whose rows are partly, and only partly, explained by the rest of the set would cancel all the
same; its exchanges are evaluated one by one.
"""

import math
from collections.abc import Iterator
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dragontune.distances.items import Items
from dragontune.distances.quadrature import Nodes, log_nodes
from dragontune.distances.roots_moments import direct
from dragontune.distances.roots_vector import CACHE, Basis

ZERO = 1e-20
"""A squared length below this share of the scale is rounding noise."""
RATIO = 1e-8
"""Squared lengths that differ by more than this are not of one kind."""


class FrameRoots:
    """For sets of items of few frames each, as contrasts; members and candidates about the members' pooled mean."""

    def __init__(self, members: Items, candidates: Items, noise: float, tolerance: float, memory: int) -> None:
        self.members, self.others = members, candidates
        self.tolerance, self.memory = tolerance, memory
        self.k = members.centred.shape[1] + 1
        self.total = members.count.sum()
        mean = members.mean.new_zeros(len(members), self.k)
        mean[:, -1] = (members.count / self.total).sqrt()
        self.basis = Basis.of(members.stacked().flatten(0, 1), mean.flatten(), noise)

    @property
    def value(self) -> float:
        """The trace of the root of the scatter."""
        return self.basis.values.sum().item()

    @cached_property
    def left(self) -> Float[Tensor, " m k rank"]:
        """Left singular vectors, item by item."""
        return self.basis.left.view(len(self.members), self.k, -1)

    @cached_property
    def scale(self) -> Float[Tensor, " m"]:
        """By how much leaving an item out weighs its mean more: sqrt(N / (N - n))."""
        return (self.total / (self.total - self.members.count)).sqrt()

    @cached_property
    def removed(self) -> Float[Tensor, " m k rank"]:
        """The rows that leave with an item, in the basis of the members."""
        rows = self.left * self.basis.values
        return torch.cat([rows[:, :-1], rows[:, -1:] * self.scale[:, None, None]], 1)

    @cached_property
    def added(self) -> tuple[Float[Tensor, " c k rank"], Float[Tensor, " c k k"]]:
        """The candidates' rows (contrasts, mean) in the basis, and the Gram matrix of what lies outside of it."""
        rows = torch.cat([self.others.centred, self.others.mean[:, None]], 1)
        inside, outside = self.basis.coordinates(rows)
        return inside, outside @ outside.mT

    @cached_property
    def gap(self) -> Float[Tensor, " m k k"]:
        """What of each item's rows no other row explains: 1 (1 - n/N for the mean) minus the leverage, 0 or more."""
        m, k = len(self.members), self.k
        own = torch.ones(m, k, dtype=self.left.dtype, device=self.left.device)
        own[:, -1] = 1 - self.members.count / self.total
        empty = self.left.square().sum(2) == 0
        if self.basis.complete:
            return torch.diag_embed(torch.where(empty, own, 0.0))
        gap = torch.diag_embed(own) - self.left @ self.left.mT
        poor = torch.linalg.eigvalsh(gap)[:, 0] < 1e-2
        for item in poor.nonzero()[:, 0].tolist():
            residual = self.basis.residual(torch.arange(item * k, item * k + k, device=self.left.device))
            gap[item] = residual @ residual.mT
        return gap

    @cached_property
    def _odd(self) -> tuple[Bool[Tensor, " m"], Bool[Tensor, " c"], Bool[Tensor, " m"], Bool[Tensor, " c"]]:
        """Members that the others explain in part, candidates that lie in the span in part.

        Then, of less harm: members without which a direction is lost, candidates not wholly outside the span.
        """
        noise = ZERO * float(self._size) ** 2
        lost = torch.linalg.eigvalsh(self.gap)  # ascending; 1 in the place of an empty row
        empty = (self.removed.square().sum(2) <= noise).sum(1)
        partly = (lost > 1e-13).sum(1) > empty
        singular = (lost[:, 0] < RATIO) | self.basis.complete
        alone = partly & singular & (not self.basis.complete)
        inside, outside = self.added
        lengths = inside.square().sum(2) + outside.diagonal(dim1=1, dim2=2)
        spread = torch.linalg.eigvalsh(outside)
        rank, full = (spread > noise).sum(1), (lengths > noise).sum(1)
        least = spread.gather(1, (self.k - full).clamp(max=self.k - 1)[:, None])[:, 0]
        inner = (rank < full) | (least < RATIO * spread[:, -1])
        return alone, inner & (rank > 0), singular, inner

    def one_by_one(self, i: Int[Tensor, " *k"], j: Int[Tensor, " *k"]) -> Bool[Tensor, " *k"]:
        """Which exchanges mix directions that are lost or new with others, where determinants would cancel."""
        alone, outer, singular, inner = self._odd
        return alone[i] | outer[j] | (singular[i] & inner[j])

    @cached_property
    def _size(self) -> Tensor:
        """The length of the longest row."""
        inside, outside = self.added
        rows = (inside.square().sum(2) + outside.diagonal(dim1=1, dim2=2)).sqrt() * self.others.count.sqrt()[:, None]
        own = self.basis.values[:1]
        return torch.cat([own, rows.max()[None]]).max()

    @cached_property
    def nodes(self) -> Nodes | None:
        """Of the integral; none where everything is zero."""
        size = float(self._size)
        if size == 0:
            return None
        own = float(self.basis.values[0]) if len(self.basis.values) else size
        return log_nodes(size, self.tolerance, math.pi / 2, 1.0, 3.0, own).to(self.left.device)

    def table(self, change: Float[Tensor, " m c"]) -> Float[Tensor, " m c"]:
        """The trace of the root after every exchange."""
        m, c = change.shape
        i, j = (x.to(change.device) for x in (torch.arange(m).repeat_interleave(c), torch.arange(c).repeat(m)))
        single = self.one_by_one(i, j)
        total = torch.full_like(change, self.value)
        if self.nodes is not None:
            block = max(1, min(CACHE, self.memory // 64) // (c * self.k * self.k))
            for rows in torch.arange(m, device=change.device).split(block):
                total[rows] += self._integral(rows, None, change[rows]) / math.pi
        total.view(-1)[single] = direct(self.members, self.others, i[single], j[single])
        return total

    def pairs(self, i: Int[Tensor, " k"], j: Int[Tensor, " k"], change: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """The trace of the root after some exchanges."""
        single = self.one_by_one(i, j)
        total = torch.full_like(change, self.value)
        rest = (~single).nonzero()[:, 0]
        if self.nodes is not None and len(rest):
            for some in rest.split(max(1, min(CACHE, self.memory // 64) // (self.k * self.k))):
                total[some] += self._integral(i[some], j[some], change[some, None])[:, 0] / math.pi
        total[single] = direct(self.members, self.others, i[single], j[single])
        return total

    def _integral(
        self, members: Int[Tensor, " p"], others: Int[Tensor, " p"] | None, change: Float[Tensor, " p c"]
    ) -> Float[Tensor, " p c"]:
        """Of log D over the nodes: some members with all candidates, or each with its own one (c = 1)."""
        nodes = self.nodes
        assert nodes is not None
        result = nodes.tail(change)
        inside, outside = self.added
        if others is not None:
            inside, outside = inside[others][:, None], outside[others][:, None]
        for some, low in self._chunks(change.numel()):
            square = nodes.t[some].square()
            inverse = 1 / (self.basis.values.square() + square[:, None])
            leaving, lower, crossing = self._without(members, square, inverse, low)
            logs = leaving + self._with(members, others, inside, outside, square, inverse, lower, crossing)
            result += torch.tensordot(nodes.weight[some], logs, 1)
        return result

    def _without(
        self, members: Int[Tensor, " p"], square: Float[Tensor, " q"], inverse: Float[Tensor, " q rank"], low: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Leaving members out: log determinant (q, p, 1), lower Cholesky factor of its matrix, and the rows V A."""
        left, scale = self.left[members], torch.ones_like(self.left[members, :, 0])
        scale[:, -1] = self.scale[members]
        shrunk = (left * (square[:, None] * inverse)[:, None, None]) @ left.mT  # q p k k
        matrix = (self.gap[members] + shrunk) * scale[:, :, None] * scale[:, None, :]
        lower, _ = torch.linalg.cholesky_ex(matrix)
        crossing = self.removed[members] * inverse[:, None, None]
        if low:
            logs = 2 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        else:
            logs = logdet_of_identity_plus(-(crossing @ self.removed[members].mT))
        return logs[..., None], lower, crossing

    def _with(
        self,
        members: Int[Tensor, " p"],
        others: Int[Tensor, " p"] | None,
        inside: Tensor,
        outside: Tensor,
        square: Float[Tensor, " q"],
        inverse: Float[Tensor, " q rank"],
        lower: Float[Tensor, " q p k k"],
        crossing: Float[Tensor, " q p k rank"],
    ) -> Float[Tensor, " q p c"]:
        """Putting candidates into what is left: log det(1 + W A W' + F F'), F = W A V' / lower'."""
        count = self.members.count[members]
        rest = self.total - count
        shift = (count / rest) / (count * self.total / rest).sqrt()  # of the mean, in units of V's last row
        onto = torch.linalg.solve_triangular(lower, crossing, upper=False)  # q p k rank
        own = onto @ self.removed[members, -1, :, None] * shift[:, None, None]  # q p k 1
        weighted = inside * inverse.view(-1, *[1] * (inside.ndim - 1), inverse.shape[1])
        alone = weighted @ inside.mT + outside / square.view(-1, *[1] * inside.ndim)  # q (p) c k k
        if others is None:
            q, p, k, rank = onto.shape
            c = len(inside)
            product = onto.reshape(q, p * k, rank) @ inside.reshape(c * k, rank).mT
            moved = product.view(q, p, k, c, k).transpose(2, 3).clone()  # q p c a b
            alone = alone[:, None]
            added_count = self.others.count
        else:
            moved = onto[:, :, None] @ inside.mT
            added_count = self.others.count[others][:, None]
        last = (moved * lower[:, :, None, -1, :, None]).sum(3) * shift[:, None, None]  # W A u', q p c b
        length = (crossing[:, :, -1] * self.removed[members, -1]).sum(-1) * shift.square()  # u A u'
        moved[..., -1] += own[:, :, None, :, 0]
        matrix = moved.mT @ moved + alone
        matrix[..., :-1, -1] += last[..., :-1]
        matrix[..., -1, :-1] += last[..., :-1]
        matrix[..., -1, -1] += 2 * last[..., -1] + length[..., None]
        weight = (rest[:, None] * added_count / (rest[:, None] + added_count)).sqrt()
        matrix[..., -1, :] *= weight[..., None]
        matrix[..., :, -1] *= weight[..., None]
        return logdet_of_identity_plus(matrix)

    def _chunks(self, entries: int) -> Iterator[tuple[slice, bool]]:
        """Nodes below and above the scale, some at a time."""
        assert self.nodes is not None
        size = max(1, min(CACHE, self.memory // 64) // (entries * self.k * self.k))
        for start, stop, low in ((0, self.nodes.low, True), (self.nodes.low, len(self.nodes.t), False)):
            for first in range(start, stop, size):
                yield slice(first, min(first + size, stop)), low


def logdet_of_identity_plus(matrix: Float[Tensor, " *n k k"]) -> Float[Tensor, " *n"]:
    """Compute log det(1 + X) by elimination that never adds the 1 to what is small; 1 + X positive definite."""
    total = torch.zeros_like(matrix[..., 0, 0])
    for _ in range(matrix.shape[-1]):
        pivot, row = matrix[..., 0, 0], matrix[..., 0, 1:]
        total = total + pivot.log1p()
        matrix = matrix[..., 1:, 1:] - row[..., :, None] * (row / (1 + pivot)[..., None])[..., None, :]
    return total

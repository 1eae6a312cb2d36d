"""The trace of the root of a scatter matrix after every exchange of one vector with another, all at once.

With M the scatter of the set, tr sqrt(M') = tr sqrt(M) + 1/pi int_0^inf log(det(M' + t^2) / det(M + t^2)) dt. An
exchange changes M by a matrix of rank two, so the ratio is a 2 x 2 determinant, whose entries for all pairs are one
matrix product per node of the integral. The forms below have no cancellation (docs/distances.md says why).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragontune.distances.quadrature import Nodes, log_nodes

RANK = 1e-14
"""A singular value below this share of the largest counts as zero."""
CACHE = 2**18
"""Numbers a block may have: it and its neighbours should stay in a CPU's cache."""


@dataclass(frozen=True, eq=False)
class Basis:
    """The left and right singular vectors and the singular values of the rows of a set, noise left out.

    `null` is the left vector of unit length that centring makes a null vector.
    """

    left: Float[Tensor, " n rank"]
    values: Float[Tensor, " rank"]
    right: Float[Tensor, " dim rank"]
    null: Float[Tensor, " n"]

    @classmethod
    def of(cls, rows: Float[Tensor, " n dim"], null: Float[Tensor, " n"], noise: float) -> "Basis":
        """Of rows with null' rows = 0; what is shorter than `noise` is rounding.

        Decomposed in the complement of `null`: left vectors that are orthogonal to it only up to the rounding of the
        centring would spoil what follows where the set has small singular values.
        """
        mirror = null.clone()
        mirror[0] += 1.0 if mirror[0] >= 0 else -1.0
        mirror = mirror / mirror.norm()  # a Householder reflection that takes `null` to the first axis

        def reflect(columns: Tensor) -> Tensor:
            return columns - 2 * mirror[:, None] * (mirror @ columns)

        left, values, right = torch.linalg.svd(reflect(rows)[1:], full_matrices=False)
        keep = (values > RANK * values[:1]) & (values > noise)
        left = reflect(torch.cat([torch.zeros_like(left[:1]), left]))
        return cls(left[:, keep], values[keep], right[keep].mT, null)

    @property
    def complete(self) -> bool:
        """Whether the rows span all that they can: no item can be left out without losing a direction."""
        return len(self.values) == len(self.left) - 1

    def coordinates(self, rows: Float[Tensor, " *n dim"]) -> tuple[Float[Tensor, " *n rank"], Float[Tensor, " *n dim"]]:
        """In the span, and what is left outside of it (projected twice: a difference of squares would lose digits)."""
        inside = rows @ self.right
        outside = rows - inside @ self.right.mT
        return inside, outside - (outside @ self.right) @ self.right.mT

    def residual(self, which: Int[Tensor, " k"]) -> Float[Tensor, " k n"]:
        """Unit vectors of these rows without their parts in the left span and along `null`."""
        unit = torch.zeros(len(which), len(self.left), dtype=self.left.dtype, device=self.left.device)
        unit[torch.arange(len(which), device=unit.device), which] = 1
        for _ in range(2):
            unit = unit - (unit @ self.left) @ self.left.mT - (unit @ self.null)[:, None] * self.null
        return unit


class VectorRoots:
    """For sets of one vector an item: `members` and `candidates`, about the members' mean.

    Lengths below `noise` are rounding. `change` is by how much each exchange changes the trace of the scatter: that
    decides the integrals' tails.
    """

    def __init__(
        self,
        members: Float[Tensor, " m dim"],
        candidates: Float[Tensor, " c dim"],
        noise: float,
        tolerance: float,
        memory: int,
    ) -> None:
        self.m = len(members)
        self.tolerance, self.memory = tolerance, memory
        null = torch.full_like(members[:, 0], self.m**-0.5)
        self.basis = Basis.of(members, null, noise)
        self.outer = candidates

    @property
    def value(self) -> float:
        """The trace of the root of the scatter."""
        return self.basis.values.sum().item()

    @cached_property
    def candidates(self) -> tuple[Tensor, Tensor]:
        """Coordinates in the members' span, squared lengths outside it."""
        inside, outside = self.basis.coordinates(self.outer)
        return inside, outside.square().sum(1)

    @cached_property
    def gap(self) -> Float[Tensor, " m"]:
        """1 - 1/m - leverage: what of an item no other direction explains; exactly 0 where all are needed."""
        if self.basis.complete:
            return torch.zeros_like(self.basis.null)
        gap = 1 - 1 / self.m - self.basis.left.square().sum(1)
        poor = (gap < 1e-2).nonzero()[:, 0]
        for some in poor.split(max(1, CACHE // self.m)):
            gap[some] = self.basis.residual(some).square().sum(1)
        return gap.clamp(min=0)

    @cached_property
    def nodes(self) -> Nodes | None:
        """Of the integral; none where nothing can change because everything is zero."""
        inside, outside = self.candidates
        lengths = (inside.square().sum(1) + outside).sqrt()
        own = self.basis.values[:1]
        scales = torch.cat([own, lengths.max()[None]])
        if not scales.any():
            return None
        smallest = own if len(own) else lengths[lengths > 0].min()
        return log_nodes(scales.max().item(), self.tolerance, math.pi / 2, 1.0, 3.0, smallest.item()).to(inside.device)

    @cached_property
    def _forms(self) -> "_Forms":
        """The parts of the determinants that depend on one item only, at every node."""
        assert self.nodes is not None
        values, square = self.basis.values.square(), self.nodes.t.square()
        inverse = 1 / (values[:, None] + square)
        inside, outside = self.candidates
        weight = self.basis.left.square()
        m = self.m
        return _Forms(
            inverse=inverse,
            alone=m / (m - 1) * (weight @ (square * inverse) + self.gap[:, None]),
            own=(weight * values) @ inverse,
            other=inside.square() @ inverse + outside[:, None] / square,
        )

    def table(self, change: Float[Tensor, " m c"]) -> Float[Tensor, " m c"]:
        """The trace of the root after every exchange."""
        total = torch.full_like(change, self.value)
        if self.nodes is None:
            return total
        block = max(1, CACHE // change.shape[1])
        for rows in torch.arange(self.m, device=change.device).split(block):
            total[rows] += self._integral(rows, change[rows]) / math.pi
        return total

    def _integral(self, rows: Int[Tensor, " k"], change: Float[Tensor, " k c"]) -> Float[Tensor, " k c"]:
        """Of log D over the nodes, for some members and all candidates."""
        nodes, forms, m = self.nodes, self._forms, self.m
        assert nodes is not None
        inside = self.candidates[0]
        right = torch.cat([inside, inside.new_ones(len(inside), 1)], 1).mT.contiguous()
        left = self.basis.left[rows] * self.basis.values
        scale = (m - 1) / m
        result = nodes.tail(change)
        for some, low in self._chunks(change.numel()):
            mean = forms.own[rows, some].mT[..., None] / (m - 1)
            grown = torch.cat([left * forms.inverse[:, some].mT[:, None], mean], 2)
            both = (grown.flatten(0, 1) @ right).view(*grown.shape[:2], -1)
            # 1 + a_ww (or a_ww) by a_vw: (m-1)/m (y + x/(m-1))' A (y + x/(m-1))
            ratio = torch.add(scale * forms.other[:, some].mT[:, None] + float(low), both, alpha=2 / m)
            ratio -= mean / m
            if low:
                ratio *= forms.alone[rows, some].mT[..., None]
                ratio.addcmul_(both, both).log_()
            else:
                removed = m * mean
                ratio *= 1 - removed
                ratio.sub_(removed).addcmul_(both, both).log1p_()
            result += torch.tensordot(nodes.weight[some], ratio, 1)
        return result

    def _chunks(self, entries: int) -> Iterator[tuple[slice, bool]]:
        """Nodes below and above the scale, some at a time."""
        assert self.nodes is not None
        size = max(1, min(CACHE, self.memory // 32) // entries)
        for start, stop, low in ((0, self.nodes.low, True), (self.nodes.low, len(self.nodes.t), False)):
            for first in range(start, stop, size):
                yield slice(first, min(first + size, stop)), low

    def pairs(self, i: Int[Tensor, " k"], j: Int[Tensor, " k"], change: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """The trace of the root after some exchanges."""
        total = torch.full_like(change, self.value)
        if self.nodes is None:
            return total
        nodes, forms, m = self.nodes, self._forms, self.m
        inside = self.candidates[0]
        result = nodes.tail(change)
        for some in torch.arange(len(i), device=change.device).split(max(1, self.memory // (64 * len(nodes.t)))):
            members, others = i[some], j[some]
            mean = forms.own[members] / (m - 1)
            product = (self.basis.left[members] * self.basis.values * inside[others]) @ forms.inverse
            both = product + mean
            ratio = (m - 1) / m * (forms.other[others] + (2 / (m - 1)) * product + mean / (m - 1))
            low, high = slice(0, nodes.low), slice(nodes.low, None)
            logs = torch.empty_like(ratio)
            logs[:, low] = (forms.alone[members, low] * (1 + ratio[:, low]) + both[:, low].square()).log()
            removed = m * mean[:, high]
            logs[:, high] = (ratio[:, high] * (1 - removed) - removed + both[:, high].square()).log1p()
            result[some] += logs @ nodes.weight
        return total + result / math.pi


@dataclass(frozen=True, eq=False)
class _Forms:
    """Quadratic forms with A = (M + t^2)^-1 at every node: of members (`own`) and of candidates (`other`).

    `alone` is the determinant of leaving a member out.
    """

    inverse: Float[Tensor, " rank nodes"]
    alone: Float[Tensor, " m nodes"]
    own: Float[Tensor, " m nodes"]
    other: Float[Tensor, " c nodes"]

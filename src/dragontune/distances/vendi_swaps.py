"""The Vendi score after every exchange of a member of a set with a candidate, without an eigenvalue problem for each.

M = F' F / m (F: m unit rows) has the eigenvalues of the kernel. Exchanging x for y (unit rows divided by sqrt(m)) makes
M' = M - x x' + y y', and with a_uv = u' (M + s)^-1 v

    D(s) = det(M' + s) / det(M + s) = (1 - a_xx) (1 + a_yy) + a_xy^2,
    H(M') - H(M) = int_0^inf log D(s) ds,
    tr M'^q - tr M^q = q sin(pi q) / pi * int_0^inf s^(q-1) log D(s) ds      for 0 < q < 2,

by partial integration of x log x = int x / (1 + s) - x / (x + s) ds and of x^q = sin(pi q) / pi int s^(q-1) x / (x + s)
ds; the second holds beyond q = 1 because the trace is preserved. For the same reason log D = c2 / s^2 + O(s^-3) for
large s, c2 = (tr M^2 - tr M'^2) / 2: this tail is integrated analytically, as c2 / (s + scale)^2.

D splits into a factor of the member, one of the candidate, and 1 + a_xy^2 / ((1 - a_xx) (1 + a_yy)), each 1 or more or
a sum of positive terms, so that nothing cancels; per exchange and node there remain one matrix product and one log1p.
"""

import math
from abc import ABC, abstractmethod
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragontune.distances.inputs import Array, positive
from dragontune.distances.quadrature import log_nodes
from dragontune.distances.swaps import MEMORY, Positions, Swaps
from dragontune.distances.vendi import (
    effective_number,
    excess,
    noise,
    semidefinite,
    unit_rows,
    valid_kernel,
    valid_order,
)
from dragontune.errors import InputError

LEAST_ORDER = 0.5
"""Below, the integrals depend on eigenvalues too small to be known, which `vendi_score` counts as 0."""
TILE = 2**18
"""Numbers that stay in the processor's cache."""


class VendiSwaps(Swaps):
    """Members and candidates are the rows of `x` (m x dim) and `candidates` (c x dim), compared by their cosine.

    All values lie between 1 and m. `tolerance` bounds the relative error of the integrals (orders from 0.5 to 2);
    order 2 is a closed form; other orders solve one eigenvalue problem for each exchange. `memory` is in bytes.

    Raises:
        InputError: as `vendi_score`; no candidates; another dimension than the members'.
    """

    def __init__(
        self, x: Array, candidates: Array, order: float = 1.0, *, tolerance: float = 1e-12, memory: int = MEMORY
    ) -> None:
        members = unit_rows(x, "the set").detach()
        others = unit_rows(candidates, "the candidates", least=1, dim=members.shape[1]).detach()
        super().__init__(len(members), len(others))
        self._items = torch.cat([members, others.to(members.device)])
        self._order = valid_order(order)
        self._tolerance = positive(tolerance, "tolerance")
        self._memory = int(positive(memory, "memory"))
        self._made: _State | None = None

    @classmethod
    def of_kernel(
        cls, kernel: Array, members: int, order: float = 1.0, *, tolerance: float = 1e-12, memory: int = MEMORY
    ) -> "VendiSwaps":
        """From the similarities of all items, (m + c) x (m + c), of which the first `members` are the set.

        Raises:
            InputError: as `vendi_score`; fewer than two members or no candidate.
        """
        similar = valid_kernel(kernel).detach()
        if not 2 <= members < len(similar):
            raise InputError(
                f"expected 2 members or more and one candidate or more in a kernel of {len(similar)} items, "
                f"got {members} members: give the similarities of all items, the members' first"
            )
        values, directions = torch.linalg.eigh(similar)
        semidefinite(values)
        keep = values > noise(values)
        items = directions[:, keep] * values[keep].sqrt()
        return cls(items[:members], items[members:], order, tolerance=tolerance, memory=memory)

    @property
    def value(self) -> float:
        """The Vendi score of the members."""
        return self._now.value

    def pairs(self, i: Positions, j: Positions) -> Float[Tensor, " k"]:
        """What is common to all exchanges is computed at the first call after an exchange."""
        return self._now.pairs(*(at.to(self._items.device) for at in self.positions(i, j)))

    def table(self) -> Float[Tensor, " m c"]:
        """For orders from 0.5 to 2 far cheaper than as many pairs."""
        return self._now.table()

    def _exchanged(self, i: int, j: int) -> None:
        self._made = None  # the next is made from the items, not from this one: errors do not add up

    @property
    def _now(self) -> "_State":
        if self._made is None:
            self._made = self._make()
        return self._made

    def _make(self) -> "_State":
        members, candidates = self._items[self.members], self._items[self.candidates]
        if self._order == 2:
            return _Squares(members, candidates, self._memory)
        if LEAST_ORDER <= self._order < 2:
            return _Integral(members, candidates, self._memory, self._order, self._tolerance)
        return _Eigenvalues(members, candidates, self._memory, self._order)


class _State(ABC):
    """The set as it is: unit rows of members and candidates, and what follows from them."""

    def __init__(self, x: Float[Tensor, " m dim"], y: Float[Tensor, " c dim"], memory: int) -> None:
        self.x, self.y, self.memory = x, y, memory

    @property
    @abstractmethod
    def value(self) -> float: ...

    @abstractmethod
    def pairs(self, i: Int[Tensor, " k"], j: Int[Tensor, " k"]) -> Float[Tensor, " k"]: ...

    def table(self) -> Float[Tensor, " m c"]:
        m, c = len(self.x), len(self.y)
        i, j = torch.arange(m).repeat_interleave(c), torch.arange(c).repeat(m)
        return self.pairs(i.to(self.x.device), j.to(self.x.device)).reshape(m, c)


class _Squares(_State):
    """Order 2: 1 / tr M^2, of which an exchange changes one row and one column."""

    @cached_property
    def _rows(self) -> Float[Tensor, " m"]:
        return (self.x @ self.x.mT).square().sum(1)

    @cached_property
    def _cross(self) -> Float[Tensor, " m c"]:
        return (self.x @ self.y.mT).square()

    @cached_property
    def _columns(self) -> Float[Tensor, " c"]:
        return self._cross.sum(0)

    @property
    def value(self) -> float:
        return float(self._score(self._rows.sum()))

    def pairs(self, i: Int[Tensor, " k"], j: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
        return self._score(self._without[i] + 2 * (self._columns[j] - self._cross[i, j]))

    def table(self) -> Float[Tensor, " m c"]:
        return self._score(torch.sub(self._columns, self._cross).mul_(2).add_(self._without[:, None]))

    @cached_property
    def _without(self) -> Float[Tensor, " m"]:
        """What does not depend on the candidate: the kernel without row and column i, and a new 1 on the diagonal."""
        return self._rows.sum() - 2 * self._rows + 2

    def _score(self, squares: Tensor) -> Tensor:
        m = len(self.x)
        return (m * m / squares).clamp_(1, m)


class _Eigenvalues(_State):
    """Any order: one eigenvalue problem for each exchange, of the smaller of kernel and second moment."""

    def __init__(self, x: Float[Tensor, " m dim"], y: Float[Tensor, " c dim"], memory: int, order: float) -> None:
        super().__init__(x, y, memory)
        self.order = order
        self.primal = len(x) <= x.shape[1]
        self.matrix = x @ x.mT if self.primal else x.mT @ x

    @cached_property
    def _cross(self) -> Float[Tensor, " m c"]:
        return self.x @ self.y.mT

    @property
    def value(self) -> float:
        return float(self._score(self.matrix))

    def pairs(self, i: Int[Tensor, " k"], j: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
        step = max(1, self.memory // (24 * self.matrix.numel()))
        parts = [self._score(self._exchanged(*part)) for part in zip(i.split(step), j.split(step), strict=True)]
        return torch.cat(parts) if parts else self.x.new_zeros(0)

    def _exchanged(self, i: Int[Tensor, " k"], j: Int[Tensor, " k"]) -> Float[Tensor, " k size size"]:
        matrices = self.matrix.repeat(len(i), 1, 1)
        if self.primal:
            each, new = torch.arange(len(i), device=i.device), self._cross.mT[j]
            matrices[each, i], matrices[each, :, i] = new, new
            matrices[each, i, i] = 1
            return matrices
        old, new = self.x[i], self.y[j]
        return matrices.baddbmm_(new[:, :, None], new[:, None]).baddbmm_(old[:, :, None], old[:, None], alpha=-1)

    def _score(self, matrices: Float[Tensor, "*k size size"]) -> Float[Tensor, "*k"]:
        m = len(self.x)
        return effective_number(torch.linalg.eigvalsh(matrices / m), self.order, m)


class _Integral(_State):
    """Orders below 2: the integrals of this module, in the eigenbasis of M, at nodes s.

    `values` are the eigenvalues of M, `x` and `y` the coordinates of members and candidates, divided by sqrt(m), and
    `outside` the squared length of what a candidate has outside the members' span. `redundancy` is 1 less a member's
    leverage (the sum of its `shares` in the eigenvectors of the kernel): 0 if the others' span is smaller without it.
    """

    def __init__(
        self, x: Float[Tensor, " m dim"], y: Float[Tensor, " c dim"], memory: int, order: float, tolerance: float
    ) -> None:
        root = math.sqrt(len(x))
        u, singular, vh = torch.linalg.svd(x / root, full_matrices=False)
        values, relative = singular.square(), len(singular) * torch.finfo(x.dtype).eps
        # directions of no weight of their own still couple member and candidate; at low orders noise would have weight
        rank = int((values > values[0] * (relative if order < 0.75 else relative**2)).sum())
        u, singular, v, values = u[:, :rank], singular[:rank], vh[:rank].mT, values[:rank]
        super().__init__(u * singular, y @ v / root, memory)
        self.order, self.values, self.shares = order, values / values.sum(), u.square()
        # projected out twice: a difference of squares would leave 1e-16 of a candidate inside the span
        rest = y / root - self.y @ v.mT
        self.outside = _without_noise((rest - (rest @ v) @ v.mT).square().sum(1), relative * float(values[0]))
        self.redundancy = _without_noise(1 - self.shares.sum(1), 10 * relative)  # u is orthogonal to a few eps
        self.scale = float(self.values[0]) + 1 / len(x)  # no eigenvalue is larger, before or after
        nodes = log_nodes(
            self.scale, tolerance, strip=math.pi, left=0.9 * order, right=3 - order
        )  # log s: not quite order
        self.s, self.low = nodes.t.to(x.device), nodes.low
        self.weight = nodes.weight.to(x.device) * self.s ** (order - 1)

    @property
    def value(self) -> float:
        return float(effective_number(self.values.flip(0), self.order, len(self.x)))

    def pairs(self, i: Int[Tensor, " k"], j: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
        step = max(1, self.memory // (16 * (len(self.s) + len(self.values))))
        parts = [self._some(*part) for part in zip(i.split(step), j.split(step), strict=True)]
        return torch.cat(parts) if parts else self.s.new_zeros(0)

    def _some(self, i: Int[Tensor, " k"], j: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
        products = self.x[i] * self.y[j]
        joint = (products @ self._inverse.mT).mul_(self._of_x[i]).mul_(self._of_y[j]).square_().log1p_() @ self.weight
        return self._score(joint + self._alone_x[i] + self._alone_y[j] + self._tail * products.sum(1).square())

    def table(self) -> Float[Tensor, " m c"]:
        total = (self.x @ self.y.mT).square_().mul_(self._tail)
        total.add_(self._alone_x[:, None]).add_(self._alone_y)
        budget = min(TILE, max(1, self.memory // 32))
        columns = min(len(self.y), budget)
        rows = min(len(self.x), max(1, budget // (columns + len(self.values))))
        nodes = max(1, budget // (rows * (columns + len(self.values))))
        for top in range(0, len(self.x), rows):
            for left in range(0, len(self.y), columns):
                tile = slice(top, top + rows), slice(left, left + columns)
                for first in range(0, len(self.s), nodes):
                    self._add(total[tile], *tile, slice(first, first + nodes))
        return self._score(total)

    def _add(self, total: Float[Tensor, " r k"], rows: slice, columns: slice, at: slice) -> None:
        """The part of some nodes in what depends on member and candidate together."""
        x = (self.x[rows] * self._inverse[at, None]).mul_(self._of_x.mT[at, rows, None])
        joint = (x.flatten(0, 1) @ self.y[columns].mT).view(len(x), *total.shape)
        joint.mul_(self._of_y.mT[at, None, columns]).square_().log1p_()
        total.add_((self.weight[at] @ joint.flatten(1)).view_as(total))

    def _score(self, integral: Float[Tensor, "*k"]) -> Float[Tensor, "*k"]:
        away = 1 - self.order
        if away == 0:
            entropy = -(self.values * self.values.log()).sum()
            score = (integral + entropy).exp_()
        else:
            powers = excess(self.values, self.order) + self.order * away * _sinc(away) * integral
            score = (powers.log1p() / away).exp_()
        return score.clamp_(1, len(self.x))

    @cached_property
    def _inverse(self) -> Float[Tensor, " nodes rank"]:
        return 1 / (self.values + self.s[:, None])

    @cached_property
    def _stays(self) -> Float[Tensor, " m nodes"]:
        """1 - a_xx as a sum of positive terms."""
        return self.shares @ (self.s * self._inverse.mT) + self.redundancy[:, None]

    @cached_property
    def _a_yy(self) -> Float[Tensor, " c nodes"]:
        return self.y.square() @ self._inverse.mT + self.outside[:, None] / self.s

    @cached_property
    def _of_x(self) -> Float[Tensor, " m nodes"]:
        return self._stays.rsqrt()

    @cached_property
    def _of_y(self) -> Float[Tensor, " c nodes"]:
        return (1 + self._a_yy).rsqrt()

    @cached_property
    def _tail(self) -> float:
        """The integral of s^(q - 1) / (s + scale)^2, less what the nodes make of it."""
        exact = self.scale ** (self.order - 2) / _sinc(1 - self.order)
        return exact - float((self.weight / (self.s + self.scale).square()).sum())

    # Above the scale, both logarithms approach 1 / (m s), with opposite signs: it is left out of either.

    @cached_property
    def _alone_x(self) -> Float[Tensor, " m"]:
        """The integral of log(1 - a_xx), and the part of c2 that depends on the member."""
        low, high = slice(None, self.low), slice(self.low, None)
        squares, a_xx = self.x.square(), self.x.square() @ self._inverse[high].mT
        beyond = log1p_rest(-a_xx) + (squares * self.values) @ self._inverse[high].mT / self.s[high]
        logs = torch.cat([self._stays[:, low].log(), beyond], 1)
        return logs @ self.weight + self._tail * (squares @ self.values - 1 / len(self.x) ** 2)

    @cached_property
    def _alone_y(self) -> Float[Tensor, " c"]:
        """The integral of log(1 + a_yy), and the part of c2 that depends on the candidate."""
        low, high = slice(None, self.low), slice(self.low, None)
        moments = self.y.square() * self.values
        beyond = log1p_rest(self._a_yy[:, high]) - moments @ self._inverse[high].mT / self.s[high]
        logs = torch.cat([self._a_yy[:, low].log1p(), beyond], 1)
        return logs @ self.weight - self._tail * moments.sum(1)


def log1p_rest(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """log(1 + x) - x for x > -1, accurate near 0, where the two nearly cancel."""
    series = torch.zeros_like(x)
    for power in range(9, 1, -1):
        series = x * series + (1 if power % 2 else -1) / power
    return torch.where(x.abs() < 0.01, x.square() * series, x.log1p() - x)


def _without_noise(squares: Float[Tensor, " n"], limit: float) -> Float[Tensor, " n"]:
    return torch.where(squares > limit, squares, 0)


def _sinc(x: float) -> float:
    return math.sin(math.pi * x) / (math.pi * x) if x else 1.0

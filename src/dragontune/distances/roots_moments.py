"""The trace of the root of a scatter matrix after exchanges of items of many frames: one eigenvalue problem each.

For a first look at all exchanges, the trace of the root is expanded to second order in the change, which is a matrix
product over all pairs; the best of those are then evaluated exactly.
"""

from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dragontune.distances.items import Items

POOR = 1e-10
"""Below this ratio of the smallest to the largest eigenvalue, roots of eigenvalues lose digits."""
CHOLESKY = 1e-6
"""Below this ratio of the smallest to the largest diagonal entry, the Cholesky factor of a difference is too poor."""


class MomentRoots:
    """For sets of items of many frames; members and candidates about the members' pooled mean.

    `plain` are the same items before they were projected onto the root of the reference's covariance.
    """

    def __init__(
        self,
        members: Items,
        candidates: Items,
        plain: tuple[Items, Items],
        root: Float[Tensor, " dim rank"],
        memory: int,
    ) -> None:
        self.members, self.others, self.memory = members, candidates, memory
        self.plain, self.root = plain, root

    @cached_property
    def value(self) -> float:
        """The trace of the root of the scatter."""
        if self._well:
            return self._eigen[0].sqrt().sum().item()
        return torch.linalg.svdvals(self.members.stacked().flatten(0, 1)).sum().item()

    @cached_property
    def _scatter(self) -> Float[Tensor, " dim dim"]:
        rows = self.members.stacked().flatten(0, 1)
        return rows.mT @ rows

    @cached_property
    def _plain_scatter(self) -> Float[Tensor, " dim dim"]:
        rows = self.plain[0].stacked().flatten(0, 1)
        return rows.mT @ rows

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        return torch.linalg.eigh(self._scatter)

    @cached_property
    def _well(self) -> bool:
        """Whether eigenvalues are accurate: otherwise singular values of the frames themselves are taken."""
        values = self._eigen[0]
        return bool(values[0] > POOR * values[-1])

    def table(self, change: Float[Tensor, " m c"]) -> Float[Tensor, " m c"]:
        """The trace of the root after every exchange."""
        m, c = change.shape
        i, j = (x.to(change.device) for x in (torch.arange(m).repeat_interleave(c), torch.arange(c).repeat(m)))
        return self.pairs(i, j).view(m, c)

    def pairs(
        self, i: Int[Tensor, " k"], j: Int[Tensor, " k"], change: Float[Tensor, " k"] | None = None
    ) -> Float[Tensor, " k"]:
        """The trace of the root after some exchanges: by the quickest way that is accurate for each."""
        dim = len(self.root)
        size = max(1, self.memory // (8 * 6 * dim * dim))
        parts = [self._after(a, b) for a, b in zip(i.split(size), j.split(size), strict=True)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=i.device)

    def _after(self, i: Int[Tensor, " k"], j: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
        if not self._well:
            return self._by_factors(i, j)
        values = torch.linalg.eigvalsh(_exchanged(self._scatter, self.members, self.others, i, j))
        found = values.clamp(min=0).sqrt().sum(1)
        poor = values[:, 0] < POOR * values[:, -1].clamp(min=self._eigen[0][-1])  # what is left hides in the rounding
        if poor.any():
            found[poor] = self._by_factors(i[poor], j[poor])
        return found

    def _by_factors(self, i: Int[Tensor, " k"], j: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Singular values of Cholesky factor times root: their conditions multiply, not the squares of them."""
        scatter = _exchanged(self._plain_scatter, *self.plain, i, j)
        lower, failed = torch.linalg.cholesky_ex(scatter)
        diagonal = lower.diagonal(dim1=1, dim2=2)
        largest = torch.maximum(scatter, self._plain_scatter).diagonal(dim1=1, dim2=2).amax(1).sqrt()
        poor = (failed > 0) | ~(diagonal.amin(1) > CHOLESKY * largest)
        found = torch.zeros(len(i), dtype=torch.float64, device=i.device)
        good = ~poor
        if good.any():
            found[good] = torch.linalg.svdvals(lower[good].mT @ self.root).sum(1)
        if poor.any():
            found[poor] = direct(self.members, self.others, i[poor], j[poor])
        return found

    def screen(self) -> Float[Tensor, " m c"]:
        """`table` to second order in the change of the scatter."""
        values, directions = self._eigen
        keep = values > 1e-12 * values[-1].clamp(min=1e-300)
        roots, directions = values[keep].sqrt(), directions[:, keep]
        first, second = (items.project(directions) for items in (self.members, self.others))
        sums = [items.mean * items.count[:, None] for items in (first, second)]
        slope = 0.5 / roots
        linear = [(items.stacked().square().sum(1) * slope).sum(1) for items in (first, second)]
        count = first.count.sum() - first.count[:, None] + second.count
        weighted = [x * slope.sqrt() for x in sums]
        shift = (
            weighted[0].square().sum(1)[:, None] + weighted[1].square().sum(1) - 2 * weighted[0] @ weighted[1].mT
        ) / count
        own, other, both = self._curvatures(first, second, roots)
        curved = own[:, None] + other - 2 * both
        return roots.sum() + linear[1] - linear[0][:, None] - shift - curved / 4

    def _curvatures(
        self, first: Items, second: Items, roots: Float[Tensor, " rank"]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " c"], Float[Tensor, " m c"]]:
        """Inner products of second moments under 1 / (sqrt(l_a l_b) (sqrt l_a + sqrt l_b)), some rows a at a time."""
        rows, others = first.stacked(), second.stacked()
        m, c = len(rows), len(others)
        own, other = rows.new_zeros(m), rows.new_zeros(c)
        both = rows.new_zeros(m, c)
        size = max(1, self.memory // (8 * 2 * (m + c) * max(1, len(roots))))
        for some in torch.arange(len(roots), device=roots.device).split(size):
            weight = 1 / (roots[some, None] * roots * (roots[some, None] + roots))
            mine, theirs = (((x[:, :, some].mT @ x) * weight.sqrt()).flatten(1) for x in (rows, others))
            own += mine.square().sum(1)
            other += theirs.square().sum(1)
            both += mine @ theirs.mT
        return own, other, both


def _exchanged(
    scatter: Float[Tensor, " dim dim"], members: Items, candidates: Items, i: Int[Tensor, " k"], j: Int[Tensor, " k"]
) -> Float[Tensor, " k dim dim"]:
    """The scatter about the new mean after exchanges."""
    old, new = members[i], candidates[j]
    leaving, coming = old.stacked(), new.stacked()
    shift = new.mean * new.count[:, None] - old.mean * old.count[:, None]
    shift = shift / (members.count.sum() - old.count + new.count).sqrt()[:, None]
    after = torch.baddbmm(torch.baddbmm(scatter, coming.mT, coming), leaving.mT, leaving, alpha=-1)
    return after.sub_(shift[:, :, None] * shift[:, None, :])


def direct(members: Items, candidates: Items, i: Int[Tensor, " k"], j: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
    """The trace of the root after some exchanges, from the singular values of all frames: slow, and always right."""
    found = []
    for a, b in zip(i.tolist(), j.tolist(), strict=True):
        items = exchanged(members, candidates, a, b)
        rows = items.moved(items.pooled_mean()).stacked().flatten(0, 1)
        found.append(torch.linalg.svdvals(rows).sum())
    return torch.stack(found) if found else torch.zeros(0, dtype=torch.float64, device=i.device)


def exchanged(members: Items, candidates: Items, i: int, j: int) -> Items:
    """The set after an exchange."""
    keep = torch.arange(len(members), device=members.mean.device) != i
    new = torch.tensor([j], device=members.mean.device)
    return Items.join([padded(members[keep.nonzero()[:, 0]], candidates), padded(candidates[new], members)])


def padded(items: Items, like: Items) -> Items:
    """With as many rows as the longer of both."""
    more = like.centred.shape[1] - items.centred.shape[1]
    if more <= 0:
        return items
    return Items(items.count, items.mean, torch.nn.functional.pad(items.centred, (0, 0, 0, more)))

"""The kernel distance of a set after every exchange of one member, in O(1) each and exactly.

With s_p the sum of the kernel between item p and the members, r_p its mean over the reference and T the sum over pairs
of different members, exchanging member a for candidate b turns T into T - 2 (s_a - k_aa) + 2 (s_b - k_ab), and the sum
of r by r_b - r_a.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.distances import inputs
from dragontune.distances.inputs import Array
from dragontune.distances.kernel import Kernel, KernelReference, held, kernel_means, kernel_reference
from dragontune.distances.swaps import Positions, Swaps


class KernelSwaps(Swaps):
    """`kernel_distance` between the set `x` and the reference, and what exchanges with the candidates make of it.

    Keeps the members' kernel with all items (m (m + c) numbers). An accepted exchange computes the newcomer's row, in
    O((m + c) dim), and sums the columns anew, so that errors do not grow with the number of exchanges: they stay near
    1e-15 of the largest kernel value. Pass a `KernelReference` where one reference serves many sets: its own part takes
    O(n^2 dim). Arguments and errors are those of `kernel_distance`; one candidate is enough.
    """

    def __init__(
        self,
        x: Array,
        reference: Array | KernelReference,
        candidates: Array,
        kernel: Kernel | str = "gaussian",
        *,
        bandwidth: float | None = None,
        unbiased: bool = True,
    ) -> None:
        known = kernel_reference(reference, kernel, bandwidth)
        dim, device = known.vectors.shape[1], known.vectors.device
        members = inputs.vectors(x, "x", dim=dim).detach().to(device)
        others = inputs.vectors(candidates, "candidates", least=1, dim=dim).detach().to(device)
        super().__init__(len(members), len(others))
        self._items = torch.cat([members, others])
        self._kernel, self._unbiased = known.kernel, unbiased
        self._itself = known.itself(unbiased)
        self._to_reference = kernel_means(self._kernel, self._items, known.vectors)
        self._diagonal = held(self._kernel.diagonal(self._items))
        self._rows = held(self._kernel(members, self._items))
        self._sum()

    @property
    def value(self) -> float:
        """The kernel distance of the members, 0 or more if biased."""
        return self._distance(self._pairs, self._own, self._reference_sum).item()

    def pairs(self, i: Positions, j: Positions) -> Float[Tensor, " k"]:
        """In O(1) each."""
        i, j = self.positions(i, j)
        old, new = self.members[i], self.candidates[j]
        return self._after(old, new, self._rows[i, new])

    def table(self) -> Float[Tensor, " m c"]:
        """In O(m c)."""
        return self._after(self.members[:, None], self.candidates, self._rows[:, self.candidates])

    def _after(self, old: Tensor, new: Tensor, between: Tensor) -> Tensor:
        """The distance with item `new` in the place of `old`; `between` is their kernel."""
        out, into = self._apart[old], self._sums[new]
        own = self._diagonal[new] - self._diagonal[old]
        gain = self._to_reference[new] - self._to_reference[old]
        return self._distance(self._pairs + 2 * (into - between - out), self._own + own, self._reference_sum + gain)

    def _distance(self, pairs: Tensor, own: Tensor, to_reference: Tensor) -> Tensor:
        m = len(self.members)
        if self._unbiased:
            return pairs / (m * (m - 1)) + self._itself - 2 / m * to_reference
        return ((pairs + own) / m**2 + self._itself - 2 / m * to_reference).clamp(min=0)

    def _exchanged(self, i: int, j: int) -> None:
        newcomer = self._items[self.members[i]]
        self._rows[i] = self._kernel(newcomer[None], self._items)[0]
        self._sum()

    def _sum(self) -> None:
        """All sums over the members, from nothing but who they are."""
        self._sums = self._rows.sum(0)
        self._apart = self._sums - self._diagonal
        self._pairs = self._apart[self.members].sum()
        self._own = self._diagonal[self.members].sum()
        self._reference_sum = self._to_reference[self.members].sum()

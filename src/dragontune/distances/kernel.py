"""Squared maximum mean discrepancy between two sets under a kernel (Gretton et al. 2012).

With a Gaussian kernel on audio embeddings this is the kernel audio distance (KAD: Chung et al. 2025), with the cubic
polynomial on Inception features the kernel Inception distance (KID: Binkowski et al. 2018). The numbers are raw MMD^2;
KAD's authors' kadtk prints 100 times as much. Left out: KID's average over random subsets, extrapolation to infinite
sets.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dragontune.distances import inputs
from dragontune.distances.inputs import Array
from dragontune.errors import InputError

BLOCK = 2**20
"""Kernel values held at a time: 8 MiB for each intermediate result, however large the sets are."""
SIDE = 2**10
CLOSE = 2**-10
"""Vectors whose squared distance is so small a part of their squared lengths have lost three digits in products."""
MEDIAN_ROWS = 4096
"""A reference of more rows than this takes its median distance from a fixed random subset of so many."""


class Kernel(ABC):
    """A positive definite function of two vectors."""

    @abstractmethod
    def __call__(self, a: Float[Tensor, " n dim"], b: Float[Tensor, " m dim"]) -> Float[Tensor, " n m"]:
        """Of every row of `a` with every row of `b`."""

    @abstractmethod
    def diagonal(self, a: Float[Tensor, " n dim"]) -> Float[Tensor, " n"]:
        """Of every row with itself."""

    @abstractmethod
    def resolved(self, reference: Float[Tensor, " n dim"]) -> "Kernel":
        """The same kernel, its open parameters chosen for this reference."""


@dataclass(frozen=True)
class Radial(Kernel):
    """A function of |a - b|^2 / (2 bandwidth^2) that is 1 at 0; bandwidth None is the reference's `median_distance`."""

    bandwidth: float | None = None

    def __post_init__(self) -> None:
        if self.bandwidth is not None:
            inputs.positive(self.bandwidth, "bandwidth")

    @abstractmethod
    def profile(self, ratio: Float[Tensor, " n m"]) -> Float[Tensor, " n m"]:
        """The kernel's value at |a - b|^2 / (2 bandwidth^2)."""

    def __call__(self, a: Float[Tensor, " n dim"], b: Float[Tensor, " m dim"]) -> Float[Tensor, " n m"]:
        """Between 0 and 1, each within about 1e-12 however far apart the vectors are."""
        if self.bandwidth is None:
            raise InputError(f"expected {type(self).__name__} with a bandwidth, got None: call resolved(reference)")
        return self.profile(squared_distances(a, b) / self.bandwidth / (2 * self.bandwidth))

    def diagonal(self, a: Float[Tensor, " n dim"]) -> Float[Tensor, " n"]:
        """Ones."""
        return torch.ones_like(a[:, 0])

    def resolved(self, reference: Float[Tensor, " n dim"]) -> "Radial":
        """The reference's median distance, if no bandwidth was given."""
        return self if self.bandwidth is not None else replace(self, bandwidth=median_distance(reference))


class Gaussian(Radial):
    """exp(-|a - b|^2 / (2 bandwidth^2))."""

    def profile(self, ratio: Float[Tensor, " n m"]) -> Float[Tensor, " n m"]:
        """exp(-ratio)."""
        return (-ratio).exp()


class InverseMultiquadric(Radial):
    """(1 + |a - b|^2 / (2 bandwidth^2))^(-1/2): heavier tails, so that far sets still tell how far."""

    def profile(self, ratio: Float[Tensor, " n m"]) -> Float[Tensor, " n m"]:
        """1 / sqrt(1 + ratio)."""
        return (1 + ratio).rsqrt()


@dataclass(frozen=True)
class Polynomial(Kernel):
    """(gamma a.b + coef)^degree, KID's by default; gamma None is 1 / dim.

    It compares the moments up to the degree and, unlike the others, changes when both sets are moved.
    """

    degree: int = 3
    gamma: float | None = None
    coef: float = 1.0

    def __post_init__(self) -> None:
        if self.degree < 1:
            raise InputError(f"expected a degree of 1 or more, got {self.degree}: 3 is usual")
        if not 0 <= self.coef < float("inf"):
            raise InputError(f"expected a finite coef of 0 or more, got {self.coef}: 1 is usual")
        if self.gamma is not None:
            inputs.positive(self.gamma, "gamma")

    def __call__(self, a: Float[Tensor, " n dim"], b: Float[Tensor, " m dim"]) -> Float[Tensor, " n m"]:
        """Any size: degree 3 grows with the sixth power of the vectors' length."""
        return self._power(a @ b.mT, a.shape[1])

    def diagonal(self, a: Float[Tensor, " n dim"]) -> Float[Tensor, " n"]:
        """From the squared lengths."""
        return self._power(a.square().sum(1), a.shape[1])

    def resolved(self, reference: Float[Tensor, " n dim"]) -> "Polynomial":
        """The reference's dimension gives gamma, if none was given."""
        return self if self.gamma is not None else replace(self, gamma=1 / reference.shape[1])

    def _power(self, products: Tensor, dim: int) -> Tensor:
        gamma = 1 / dim if self.gamma is None else self.gamma
        return (gamma * products + self.coef) ** self.degree


KERNELS: dict[str, type[Radial] | type[Polynomial]] = {
    "gaussian": Gaussian,
    "imq": InverseMultiquadric,
    "polynomial": Polynomial,
}


@dataclass(frozen=True, eq=False)
class KernelReference:
    """What many sets are compared with: its vectors, the kernel chosen for it, and how alike its own vectors are."""

    vectors: Float[Tensor, " n dim"]
    kernel: Kernel
    apart: float
    """The mean of the kernel over all pairs of different rows: the unbiased distance's."""
    whole: float
    """The mean of the kernel over all pairs, each row with itself among them: the biased distance's."""

    @classmethod
    def of(cls, samples: Array, kernel: Kernel | str = "gaussian", bandwidth: float | None = None) -> "KernelReference":
        """Precompute, on the samples' device, in time proportional to n^2 dim and 8 MiB a piece.

        Raises:
            InputError: fewer than two vectors, NaN or infinity, an unknown kernel, a bandwidth that is not above 0, or
                none given and a median distance of 0.
        """
        vectors = inputs.vectors(samples, "the reference").detach().clone()
        chosen = _kernel(kernel, bandwidth).resolved(vectors)
        n, total, own = len(vectors), kernel_total(chosen, vectors).item(), chosen.diagonal(vectors).sum().item()
        return cls(vectors, chosen, (total - own) / (n * (n - 1)), total / n**2)

    def itself(self, unbiased: bool) -> float:
        """The mean that the unbiased or the biased distance takes."""
        return self.apart if unbiased else self.whole


def kernel_distance(
    x: Array,
    y: Array | KernelReference,
    kernel: Kernel | str = "gaussian",
    *,
    bandwidth: float | None = None,
    unbiased: bool = True,
) -> Float[Tensor, ""]:
    """MMD^2 between the rows of `x` and those of the reference `y`, in float64 on the reference's device.

    Args:
        x: Vectors (n x dim); gradients flow to them, and to them alone.
        y: The reference (m x dim), or what was precomputed of it, which then brings its kernel along.
        kernel: "gaussian" (KAD), "imq", "polynomial" (KID), or a kernel.
        bandwidth: Of the Gaussian and the inverse multiquadric; by default the `median_distance` of the reference,
            never of `x`. With one given, the distance is the same both ways round.
        unbiased: Leave out each vector's similarity to itself (a U-statistic): right on average for any number of
            vectors, and negative about half the time for sets of one distribution. Otherwise 0 or more, with a bias
            of order 1/n + 1/m.

    The error is of rounding: some 1e-15 of the largest kernel value (1 for Gaussian and inverse multiquadric).

    Raises:
        InputError: fewer than two vectors, another dimension, NaN or infinity, or what `KernelReference.of` refuses.
    """
    reference = kernel_reference(y, kernel, bandwidth)
    x = inputs.vectors(x, "x", dim=reference.vectors.shape[1]).to(reference.vectors.device)
    n, total = len(x), kernel_total(reference.kernel, x)
    rest = reference.itself(unbiased) - 2 * kernel_means(reference.kernel, x, reference.vectors).mean()
    if unbiased:
        return (total - reference.kernel.diagonal(x).sum()) / (n * (n - 1)) + rest
    return (total / n**2 + rest).clamp(min=0)


def kernel_reference(y: Array | KernelReference, kernel: Kernel | str, bandwidth: float | None) -> KernelReference:
    """`y` itself if it is precomputed, and the other arguments were left alone or agree with it."""
    if not isinstance(y, KernelReference):
        return KernelReference.of(y, kernel, bandwidth)
    if bandwidth is not None or kernel not in ("gaussian", y.kernel):
        raise InputError(f"expected no kernel or bandwidth beside a reference that has {y.kernel}: leave them out")
    return y


def squared_distances(a: Float[Tensor, " n dim"], b: Float[Tensor, " m dim"]) -> Float[Tensor, " n m"]:
    """|a - b|^2 with a relative error of some 1e-13, 0 for copies.

    From products of vectors centred at `middle(b)`, for speed; where these cancel, from differences.
    """
    origin = middle(b)
    a, b = a - origin, b - origin
    squares = centred_squares(a, b)
    with torch.no_grad():
        i, j = (squares < CLOSE * (a.square().sum(1)[:, None] + b.square().sum(1))).nonzero(as_tuple=True)
    if not len(i):
        return squares
    pairs = zip(i.split(BLOCK // SIDE), j.split(BLOCK // SIDE), strict=True)
    exact = torch.cat([(a[rows] - b[columns]).square().sum(1) for rows, columns in pairs])
    return squares.index_put((i, j), exact)


def centred_squares(a: Float[Tensor, " n dim"], b: Float[Tensor, " m dim"]) -> Float[Tensor, " n m"]:
    """|a - b|^2, 0 or more, wrong by about eps (|a|^2 + |b|^2)."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1)
    return torch.addmm(squares, a, b.mT, alpha=-2).clamp(min=0)


def middle(b: Float[Tensor, " m dim"]) -> Float[Tensor, " dim"]:
    """The median of each coordinate over up to 64 rows: a mean would follow one far item and cost the others digits."""
    return b.detach()[:: -(-len(b) // 64)].median(0).values


def median_distance(reference: Float[Tensor, " n dim"]) -> float:
    """The median of the distances between different rows (the lower of two middle ones).

    Exact up to `MEDIAN_ROWS` rows, else of a subset of so many that depends on the number of rows alone.

    Raises:
        InputError: it is 0.
    """
    if len(reference) > MEDIAN_ROWS:
        order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(0))
        reference = reference[order[:MEDIAN_ROWS]]
    found = []
    for start in range(0, len(reference), SIDE // 4):
        strip = squared_distances(reference[start : start + SIDE // 4], reference[start:])
        found.append(strip[torch.ones_like(strip, dtype=torch.bool).triu(1)])
    median = torch.cat(found).median().sqrt().item()
    if median == 0:
        raise InputError(
            "expected a reference of different vectors, got a median distance of 0: look for copies or give a bandwidth"
        )
    return median


def kernel_total(kernel: Kernel, a: Float[Tensor, " n dim"]) -> Float[Tensor, ""]:
    """The sum of the kernel over all pairs of rows, a block at a time, also backward."""
    parts, total = a.split(SIDE), a.new_zeros(())
    for at, part in enumerate(parts):
        total = total + _block_sums(kernel, part, part, len(parts) > 1).sum()
        for later in parts[at + 1 :]:
            total = total + 2 * _block_sums(kernel, part, later, True).sum()
    return held(total)


def kernel_means(kernel: Kernel, a: Float[Tensor, " n dim"], b: Float[Tensor, " m dim"]) -> Float[Tensor, " n"]:
    """The mean of the kernel over the rows of `b`, a block at a time, also backward."""
    means = []
    for part in a.split(SIDE):
        blocks = b.split(BLOCK // len(part))
        sums = [_block_sums(kernel, part, block, len(a) * len(b) > BLOCK) for block in blocks]
        means.append(torch.stack(sums).sum(0) / len(b))
    return held(torch.cat(means))


def _block_sums(kernel: Kernel, a: Tensor, b: Tensor, again: bool) -> Tensor:
    """The kernel's row sums; `again` computes the block a second time for the gradient rather than keep it."""

    def sums(a: Tensor, b: Tensor) -> Tensor:
        return kernel(a, b).sum(1)

    if not (again and torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)):
        return sums(a, b)
    found = checkpoint(sums, a, b, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(found, Tensor)
    return found


def held(values: Tensor) -> Tensor:
    """The same kernel values; InputError where they are not finite."""
    if not values.detach().isfinite().all():
        raise InputError(
            "expected a kernel that float64 can hold, got NaN or infinity: bring the vectors to unit scale"
        )
    return values


def _kernel(kernel: Kernel | str, bandwidth: float | None) -> Kernel:
    if isinstance(kernel, str):
        if kernel not in KERNELS:
            raise InputError(f"expected a kernel named {', '.join(KERNELS)}, got {kernel!r}: name one or pass a Kernel")
        kernel = KERNELS[kernel]()
    if bandwidth is None:
        return kernel
    if not isinstance(kernel, Radial):
        raise InputError(f"expected no bandwidth for {kernel}, got {bandwidth}: leave it out")
    if kernel.bandwidth is not None:
        raise InputError(f"expected one bandwidth, got {bandwidth} beside {kernel}: leave one out")
    return replace(kernel, bandwidth=bandwidth)

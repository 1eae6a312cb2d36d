"""Kernel rewards: minus the maximum mean discrepancy to exemplars (MMD: Gretton et al. 2012; KAD: Chung et al. 2025).

An item and an exemplar are their mean frame. Unlike a Fréchet distance it does not assume a Gaussian, and it has no
bias with few items. Left out: kernels between all frames of a set.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from dragontune.data import Samples
from dragontune.distances.kernel import KernelReference, kernel_distance, kernel_means
from dragontune.distances.kernel_swaps import KernelSwaps
from dragontune.distances.swaps import Swaps, Total
from dragontune.rewards.base import DifferentiableReward, DistributionReward, InstanceReward
from dragontune.rewards.exemplar import ExemplarReward


@dataclass(frozen=True, eq=False)
class KernelReward(ExemplarReward[Tensor], DifferentiableReward):
    """The kernel and its bandwidth; None is the median distance between exemplars (KAD's rule)."""

    kernel: Literal["gaussian", "imq", "polynomial"] = "gaussian"
    bandwidth: float | None = None

    @property
    def distance(self) -> bool:
        """It is, squared."""
        return True

    @cached_property
    def target(self) -> KernelReference:
        """The exemplars."""
        return KernelReference.of(self.check_exemplars(2), self.kernel, self.bandwidth)

    def encode(self, samples: Samples) -> Float[Tensor, " n dim"]:
        """The mean frame of each item, on the CPU in double precision."""
        return self.encoder.encode(samples).double_on_cpu().mean()


@dataclass(frozen=True, eq=False)
class SetKernel(KernelReward, DistributionReward[Tensor]):
    """Minus the unbiased MMD^2 between a set and the exemplars: about 0 for sets of one distribution, even above."""

    @property
    def minimum(self) -> int:
        """It takes two items to be alike."""
        return 2

    def score(self, features: Float[Tensor, " n dim"]) -> Float[Tensor, ""]:
        """Minus the distance."""
        self.check_set(features)
        return -kernel_distance(features, self.target)

    def swaps(self, first: Float[Tensor, " n dim"], second: Float[Tensor, " k dim"]) -> Swaps:
        """All exchanges at once."""
        return Total([(-1.0, KernelSwaps(first, self.target, second))])


@dataclass(frozen=True, eq=False)
class SongKernel(KernelReward, InstanceReward[Tensor]):
    """Minus the MMD^2 (biased, 0 or more) between one item and the exemplars: highest where exemplars are dense.

    For a Gaussian kernel that is the kernel density of the exemplars at the item, up to scale and a constant.
    """

    def score(self, features: Float[Tensor, " n dim"]) -> Float[Tensor, " n"]:
        """Minus the distances."""
        reference = self.target
        own = reference.kernel.diagonal(features)
        return 2 * kernel_means(reference.kernel, features, reference.vectors) - own - reference.whole

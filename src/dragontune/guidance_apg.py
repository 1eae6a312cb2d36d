"""Adaptive projected guidance (Sadat et al. 2024, arXiv 2410.02416), as ACE-Step's pipeline has it.

It works on what a network says (a velocity), not on clean estimates, whose direction is another. A walk keeps `average`
from step to step, per item.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class AdaptiveProjection:
    """Guidance without the part of the difference that only makes what the prompt says louder.

    The difference between outputs with the prompt and without is averaged over the steps with `momentum` (algorithm 1;
    a negative one damps), held to a norm of `threshold` along `axes`, and, of its part parallel to the conditional
    output, only `parallel` is kept. The defaults are ACE-Step's.

    >>> AdaptiveProjection().parallel
    0.0
    """

    momentum: float = -0.75
    parallel: float = 0.0
    threshold: float = 2.5
    axes: tuple[int, ...] = (-1,)

    def guide(
        self,
        conditional: Float[Tensor, " n *latent"],
        free: Float[Tensor, " n *latent"],
        average: Float[Tensor, " n *latent"],
        scale: float,
    ) -> tuple[Float[Tensor, " n *latent"], Float[Tensor, " n *latent"]]:
        """The guided output, and the average for the next step; before the first it is 0.

        `scale` is that of classifier-free guidance: 1 is the conditional output.
        """
        average = conditional - free + self.momentum * average
        norm = torch.linalg.vector_norm(average, dim=self.axes, keepdim=True)
        change = average * (self.threshold / norm.clamp(min=self.threshold))
        size = conditional.square().sum(self.axes, keepdim=True).clamp(min=1e-24)
        along = (change * conditional).sum(self.axes, keepdim=True) / size * conditional
        return conditional + (scale - 1) * (change - (1 - self.parallel) * along), average

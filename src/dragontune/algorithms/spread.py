"""How much the generations of a round differ: what a collapse is seen by (docs/health.md)."""

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.distances.vendi import vendi_score


def averages(latents: Float[Tensor, " n *latent"]) -> Float[Tensor, " n width"]:
    """Each item's mean over all of its axes but the first; items of one axis as they are."""
    return latents.flatten(1) if latents.ndim <= 2 else latents.flatten(2).mean(2)


@torch.no_grad()
def spread(latents: Float[Tensor, " n *latent"]) -> dict[str, float]:
    """`diversity`, the Vendi score of the items' averages, and `latent_variance`, over items, a mean over elements.

    Averages see a collapse that whole latents, nearly orthogonal whatever they hold, hide (docs/guard.md). Items that
    are not finite are left out; of fewer than two there is nothing to say, and the result is empty.
    """
    sound = latents.flatten(1).isfinite().all(1)
    items = (latents if sound.all() else latents[sound]).detach().float()
    means = averages(items).double().cpu()
    means = means[means.norm(dim=1) > 0]
    if len(means) < 2:
        return {}
    return {
        "diversity": vendi_score(means).item(),
        "latent_variance": items.flatten(1).var(0, correction=0).double().mean().item(),
    }

"""How well an item fits its prompt: cosine similarity in a joint space of media and text (CLAP: Wu et al. 2023)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dragontune.data import Samples
from dragontune.encoders.base import TextEncoder
from dragontune.rewards.base import DifferentiableReward, InstanceReward


@dataclass(frozen=True, eq=False)
class Alignment(InstanceReward[Tensor], DifferentiableReward):
    """Cosine between the mean frame of an item and its prompt, in [-1, 1]."""

    encoder: TextEncoder

    @property
    def needs_media(self) -> bool:
        """As the encoder."""
        return self.encoder.needs_media

    @property
    def needs_prompts(self) -> bool:
        """They are half of it."""
        return True

    def encode(self, samples: Samples) -> Float[Tensor, " n"]:
        """The cosines."""
        media = normalize(self.encoder.encode(samples).mean(), dim=1)
        text = normalize(self.encoder.embed_text(samples.prompts).mean(), dim=1)
        return (media * text.to(media)).sum(1)

    def score(self, features: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The cosines as they are."""
        return features

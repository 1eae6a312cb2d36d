"""Which picture of a prompt people would choose: PickScore (Kirstain et al. 2023, arXiv 2305.01569).

A CLIP network, further trained on choices between pairs. Licences: this code Apache-2.0; the authors' code MIT, their
weights (`yuvalkirstain/PickScore_v1`) without a licence that is known here: check the model card.
"""

from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from dragontune.data import Samples
from dragontune.encoders.clip import Clip
from dragontune.rewards.base import DifferentiableReward, InstanceReward


@dataclass(frozen=True, eq=False)
class PickScore(InstanceReward[Tensor], DifferentiableReward):
    """The cosine of picture and prompt times the network's learned scale (100 at most), about 15 to 25.

    A video has the mean of its frames. The difference of two scores is the log odds of the first being chosen. `model`
    is a folder or a hub name of any CLIP checkpoint, `processor` another that has its tokenizer and
    `preprocessor_config.json`, where the model has none; `weights` as for `Clip`.

    >>> PickScore()(samples)
    """

    model: str = "yuvalkirstain/PickScore_v1"
    processor: str | None = None
    weights: str | None = None

    @property
    def needs_prompts(self) -> bool:
        """They are half of it."""
        return True

    @cached_property
    def encoder(self) -> Clip:
        """The network with its tokenizer."""
        return Clip(self.model, self.processor, self.weights)

    def encode(self, samples: Samples) -> Float[Tensor, " n"]:
        """The scaled cosines."""
        media = self.encoder.encode(samples).frames
        text = self.encoder.embed_text(samples.prompts).frames.to(media)
        return self.encoder.network.logit_scale.exp() * (media * text).sum(2).mean(1)

    def score(self, features: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """As they are."""
        return features

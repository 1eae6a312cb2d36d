"""How varied a set is: the Vendi score in an encoder's space. Alone it rewards noise; combine it or watch quality."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dragontune.data import Samples
from dragontune.distances.swaps import Swaps
from dragontune.distances.vendi import vendi_score
from dragontune.distances.vendi_swaps import VendiSwaps
from dragontune.encoders.base import Encoder
from dragontune.errors import InputError
from dragontune.rewards.base import DifferentiableReward, DistributionReward


@dataclass(frozen=True, eq=False)
class Vendi(DistributionReward[Tensor], DifferentiableReward):
    """The effective number of different items, between 1 and the size of the set.

    An item is its mean frame, at unit length. A higher `order` gives rare items less weight (1: Shannon entropy).
    """

    encoder: Encoder
    order: float = 1.0

    def __post_init__(self) -> None:
        if not self.order >= 0:
            raise InputError(f"the order of a Vendi score is 0 or more, got {self.order}")

    @property
    def needs_media(self) -> bool:
        """As the encoder."""
        return self.encoder.needs_media

    @property
    def minimum(self) -> int:
        """One item has no diversity."""
        return 2

    def encode(self, samples: Samples) -> Float[Tensor, " n dim"]:
        """The unit mean frame of each item."""
        return normalize(self.encoder.encode(samples).mean(), dim=1)

    def score(self, features: Float[Tensor, " n dim"]) -> Float[Tensor, ""]:
        """The Vendi score of the rows."""
        if len(features) < self.minimum:
            raise InputError(f"Vendi needs at least {self.minimum} items in a set, got {len(features)}")
        return vendi_score(features, self.order)

    def swaps(self, first: Float[Tensor, " n dim"], second: Float[Tensor, " k dim"]) -> Swaps:
        """All exchanges at once."""
        return VendiSwaps(first, second, self.order)

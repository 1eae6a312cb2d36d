"""What Stable Diffusion 3 and FLUX tell their networks of a prompt."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from dragontune.data import Rows


@dataclass(frozen=True, eq=False)
class PooledText(Rows):
    """Text tokens, all of which are attended to, and one vector of the whole prompt."""

    tokens: Float[Tensor, " n tokens width"]
    pooled: Float[Tensor, " n pooled_width"]

"""Preference losses on implicit rewards, beta (error of the reference - error of the model).

An implicit reward says how much better than the frozen model the policy denoises an item (DRAGON, Bai et al. 2025,
eq. 7 with the sign turned: higher is better). Errors are means over the elements of the latents and beta multiplies
them directly (Diffusion-DPO's published code has beta / 2 there). Every loss is a mean over pairs, so that the gradient
of a batch is the mean of the gradients of its equal parts.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid


class PreferenceLoss(ABC):
    """Pulls the implicit rewards of D+ up and those of D- down."""

    @property
    def anchored(self) -> bool:
        """Whether `losses` looks at the anchor."""
        return False

    def anchor(self, positive: Float[Tensor, " n"], negative: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """What the loss must know of the whole batch, without gradients (KTO's reference point); 0 unless needed."""
        return positive.new_zeros(())

    @abstractmethod
    def losses(
        self, positive: Float[Tensor, " n"], negative: Float[Tensor, " n"], anchor: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """The loss of each pair; `anchor` repeats the batch's anchor for every row."""

    def __call__(self, positive: Float[Tensor, " n"], negative: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """The loss of a whole batch at once."""
        anchor = self.anchor(positive.detach(), negative.detach())
        return self.losses(positive, negative, anchor.expand(len(positive))).mean()


@dataclass(frozen=True)
class Dpo(PreferenceLoss):
    """Diffusion-DPO (Wallace et al. 2023, eq. 14; DRAGON eq. 6): -log sigmoid(r+ - r-). ln 2 at the reference."""

    def losses(
        self, positive: Float[Tensor, " n"], negative: Float[Tensor, " n"], anchor: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Compares the two items of a pair."""
        return -logsigmoid(positive - negative)


@dataclass(frozen=True)
class Kto(PreferenceLoss):
    """Diffusion-KTO (Li et al. 2024, eq. 8; DRAGON eq. 8): 1 - sigmoid(+-(r - q)). 1/2 at the reference.

    The reference point q is the batch mean of the implicit rewards, not below 0, without gradients.
    """

    @property
    def anchored(self) -> bool:
        """It does."""
        return True

    def anchor(self, positive: Float[Tensor, " n"], negative: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """max(0, mean implicit reward of both sets)."""
        return ((positive + negative) / 2).mean().clamp(min=0)

    def losses(
        self, positive: Float[Tensor, " n"], negative: Float[Tensor, " n"], anchor: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Compares each item with the reference point: no pairing is used."""
        return 1 - ((positive - anchor).sigmoid() + (anchor - negative).sigmoid()) / 2

"""A Generator turns prompts into latents and latents into media. It knows nothing of rewards."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dragontune.data import Media, Rows
from dragontune.guidance_apg import AdaptiveProjection
from dragontune.schedule import Schedule


class Generator(ABC):
    """A diffusion or flow model with switchable adapters.

    `denoise` has one convention whatever the network predicts: it returns the estimate of the clean latents,
    E[x_0 | x_t]; epsilon, velocity and EDM-preconditioned networks are converted by the subclass.
    """

    name: str
    """What the model is called in reports: `tiny-music`, a folder or a hub name."""
    schedule: Schedule
    latent_shape: tuple[int, ...]
    sample_rate: int
    device: torch.device
    sharded: bool = False
    """Whether processes share the network's weights, so that they must call it equally often."""
    projection: AdaptiveProjection | None = None
    """How samplers guide this model, which predicts a flow, if not by classifier-free guidance."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Rows:
        """The condition, one row a prompt; the empty prompt is the unconditional one."""

    def conditions(self, prompts: Sequence[str]) -> tuple[Rows, Rows]:
        """The condition of the prompts, and what guidance leads away from: by default the empty prompt for each."""
        count = len(prompts)
        both = self.encode_prompts([*prompts, ""])
        return both[torch.arange(count)], both[torch.full((count,), count)]

    def prompt_vectors(self, condition: Rows) -> Float[Tensor, " n width"]:
        """What the condition says, as one vector a row: each column's numbers, their mean over tokens, side by side.

        The last axis of a column is its width, all between it and the first are tokens.
        """
        return torch.cat([*_vectors(condition), torch.zeros(len(condition), 0, device=self.device)], 1)

    @abstractmethod
    def denoise(
        self, noisy: Float[Tensor, " n *latent"], t: Float[Tensor, " n"], condition: Rows
    ) -> Float[Tensor, " n *latent"]:
        """The model's estimate of the clean latents at times `t` in [0, 1] (1 = noise)."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, " n *latent"]) -> Media:
        """Latents to media; gradients pass."""

    @abstractmethod
    def encode(self, media: Media) -> Float[Tensor, " n *latent"]:
        """Media to latents (the mean of the posterior); gradients pass."""

    @abstractmethod
    def parameters(self) -> Iterator[nn.Parameter]:
        """The trainable adapter weights, and only those."""

    @abstractmethod
    def reference(self) -> AbstractContextManager[None]:
        """Within it the adapters are off: `denoise` is the frozen pretrained model, bit for bit."""

    @abstractmethod
    def scaled(self, gamma: float) -> AbstractContextManager[None]:
        """Within it the adapters' change is multiplied by `gamma` (0: the pretrained model, 1: as tuned)."""

    @abstractmethod
    def save_adapter(self, folder: str) -> None:
        """Write the adapter in peft's format into `folder`."""

    @abstractmethod
    def load_adapter(self, folder: str) -> None:
        """Replace the adapter by the one in `folder` (peft's format); InputError if it does not fit."""

    @abstractmethod
    def mix_adapters(self, parts: Sequence[tuple[str, float]]) -> None:
        """Replace the adapter by a weighted sum of the changes of others, each a folder in peft's format and a weight.

        One with weight 1 is `load_adapter`. InputError if one does not fit or is no plain LoRA.
        """

    @abstractmethod
    def rescale(self, gamma: float) -> None:
        """Multiply the adapters' change by `gamma` for good, in `parameters()` and in what `save_adapter` writes."""


def _vectors(column: object) -> Iterator[Float[Tensor, " n width"]]:
    """Of the columns of real numbers in a condition, in their order."""
    match column:
        case Tensor():
            if column.is_floating_point():
                match column.ndim:
                    case 1:
                        yield column[:, None]
                    case 2:
                        yield column
                    case _:
                        yield column.flatten(1, -2).mean(1)
        case Rows():
            for field in fields(column):
                yield from _vectors(getattr(column, field.name))
        case _:
            return

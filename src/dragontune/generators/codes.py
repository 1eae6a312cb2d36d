"""Continuous latent frames as tokens and back: residual vector quantisation (Juang & Gray 1982).

Level by level the nearest code is taken of what the levels before have left. Codes are found by k-means on frames, once
and for good. Left out: codebooks trained with the autoencoder.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Int
from torch import Tensor, nn

from dragontune.seeding import Key


class ResidualCodes(ModelMixin, ConfigMixin):
    """`levels` codebooks of `size` codes for frames of `channels` numbers; a frame is `levels` consecutive tokens."""

    @register_to_config
    def __init__(self, levels: int = 4, size: int = 256, channels: int = 32) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.zeros(levels, size, channels), requires_grad=False)

    def encode(self, latents: Float[Tensor, " n channels frames"]) -> Int[Tensor, " n length"]:
        """Tokens frame by frame, coarse to fine; the length is `frames * levels`."""
        rest = latents.detach().transpose(1, 2).flatten(0, 1)
        found = []
        for codes in self.codes:
            token = nearest(rest, codes)
            found.append(token)
            rest = rest - codes[token]
        return torch.stack(found, 1).view(len(latents), -1)

    def decode(self, tokens: Int[Tensor, " n length"]) -> Float[Tensor, " n channels frames"]:
        """The sum of a frame's codes."""
        levels = self.config["levels"]
        places = tokens.unflatten(1, (-1, levels))
        return sum(self.codes[i][places[..., i]] for i in range(levels)).transpose(1, 2)  # pyright: ignore


def nearest(frames: Float[Tensor, " n channels"], codes: Float[Tensor, " size channels"]) -> Int[Tensor, " n"]:
    """The closest code of each frame."""
    return torch.cat([torch.cdist(part, codes).argmin(1) for part in frames.split(8192)])


def fit(frames: Float[Tensor, " n channels"], levels: int, size: int, key: Key, rounds: int = 20) -> ResidualCodes:
    """Codebooks by k-means, `rounds` of it a level, from random frames; a code that nobody takes starts again."""
    found = ResidualCodes(levels, size, frames.shape[1])
    rest = frames
    for level in range(levels):
        codes = rest[key.fold("start", level).permutation(len(rest))[:size]]
        for i in range(rounds):
            taken = nearest(rest, codes)
            counts = taken.bincount(minlength=size).to(rest)[:, None]
            means = torch.zeros_like(codes).index_add_(0, taken, rest) / counts.clamp(min=1)
            codes = torch.where(counts > 0, means, rest[key.fold("again", level, i).permutation(len(rest))[:size]])
        found.codes.data[level] = codes
        rest = rest - codes[nearest(rest, codes)]
    return found

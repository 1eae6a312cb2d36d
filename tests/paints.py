"""A fake model of images or of videos, whose pictures tell its latents, and an encoder of pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from dragontune.data import Media, Rows
from dragontune.encoders.base import Embeddings, Encoder
from dragontune.generators.checkpoint import Checkpoint, Precision, frozen
from dragontune.generators.codec import Codec
from dragontune.generators.pipeline import Adapted
from dragontune.generators.pretrained import Family
from dragontune.media.image import Images
from dragontune.media.kinds import expect
from dragontune.media.video import Video
from dragontune.schedule import Edm, Schedule
from dragontune.testing import Toy


@dataclass(frozen=True, eq=False)
class Paints(Adapted):
    """A disc on a ground: the first coordinate is how bright the ground is, the second how green the disc.

    The latents are the toy's points, and the model is the toy's exact denoiser with a correction that begins at zero.
    """

    toy: Toy = field(default_factory=Toy)
    name: str = "paints"
    moving: bool = False
    schedule: Schedule = field(default_factory=Edm)
    latent_shape: tuple[int, ...] = (2,)
    sample_rate: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = "float32"

    @cached_property
    def network(self) -> nn.Sequential:  # pyright: ignore[reportIncompatibleMethodOverride]
        network = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 2))
        generator = torch.Generator().manual_seed(0)
        for layer in (network[0], network[2]):
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(network[2].weight)  # pyright: ignore[reportArgumentType]
        return frozen(network, self.device)

    def encode_prompts(self, prompts: Sequence[str]) -> Rows:
        return self.toy.encode_prompts(prompts)

    def denoise(self, noisy: Float[Tensor, " n 2"], t: Float[Tensor, " n"], condition: Rows) -> Float[Tensor, " n 2"]:
        sigma = self.schedule.sigma(t)[:, None]
        size = (1 + sigma**2).sqrt()
        change = self.network(torch.cat([noisy / size, sigma.clamp(min=1e-4).log() / 4], 1))
        return self.toy.exact(noisy, t, condition) + sigma / size * change

    def decode(self, latents: Float[Tensor, " n 2"]) -> Images | Video:
        if not self.moving:
            return Images(_paint(latents, 40, 56))
        frames = [_paint(latents * torch.tensor([1.0, share]), 24, 32) for share in (0.2, 0.5, 0.8, 1.1)]
        return Video(torch.stack(frames, 1), 4.0)

    def encode(self, media: Media) -> Float[Tensor, " n 2"]:
        raise NotImplementedError


def open_fake(checkpoint: Checkpoint) -> Paints:
    """A model of images, or of video where the folder is called so."""
    return Paints(name=checkpoint.name, moving="films" in checkpoint.folder.name)


def no_codec(checkpoint: Checkpoint) -> Codec:
    raise NotImplementedError


FAMILY = Family("PaintsPipeline", open_fake, no_codec)


def save_fakes(folder: Path) -> None:
    """Folders `paints` and `films`, which `FAMILY` opens."""
    for name in ("paints", "films"):
        (folder / name).mkdir()
        (folder / name / "model_index.json").write_text('{"_class_name": "PaintsPipeline"}')


@dataclass(frozen=True, eq=False)
class Shades(Encoder):
    """The mean colour of each quarter of a picture as a frame."""

    name: str = "shades"
    dim: int = 3

    @property
    def digest(self) -> str:
        return sha256(b"shades").hexdigest()

    def embed(self, media: Media) -> Embeddings:
        if isinstance(media, Video):
            return Embeddings.of(media.frames.mean((3, 4)))
        return Embeddings.of(adaptive_avg_pool2d(expect(media, Images, self.name).pixels, 2).flatten(2).mT)


def _paint(latents: Float[Tensor, " n 2"], height: int, width: int) -> Float[Tensor, " n 3 height width"]:
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    disc = (6 * (0.5 - (x.square() + y.square()).sqrt())).sigmoid()
    ground, green = latents.sigmoid()[:, :, None, None].unbind(1)
    colour = torch.stack([1 - green, green, 0.3 + 0 * green], 1)
    return (1 - disc) * ground[:, None] + disc * colour


def save_stills(folder: Path, count: int, suffix: str = ".png", sizes: Sequence[tuple[int, int]] = ((12, 16),)) -> None:
    """Pictures of rising brightness."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        height, width = sizes[number % len(sizes)]
        grey = np.full((height, width, 3), 255 * number // max(count - 1, 1), np.uint8)
        Image.fromarray(grey).save(folder / f"{number:02d}{suffix}")

"""The autoencoder of images of Stable Diffusion, SDXL, Stable Diffusion 3 and FLUX, by diffusers' AutoencoderKL.

Left out: SDXL's refiner, and the decoders of consistency models.
"""

from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from dragontune.data import Media
from dragontune.errors import InputError
from dragontune.generators.checkpoint import Checkpoint, Size, frozen
from dragontune.generators.codec import Codec, configuration
from dragontune.media.image import Images
from dragontune.media.kinds import expect


@dataclass(frozen=True, eq=False)
class ImageCodec(Codec):
    """Latents are (n, channels, height / 8, width / 8), scaled and shifted as the networks want them."""

    vae: AutoencoderKL
    sample_rate: int = 1

    @property
    def network(self) -> AutoencoderKL:
        """The autoencoder."""
        return self.vae

    @property
    def latent_channels(self) -> int:
        """As the autoencoder's configuration says."""
        return self.vae.config["latent_channels"]

    @property
    def stride(self) -> int:
        """Pixels in a latent position, each way."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    def encode(self, media: Media) -> Float[Tensor, " n channels height width"]:
        """The posterior's mean; sizes are cut to whole latent positions."""
        pixels = images_of(media).pixels.to(next(self.vae.parameters()))
        height, width = (length // self.stride * self.stride for length in pixels.shape[2:])
        latents = self.vae.encode(pixels[..., :height, :width] * 2 - 1, return_dict=False)[0].mode()
        return (latents - self._shift) * self.vae.config["scaling_factor"]

    def decode(self, latents: Float[Tensor, " n channels height width"]) -> Images:
        """Latents to images, held to [0, 1]; gradients pass where they are inside."""
        unscaled = latents / self.vae.config["scaling_factor"] + self._shift
        # the annotation of diffusers asks for a float tensor, as this one is
        pixels = self.vae.decode(unscaled, return_dict=False)[0]  # pyright: ignore[reportArgumentType]
        return Images((pixels / 2 + 0.5).clamp(0, 1))

    def fit(self, media: Media, latent_shape: tuple[int, ...]) -> Images:
        """Scaled so that the shorter side fits, antialiased, and cut to the middle."""
        height, width = (length * self.stride for length in latent_shape[1:])
        pixels = images_of(media).pixels
        scale = max(height / pixels.shape[2], width / pixels.shape[3])
        if pixels.shape[2:] != (height, width):
            larger = [
                max(round(length * scale), least)
                for length, least in zip(pixels.shape[2:], (height, width), strict=True)
            ]
            pixels = torch.nn.functional.interpolate(pixels, larger, mode="bilinear", antialias=True)
        top, left = (pixels.shape[2] - height) // 2, (pixels.shape[3] - width) // 2
        return Images(pixels[..., top : top + height, left : left + width].clamp(0, 1))

    def settings(self) -> dict[str, object]:
        """The network's configuration."""
        return configuration(self.vae)

    def shape(self, size: Size, height: int, width: int, step: int = 1) -> tuple[int, int, int]:
        """Of latents for images of a size, by default `height` and `width`; the network takes them in steps of `step`.

        Raises:
            InputError: a side is not a whole number of steps.
        """
        size.check("images", "height", "width")
        sides = (int(size.height or height), int(size.width or width))
        pixels = self.stride * step
        if any(side % pixels for side in sides):
            raise InputError(
                f"expected a height and a width in steps of {pixels} pixels, got {sides[0]} and {sides[1]}; change size"
            )
        return self.latent_channels, sides[0] // self.stride, sides[1] // self.stride

    @property
    def _shift(self) -> float:
        return self.vae.config["shift_factor"] or 0.0


def image_codec(vae: AutoencoderKL, checkpoint: Checkpoint) -> ImageCodec:
    """The codec of a pipeline's autoencoder, thrifty if it is to be."""
    if checkpoint.plan.tiling:
        vae.enable_slicing()
        vae.enable_tiling()
    return ImageCodec(vae)


def open_codec(checkpoint: Checkpoint) -> ImageCodec:
    """The autoencoder alone."""
    vae = AutoencoderKL.from_pretrained(str(checkpoint.folder), subfolder="vae", use_safetensors=True)
    return image_codec(frozen(vae, checkpoint.device), checkpoint)


def images_of(media: Media) -> Images:
    """The media, which must be images."""
    return expect(media, Images, "this model's autoencoder")

"""Text to music by masked diffusion on codes of `tiny-music`'s latents: its text encoder, its codec, another network.

The kind of model: MAGNeT (Ziv et al. 2024) on a codec's tokens, here with the reverse process of MDLM. The folder holds
the network and the codes; the rest is the embedded `tiny-music`. Left out: one level after another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from jaxtyping import Float, Int
from torch import Tensor

from dragontune.data import Media, Rows
from dragontune.embedded import locate
from dragontune.generators import tiny_music
from dragontune.generators.checkpoint import Checkpoint, Precision, frozen
from dragontune.generators.codec import Codec, audio_of
from dragontune.generators.codes import ResidualCodes
from dragontune.generators.tiny_music import Condition, TinyMusic
from dragontune.generators.tokens import TokenGenerator, TokenTransformer
from dragontune.media.audio import Audio
from dragontune.schedule import Flow, Schedule


class TokenMusicPipeline(DiffusionPipeline):
    """A diffusers folder: the codes of latent frames, and the transformer over them."""

    def __init__(self, transformer: TokenTransformer, codes: ResidualCodes) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, codes=codes)


@dataclass(frozen=True, eq=False)
class TokenMusic(TokenGenerator):
    """Audio from tokens, as many codes a frame as the codebooks have levels; made by `token_music`."""

    name: str
    pipeline: TokenMusicPipeline
    base: TinyMusic
    schedule: Schedule
    latent_shape: tuple[int, ...]
    vocabulary: int
    sample_rate: int
    device: torch.device
    precision: Precision = "float32"

    @property
    def network(self) -> TokenTransformer:
        """The transformer."""
        return self.pipeline.transformer

    def encode_prompts(self, prompts: Sequence[str]) -> Rows:
        """The text tokens of `tiny-music`."""
        return self.base.encode_prompts(prompts)

    def prompt_vectors(self, condition: Rows) -> Float[Tensor, " n width"]:
        """The mean of the real text tokens."""
        return self.base.prompt_vectors(condition)

    def logits(self, tokens: Int[Tensor, " n length"], condition: Rows) -> Float[Tensor, " n length vocabulary"]:
        """The network's."""
        if not isinstance(condition, Condition):
            raise TypeError(f"expected this model's Condition, got {type(condition).__name__}")
        with self.autocast():
            return self.network(tokens, condition.text, condition.mask).float()

    def decode(self, latents: Int[Tensor, " n length"]) -> Audio:
        """Codes to latent frames to audio."""
        return audio_of(self.base.decode(self.pipeline.codes.decode(latents)))

    def encode(self, media: Media) -> Int[Tensor, " n length"]:
        """Audio to latent frames to codes; cut or padded to the model's length."""
        return self.pipeline.codes.encode(self.base.encode(media))


def open_generator(checkpoint: Checkpoint) -> TokenMusic:
    """The generator in a local pipeline folder."""
    pipeline = checkpoint.open(TokenMusicPipeline)
    base = tiny_music.open_generator(_base(checkpoint))
    return token_music(pipeline, base, checkpoint.name, checkpoint.precision)


def open_codec(checkpoint: Checkpoint) -> Codec:
    """The autoencoder of `tiny-music`."""
    return tiny_music.open_codec(_base(checkpoint))


def _base(checkpoint: Checkpoint) -> Checkpoint:
    return replace(checkpoint, folder=locate("tiny-music"), name="tiny-music")


def token_music(
    pipeline: TokenMusicPipeline, base: TinyMusic, name: str, precision: Precision = "float32"
) -> TokenMusic:
    """The generator of a pipeline, its weights frozen, on the device of `base`."""
    network = frozen(pipeline.transformer, base.device)
    frozen(pipeline.codes, base.device)
    shape, vocabulary = (network.config["length"],), network.config["vocabulary"]
    return TokenMusic(name, pipeline, base, Flow(), shape, vocabulary, base.sample_rate, base.device, precision)

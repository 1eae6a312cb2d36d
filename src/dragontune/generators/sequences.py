"""Sequences of letters by masked diffusion (DNA, RNA, proteins). Left out: prompts, and lengths that vary."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from jaxtyping import Float, Int
from torch import Tensor

from dragontune.data import Media, Rows
from dragontune.errors import InputError
from dragontune.generators.checkpoint import Checkpoint, Precision, frozen
from dragontune.generators.codec import Codec
from dragontune.generators.tokens import TokenGenerator, TokenTransformer
from dragontune.media.sequences import Sequences
from dragontune.schedule import Flow, Schedule


class LettersPipeline(DiffusionPipeline):
    """A diffusers folder: the transformer, and the alphabet in its index."""

    def __init__(self, transformer: TokenTransformer, alphabet: str = "ACGT") -> None:
        super().__init__()
        self.register_modules(transformer=transformer)
        self.register_to_config(alphabet=alphabet)


@dataclass(frozen=True, eq=False)
class Unprompted(Rows):
    """The condition of a model that takes no prompts."""

    row: Int[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class Letters(TokenGenerator):
    """A model of equally long sequences; made by `letters` or `open_generator`.

    >>> generator = letters(LettersPipeline(TokenTransformer(vocabulary=4, length=64)), "untrained")
    >>> Unmasking(64).sample(generator, [""], Key(0)).media.text()
    ['GATTTACAATATCGC...']
    """

    name: str
    pipeline: LettersPipeline
    alphabet: str
    schedule: Schedule
    latent_shape: tuple[int, ...]
    vocabulary: int
    device: torch.device
    precision: Precision = "float32"
    sample_rate: int = 1

    @property
    def network(self) -> TokenTransformer:
        """The transformer."""
        return self.pipeline.transformer

    def encode_prompts(self, prompts: Sequence[str]) -> Unprompted:
        """Prompts say nothing to this model."""
        return Unprompted(torch.zeros(len(prompts), dtype=torch.long, device=self.device))

    def logits(self, tokens: Int[Tensor, " n length"], condition: Rows) -> Float[Tensor, " n length vocabulary"]:
        """The network's."""
        text = torch.zeros(len(tokens), 0, self.network.config["text_width"], device=tokens.device)
        with self.autocast():
            return self.network(
                tokens, text, torch.zeros(text.shape[:2], dtype=torch.long, device=tokens.device)
            ).float()

    def decode(self, latents: Int[Tensor, " n length"]) -> Sequences:
        """The letters."""
        return Sequences(latents, self.alphabet)

    def encode(self, media: Media) -> Int[Tensor, " n length"]:
        """The tokens of the letters."""
        if not isinstance(media, Sequences):
            raise TypeError(f"expected Sequences, got {type(media).__name__}")
        return media.tokens.to(self.device)


def open_generator(checkpoint: Checkpoint) -> Letters:
    """The generator in a local pipeline folder."""
    checkpoint.size.check("sequences")
    pipeline = checkpoint.open(LettersPipeline)
    return letters(pipeline, checkpoint.name, checkpoint.device, checkpoint.precision)


def open_codec(checkpoint: Checkpoint) -> Codec:
    """There is none of audio.

    Raises:
        InputError: always.
    """
    raise InputError(f"expected a model of audio, got {checkpoint.name}, which makes sequences; choose another model")


def letters(
    pipeline: LettersPipeline, name: str, device: torch.device | None = None, precision: Precision = "float32"
) -> Letters:
    """The generator of a pipeline, its weights frozen."""
    where = device or torch.device("cpu")
    network = frozen(pipeline.transformer, where)
    vocabulary, length = network.config["vocabulary"], network.config["length"]
    return Letters(name, pipeline, pipeline.config["alphabet"], Flow(), (length,), vocabulary, where, precision)

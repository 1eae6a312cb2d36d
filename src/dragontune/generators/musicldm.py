"""MusicLDM (Chen et al. 2023, arXiv 2308.01546), by diffusers' MusicLDMPipeline, as a Generator.

The network is told CLAP's embedding of the prompt and predicts the noise of a process in discrete time. Left out:
negative prompts, ranking by CLAP, and the mixing of songs in training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from diffusers.pipelines.deprecated.musicldm.pipeline_musicldm import MusicLDMPipeline
from jaxtyping import Float
from torch import Tensor

from dragontune.data import Rows
from dragontune.generators import mel_codec
from dragontune.generators.checkpoint import Checkpoint
from dragontune.generators.discrete import discrete
from dragontune.generators.mel_codec import MelCodec, clap, cut
from dragontune.generators.pipeline import PipelineGenerator
from dragontune.media.audio import Audio
from dragontune.schedule import Discrete


@dataclass(frozen=True, eq=False)
class Condition(Rows):
    """CLAP's embeddings of prompts, of length 1."""

    embedding: Float[Tensor, " n width"]


@dataclass(frozen=True, eq=False, kw_only=True)
class MusicLDM(PipelineGenerator[MusicLDMPipeline]):
    """The pipeline's parts behind the generator's interface; made by `open_generator`."""

    schedule: Discrete
    codec: MelCodec
    seconds: float

    def condition(self, prompts: Sequence[str]) -> Condition:
        """The text encoder's embeddings."""
        return Condition(clap(self.pipeline.text_encoder, self.pipeline.tokenizer, prompts, self.device))

    def predict(
        self, noisy: Float[Tensor, " n *latent"], t: Float[Tensor, " n"], condition: Condition
    ) -> Float[Tensor, " n *latent"]:
        """The noise."""
        return self.network(
            noisy,
            self.schedule.index(t),
            encoder_hidden_states=None,
            class_labels=condition.embedding,
            return_dict=False,
        )[0]

    def decode(self, latents: Float[Tensor, " n *latent"]) -> Audio:
        """Latents to audio of `seconds`."""
        return cut(self.codec.decode(latents), self.seconds)


def open_generator(checkpoint: Checkpoint) -> MusicLDM:
    """The generator in a local pipeline folder; our sampler stands in for diffusers' scheduler."""
    schedule = discrete(checkpoint)
    pipeline = checkpoint.open(MusicLDMPipeline, feature_extractor=None)
    codec = mel_codec.mel_codec(pipeline.vae, pipeline.vocoder, checkpoint)
    seconds = codec.seconds(pipeline.unet.config["sample_size"], checkpoint)
    return MusicLDM(
        checkpoint=checkpoint,
        pipeline=pipeline,
        codec=codec,
        schedule=schedule,
        latent_shape=codec.latent_shape(seconds),
        prediction=schedule.prediction,
        seconds=seconds,
    )


def open_codec(checkpoint: Checkpoint) -> MelCodec:
    """The autoencoder and the vocoder alone."""
    return mel_codec.open_codec(checkpoint)

"""AudioLDM 2 (Liu et al. 2023, arXiv 2308.05734), by diffusers' AudioLDM2Pipeline, as a Generator.

CLAP's embedding of a prompt and T5's tokens are what a GPT-2 continues; the network is told the continuation and T5's
tokens, and predicts the noise of a process in discrete time. As in the authors' code prompts are read up to 128 tokens
and the unconditional one is not padded; diffusers pads prompts, the unconditional one too, to the longest of a call,
which moves where the GPT-2 finds their end. Left out: speech from transcriptions, negative prompts, ranking by CLAP.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.pipelines.audioldm2.pipeline_audioldm2 import AudioLDM2Pipeline
from jaxtyping import Float, Int
from torch import Tensor, nn

from dragontune.data import Rows
from dragontune.errors import InputError
from dragontune.generators import mel_codec
from dragontune.generators.checkpoint import Checkpoint
from dragontune.generators.discrete import discrete
from dragontune.generators.mel_codec import MelCodec, clap, cut
from dragontune.generators.pipeline import PipelineGenerator
from dragontune.media.audio import Audio
from dragontune.schedule import Discrete

TOKENS = 128
"""Of a prompt, for T5."""


@dataclass(frozen=True, eq=False)
class Condition(Rows):
    """What the GPT-2 says, and T5's tokens, zeros where `mask` is 0."""

    generated: Float[Tensor, " n generated width"]
    tokens: Float[Tensor, " n tokens t5_width"]
    mask: Int[Tensor, " n tokens"]


@dataclass(frozen=True, eq=False, kw_only=True)
class AudioLDM2(PipelineGenerator[AudioLDM2Pipeline]):
    """The pipeline's parts behind the generator's interface; made by `open_generator`."""

    schedule: Discrete
    codec: MelCodec
    seconds: float
    generated: int
    """Tokens that the GPT-2 continues with."""

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Of the text encoders and the GPT-2."""
        read = self.pipeline.tokenizer_2(
            list(prompts), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        ).to(self.device)
        mask = read.attention_mask
        tokens = self.pipeline.text_encoder_2(read.input_ids, attention_mask=mask)[0] * mask[..., None]
        embedding = clap(self.pipeline.text_encoder, self.pipeline.tokenizer, prompts, self.device)
        return Condition(self._continued(embedding, tokens, mask), tokens, mask)

    def prompt_vectors(self, condition: Rows) -> Float[Tensor, " n width"]:
        """The mean of what the GPT-2 says, and that of the real tokens."""
        if not isinstance(condition, Condition):
            raise TypeError(f"expected this model's Condition, got {type(condition).__name__}")
        means = condition.tokens.sum(1) / condition.mask.sum(1, keepdim=True).clamp(min=1)
        return torch.cat([condition.generated.mean(1), means], 1)

    def predict(
        self, noisy: Float[Tensor, " n *latent"], t: Float[Tensor, " n"], condition: Condition
    ) -> Float[Tensor, " n *latent"]:
        """The noise."""
        return self.network(
            noisy,
            self.schedule.index(t),
            encoder_hidden_states=condition.generated,
            encoder_hidden_states_1=condition.tokens,
            encoder_attention_mask_1=condition.mask,
            return_dict=False,
        )[0]

    def decode(self, latents: Float[Tensor, " n *latent"]) -> Audio:
        """Latents to audio of `seconds`."""
        return cut(self.codec.decode(latents), self.seconds)

    def _continued(
        self,
        embedding: Float[Tensor, " n clap_width"],
        tokens: Float[Tensor, " n tokens t5_width"],
        mask: Int[Tensor, " n tokens"],
    ) -> Float[Tensor, " n generated width"]:
        """What the GPT-2 says after [start, CLAP, end, start, T5's real tokens, end], which end at one place."""
        project, network = self.pipeline.projection_model, self.pipeline.language_model.base_model
        words, count = project.projection_1(tokens), len(tokens)
        marks = (project.sos_embed, project.eos_embed, project.sos_embed_1, project.eos_embed_1)
        start, end, start_1, end_1 = (mark.expand(count, 1, -1) for mark in marks)
        said = torch.cat([start, project.projection(embedding)[:, None], end, start_1, words, end_1], 1)
        place, blank = torch.arange(said.shape[1], device=self.device), TOKENS - mask.sum(1, keepdim=True)
        said = torch.where((place == said.shape[1] - 1 - blank)[..., None], end_1, said)
        position = place - blank
        said = said.gather(1, (position % said.shape[1])[..., None].expand_as(said))
        for _ in range(self.generated):
            hidden = network(
                inputs_embeds=said, attention_mask=(position >= 0).long(), position_ids=position.clamp(min=0)
            )[0]
            said, position = torch.cat([said, hidden[:, -1:]], 1), torch.cat([position, position[:, -1:] + 1], 1)
        return said[:, -self.generated :]


def open_generator(checkpoint: Checkpoint) -> AudioLDM2:
    """The generator in a local pipeline folder; our sampler stands in for diffusers' scheduler."""
    schedule = discrete(checkpoint)
    _, reader = checkpoint.read("model_index.json").get("text_encoder_2", (None, None))
    if reader != "T5EncoderModel":
        raise InputError(
            f"expected an AudioLDM 2 with a T5EncoderModel, got {checkpoint.name} with {reader}; speech is left out, "
            "choose a model of audio or music"
        )
    pipeline = checkpoint.open(AudioLDM2Pipeline, feature_extractor=None)
    for part in pipeline.unet.modules():
        if isinstance(part, Transformer2DModel):
            part.register_forward_pre_hook(_completed)
    codec = mel_codec.mel_codec(pipeline.vae, pipeline.vocoder, checkpoint)
    seconds = codec.seconds(pipeline.unet.config["sample_size"], checkpoint)
    return AudioLDM2(
        checkpoint=checkpoint,
        pipeline=pipeline,
        codec=codec,
        schedule=schedule,
        latent_shape=codec.latent_shape(seconds),
        prediction=schedule.prediction,
        seconds=seconds,
        generated=checkpoint.read("language_model/config.json").get("max_new_tokens", 8),
    )


def _completed(part: nn.Module, given: tuple[object, ...]) -> tuple[object, ...]:
    """Where diffusers' blocks compute activations again, they leave out the fourth of this part's arguments, None."""
    return (*given[:3], None, *given[3:]) if len(given) == 7 else given


def open_codec(checkpoint: Checkpoint) -> MelCodec:
    """The autoencoder and the vocoder alone."""
    return mel_codec.open_codec(checkpoint)

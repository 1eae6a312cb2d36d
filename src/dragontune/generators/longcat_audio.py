"""LongCat-AudioDiT (Meituan LongCat team 2026), text to speech and sound, by diffusers' LongCatAudioDiTPipeline.

The network predicts the velocity of a rectified flow, told backwards: its time is 1 - t, and so is its output's sign.
Left out: negative prompts, a voice to clone, and that the pipeline guesses a clip's length from its text.

A prompt's tokens are convolved and normalised without those that fill them up to the length of others, so that prompts
do not hear their neighbours, as they do in the pipeline: each is as if it were alone there. The pipeline guides away
from as many zeros as the prompt has tokens (`conditions`), and the network's convolutions over text tell lengths
apart; the empty prompt itself has `NOTHING`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, prod
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_longcat_audio_dit import LongCatAudioDiTVae, VaeDecoderBlock
from diffusers.models.transformers.transformer_longcat_audio_dit import (
    AudioDiTConvNeXtV2Block,
    LongCatAudioDiTTransformer,
)
from diffusers.pipelines.longcat_audio_dit.pipeline_longcat_audio_dit import LongCatAudioDiTPipeline, _normalize_text
from jaxtyping import Float
from torch import Tensor, nn

from dragontune.data import Media, Rows
from dragontune.errors import InputError
from dragontune.generators.checkpoint import Checkpoint, frozen
from dragontune.generators.codec import AudioCodec, audio_of, in_tiles, match, whole_frames
from dragontune.generators.padded_text import PaddedText
from dragontune.generators.pipeline import PipelineGenerator
from dragontune.media.audio import Audio
from dragontune.schedule import ShiftedFlow

SCHEDULE = ShiftedFlow(1.0, last=0.0, closed=False)
"""Of the pipeline, which reads none from a folder."""
USUAL_SECONDS = 10.0
NOTHING = 32
"""Tokens of the unconditional prompt, as many as a sentence has."""
TILE = 128
"""Latent frames that are decoded at once where memory is to be saved."""


@dataclass(frozen=True, eq=False)
class LongCatCodec(AudioCodec):
    """LongCat's convolutional autoencoder; if there is a `tile`, it works on so many latent frames at a time."""

    vae: LongCatAudioDiTVae
    sample_rate: int
    channels: int
    stride: int
    tile: int | None = None

    @property
    def network(self) -> LongCatAudioDiTVae:
        """The autoencoder."""
        return self.vae

    @property
    def latent_channels(self) -> int:
        """As the autoencoder's configuration says."""
        return self.vae.config["latent_dim"]

    @property
    def strides(self) -> list[int]:
        """By how much each block of the decoder lengthens."""
        blocks = [block for block in self.vae.decoder.layers if isinstance(block, VaeDecoderBlock)]
        return [layer.stride[0] for block in blocks for layer in block.layers if isinstance(layer, nn.ConvTranspose1d)]

    @property
    def reach(self) -> int:
        """How many latent frames to each side matter to one: those that its convolutions see."""
        reach, rate = 3.0, 1
        for stride in self.strides:
            reach += 1 / rate + 3 * (1 + 3 + 9) / (rate * stride)
            rate *= stride
        return ceil(reach + 3 / rate)

    def encode(self, media: Media) -> Float[Tensor, " n latent_channels frames"]:
        """The posterior's mean, scaled; the end is padded to a whole frame."""
        waveform = whole_frames(match(audio_of(media), self).waveform, self.stride)
        if self.tile is None:
            return self._encode(waveform)
        return in_tiles(self._encode, waveform, (self.stride, 1), self.tile, self.reach)

    def decode(self, latents: Float[Tensor, " n latent_channels frames"]) -> Audio:
        """Latents to audio."""
        if self.tile is None:
            return Audio(self._decode(latents), self.sample_rate)
        return Audio(in_tiles(self._decode, latents, (1, self.stride), self.tile, self.reach), self.sample_rate)

    def _encode(self, waveform: Tensor) -> Tensor:
        return self.vae.encode(waveform, sample_posterior=False, return_dict=False)[0]

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents, return_dict=False)[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class LongCatAudio(PipelineGenerator[LongCatAudioDiTPipeline]):
    """The pipeline's parts behind the generator's interface; made by `open_generator`."""

    @property
    def network(self) -> LongCatAudioDiTTransformer:
        """The diffusion transformer."""
        return self.pipeline.transformer

    def condition(self, prompts: Sequence[str]) -> PaddedText:
        """The text encoder's tokens; the empty prompt has zeros."""
        tokens, counts = self.pipeline.encode_prompt([_normalize_text(prompt) for prompt in prompts], self.device)
        nothing = tokens.new_zeros(NOTHING, tokens.shape[2])
        rows = zip(prompts, tokens, counts.tolist(), strict=True)
        return PaddedText.of([row[:count] if prompt else nothing for prompt, row, count in rows])

    def conditions(self, prompts: Sequence[str]) -> tuple[Rows, Rows]:
        """As the pipeline, guidance leads away from zeros, for each prompt as many as its tokens."""
        condition = self.encode_prompts(prompts)
        if not isinstance(condition, PaddedText):
            raise TypeError(f"expected this model's PaddedText, got {type(condition).__name__}")
        return condition, PaddedText(torch.zeros_like(condition.tokens), condition.real)

    def prompt_vectors(self, condition: Rows) -> Float[Tensor, " n width"]:
        """The mean of the real tokens."""
        if not isinstance(condition, PaddedText):
            raise TypeError(f"expected this model's PaddedText, got {type(condition).__name__}")
        return condition.mean()

    def predict(
        self, noisy: Float[Tensor, " n *latent"], t: Float[Tensor, " n"], condition: PaddedText
    ) -> Float[Tensor, " n *latent"]:
        """The flow."""
        frames = noisy.transpose(1, 2)
        return -self.network(
            hidden_states=frames,
            encoder_hidden_states=condition.tokens,
            # the annotation of diffusers asks for a tensor of truth values, as this one is
            encoder_attention_mask=condition.real,  # pyright: ignore[reportArgumentType]
            timestep=1 - t,
            latent_cond=torch.zeros_like(frames),
            return_dict=False,
        )[0].transpose(1, 2)


class MaskedConvolutions(nn.Sequential):
    """The network's convolutions over text, as they are where no other tokens fill a prompt up.

    Those that do so are zeros in what comes in, and are held to it.
    """

    def forward(self, input: Float[Tensor, " n tokens width"]) -> Float[Tensor, " n tokens width"]:
        """As the blocks' own, but that the norm of a channel over the tokens (GRN) is that of the real ones."""
        hidden, real = input, (input != 0).any(2, keepdim=True)
        for block in self:
            if not isinstance(block, AudioDiTConvNeXtV2Block):
                raise TypeError(f"expected AudioDiTConvNeXtV2Block, got {type(block).__name__}")
            convolved = block.norm(block.dwconv(hidden.transpose(1, 2)).transpose(1, 2))
            wide = block.act(block.pwconv1(convolved)) * real
            hidden = (hidden + block.pwconv2(block.grn(wide))) * real
        return hidden


def open_generator(checkpoint: Checkpoint) -> LongCatAudio:
    """The generator in a local pipeline folder; our sampler stands in for diffusers' scheduler."""
    pipeline = checkpoint.open(LongCatAudioDiTPipeline)
    network = pipeline.transformer
    if network.text_conv:
        network.text_conv_layer = MaskedConvolutions(*network.text_conv_layer)
    let_blocks_be_computed_again(network)
    codec = _codec(pipeline.vae, checkpoint)
    seconds = checkpoint.seconds(pipeline.max_wav_duration, USUAL_SECONDS)
    frames = max(1, int(seconds * codec.sample_rate // codec.stride))
    return LongCatAudio(
        checkpoint=checkpoint,
        pipeline=pipeline,
        codec=codec,
        schedule=SCHEDULE,
        latent_shape=(network.config["latent_dim"], frames),
        prediction="flow",
    )


def open_codec(checkpoint: Checkpoint) -> LongCatCodec:
    """The autoencoder alone."""
    vae = LongCatAudioDiTVae.from_pretrained(str(checkpoint.folder), subfolder="vae", use_safetensors=True)
    return _codec(frozen(vae, checkpoint.device), checkpoint)


def let_blocks_be_computed_again(network: LongCatAudioDiTTransformer) -> None:
    """Give the network the switch for gradient checkpointing that diffusers' other networks have, off."""
    network._supports_gradient_checkpointing = True
    for block in network.blocks:
        block.gradient_checkpointing = False  # pyright: ignore[reportArgumentType] - modules may have any attribute
        block.forward = partial(_forward, block, block.forward)


def _forward(block: Any, forward: Callable[..., Tensor], **inputs: Any) -> Tensor:  # noqa: ANN401 - passed on
    if block.gradient_checkpointing and torch.is_grad_enabled():
        return block._gradient_checkpointing_func(partial(forward, **inputs))
    return forward(**inputs)


def _codec(vae: LongCatAudioDiTVae, checkpoint: Checkpoint) -> LongCatCodec:
    config, tile = vae.config, TILE if checkpoint.plan.tiling else None
    codec = LongCatCodec(vae, config["sample_rate"], config["in_channels"], config["downsampling_ratio"], tile)
    if codec.stride != prod(codec.strides):
        raise InputError(
            f"expected an autoencoder whose strides {codec.strides} make its downsampling_ratio, got {codec.stride}; "
            f"restore {checkpoint.folder}"
        )
    return codec

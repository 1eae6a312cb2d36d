"""ACE-Step 1.5 (Gong et al. 2026, arXiv 2602.00744), text and lyrics to music, by diffusers' AceStepPipeline.

The network predicts the velocity of a rectified flow, whose times are shifted by 3. A prompt is a caption; after a line
`[lyrics]`, or `[lyrics de]` with the code of their language (else English), come the lyrics. The turbo checkpoints want
`Sampler(steps=8, order=1)`; for the base and SFT ones the pipeline guides by adaptive projection (`guidance_apg`).
Left out: covers, repainting, stems and audio codes, reference audio, tempo, key and metre, and that the pipeline brings
each clip to a peak of -1 dBFS.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import torch
from diffusers.models.transformers.ace_step_transformer import (
    AceStepAttention,
    AceStepAttnProcessor2_0,
    AceStepTransformer1DModel,
)
from diffusers.pipelines.ace_step.pipeline_ace_step import AceStepPipeline
from jaxtyping import Float
from torch import Tensor

from dragontune.data import Rows
from dragontune.generators.checkpoint import Checkpoint
from dragontune.generators.flow_schedule import check_unshifted
from dragontune.generators.padded_text import PaddedText
from dragontune.generators.pipeline import PipelineGenerator
from dragontune.generators.stable_audio import oobleck
from dragontune.generators.stable_audio import open_codec as open_codec
from dragontune.guidance_apg import AdaptiveProjection
from dragontune.schedule import ShiftedFlow

SHIFT = 3.0
"""Of the times, as the pipeline has it."""
USUAL_SECONDS, LONGEST_SECONDS = 60.0, 600.0
TIMBRE_SECONDS = 30
"""Of reference audio; silence, as none is given."""
LYRICS = re.compile(r"^\[lyrics(?:[ :](\w+))?\][^\S\n]*\n?", re.MULTILINE)


@dataclass(frozen=True, eq=False, kw_only=True)
class AceStep(PipelineGenerator[AceStepPipeline]):
    """The pipeline's parts behind the generator's interface; made by `open_generator`."""

    seconds: float

    @property
    def network(self) -> AceStepTransformer1DModel:
        """The diffusion transformer."""
        return self.pipeline.transformer

    @cached_property
    def context(self) -> Float[Tensor, " 1 frames width"]:
        """What is to be made of what: silence, all of which is to be replaced."""
        frames = self.latent_shape[1]
        silence, _ = self.pipeline.prepare_src_latents(self.device, torch.float32, latent_length=frames)
        return torch.cat([silence, torch.ones_like(silence)], 2)

    @property
    def projection(self) -> AdaptiveProjection:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Guidance as the pipeline has it; turbo checkpoints want none (1)."""
        return AdaptiveProjection()

    def condition(self, prompts: Sequence[str]) -> PaddedText:
        """Lyrics, timbre and caption, encoded one prompt at a time; the empty prompt is a learned vector."""
        return PaddedText.of([self._encode(prompt) if prompt else self._nothing() for prompt in prompts])

    def prompt_vectors(self, condition: Rows) -> Float[Tensor, " n width"]:
        """The mean of the real tokens."""
        if not isinstance(condition, PaddedText):
            raise TypeError(f"expected this model's PaddedText, got {type(condition).__name__}")
        return condition.mean()

    def predict(
        self, noisy: Float[Tensor, " n *latent"], t: Float[Tensor, " n"], condition: PaddedText
    ) -> Float[Tensor, " n *latent"]:
        """The flow; the network's time is ours, and its second time, of a mean flow, is the same."""
        return self.network(
            hidden_states=noisy.transpose(1, 2),
            timestep=t,
            timestep_r=t,
            encoder_hidden_states=condition.tokens,
            context_latents=self.context.expand(len(noisy), -1, -1),
            return_dict=False,
        )[0].transpose(1, 2)

    def _encode(self, prompt: str) -> Float[Tensor, " tokens width"]:
        pipeline, encoder = self.pipeline, self.pipeline.condition_encoder
        caption, lyrics, language = parse(prompt)
        text, text_mask, words, words_mask = pipeline.encode_prompt(
            caption, lyrics, self.device, vocal_language=language, audio_duration=self.seconds
        )
        silence = encoder.silence_latent[:, : ceil(TIMBRE_SECONDS * pipeline.latents_per_second)].to(text)
        tokens, real = encoder(
            text_hidden_states=text,
            text_attention_mask=text_mask,
            lyric_hidden_states=words,
            lyric_attention_mask=words_mask,
            refer_audio_acoustic_hidden_states_packed=silence,
            refer_audio_order_mask=torch.zeros(1, dtype=torch.long, device=self.device),
        )
        return tokens[0, real[0]]

    def _nothing(self) -> Float[Tensor, " 1 width"]:
        """The pipeline's guidance repeats it as often as there are tokens, which comes to the same in attention."""
        return self.pipeline.condition_encoder.null_condition_emb[0].to(self.device)


class RealTokens(AceStepAttnProcessor2_0):
    """Attention to the tokens of a prompt without those that fill it up: all that are as the last one.

    These are zeros before the network's first layer and so one vector after it. diffusers' network takes no mask.
    """

    def __call__(
        self,
        attn: AceStepAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """As the class's own; `encoder_hidden_states` are (n, tokens, width)."""
        if encoder_hidden_states is not None:
            real = (encoder_hidden_states != encoder_hidden_states[:, -1:]).any(2)
            attention_mask = real[:, None, None] if attention_mask is None else attention_mask
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)


def parse(prompt: str) -> tuple[str, str, str]:
    """Caption, lyrics and the lyrics' language of a prompt, whose lines may also end in a backslash and an n."""
    prompt = prompt.replace("\\n", "\n")
    found = LYRICS.search(prompt)
    if found is None:
        return prompt, "", "en"
    return prompt[: found.start()].strip(), prompt[found.end() :].strip(), found[1] or "en"


def open_generator(checkpoint: Checkpoint) -> AceStep:
    """The generator in a local pipeline folder; our sampler stands in for diffusers' scheduler."""
    check_unshifted(checkpoint)
    pipeline = checkpoint.open(AceStepPipeline, audio_tokenizer=None, audio_token_detokenizer=None)
    for layer in pipeline.transformer.layers:
        layer.cross_attn.set_processor(RealTokens())
    seconds = checkpoint.seconds(LONGEST_SECONDS, USUAL_SECONDS)
    frames = ceil(seconds * pipeline.latents_per_second)
    return AceStep(
        checkpoint=checkpoint,
        pipeline=pipeline,
        codec=oobleck(pipeline.vae, checkpoint),
        schedule=ShiftedFlow(SHIFT, last=0.0, closed=False),
        latent_shape=(pipeline.transformer.config["audio_acoustic_hidden_dim"], frames),
        prediction="flow",
        seconds=seconds,
    )

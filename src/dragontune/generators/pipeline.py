"""What generators made of a pretrained pipeline share: an autoencoder, text encoders and an adapted network."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Generic, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dragontune.data import Media, Rows
from dragontune.generators import adapters, sharding
from dragontune.generators.base import Generator
from dragontune.generators.checkpoint import AUTOENCODER, Checkpoint, P, Precision
from dragontune.generators.codec import Codec
from dragontune.schedule import Schedule, expand

Prediction = Literal["clean", "epsilon", "velocity", "flow"]
"""What a network says of x = alpha x_0 + sigma eps: `clean` the data itself, `epsilon` the noise, `velocity` alpha
eps - sigma x_0 (Salimans & Ho 2022), `flow` eps - x_0."""


class Adapted(Generator):
    """A generator whose denoiser is `network`, with an adapter, and which computes in `precision`."""

    precision: Precision

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The denoiser, the only part that is ever trained."""

    @property
    def sharded(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether processes share the network's weights."""
        return sharding.sharded(self.network)

    def autocast(self) -> AbstractContextManager[object]:
        """Within it matrices are multiplied in `precision`."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def parameters(self) -> Iterator[nn.Parameter]:
        """The adapter's weights."""
        return adapters.parameters(self.network)

    def reference(self) -> AbstractContextManager[None]:
        """Within it the adapter is off."""
        return adapters.disabled(self.network)

    def scaled(self, gamma: float) -> AbstractContextManager[None]:
        """Within it the adapter's change is multiplied by `gamma`."""
        return adapters.scaled(self.network, gamma)

    @property
    def home(self) -> adapters.Home | None:
        """The pipeline that the network is a part of, if there is one whose LoRA files it can take."""
        return None

    def save_adapter(self, folder: str) -> None:
        """Write the adapter in peft's format, and in diffusers' where its pipeline can read that."""
        adapters.save(self.network, folder, self.name, self.home)

    def load_adapter(self, folder: str) -> None:
        """Take the adapter in `folder`; InputError if it does not fit."""
        adapters.load(self.network, folder, self.home)

    def mix_adapters(self, parts: Sequence[tuple[str, float]]) -> None:
        """Take a weighted sum of the changes of adapters, by folder; InputError if one does not fit."""
        adapters.mix(self.network, parts, self.home)

    def rescale(self, gamma: float) -> None:
        """Multiply the adapter's change by `gamma` for good."""
        adapters.rescale(self.network, gamma)


@dataclass(frozen=True, eq=False, kw_only=True)
class PipelineGenerator(Adapted, Generic[P]):
    """A model from a folder in diffusers' format. A family says how prompts and the network are asked.

    The class is generic in the pipeline, whose networks are frozen and in place (`Checkpoint.open`).
    """

    checkpoint: Checkpoint
    pipeline: P
    codec: Codec
    schedule: Schedule
    latent_shape: tuple[int, ...]
    prediction: Prediction
    _said: dict[str, Rows] = field(default_factory=dict, init=False, repr=False)

    @abstractmethod
    def condition(self, prompts: Sequence[str]) -> Rows:
        """What the text encoders make of prompts, one row each whatever its neighbours; "" is the unconditional one."""

    @abstractmethod
    def predict(
        self,
        noisy: Float[Tensor, " n *latent"],
        t: Float[Tensor, " n"],
        condition: Any,  # noqa: ANN401 - a family's own
    ) -> Float[Tensor, " n *latent"]:
        """The network's output at times `t` in [0, 1], in the layout of the latents."""

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the user calls the model."""
        return self.checkpoint.name

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where it computes."""
        return self.checkpoint.device

    @property
    def precision(self) -> Precision:  # pyright: ignore[reportIncompatibleVariableOverride]
        """In what."""
        return self.checkpoint.precision

    @property
    def sample_rate(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the media: samples or frames a second, 1 for images."""
        return self.codec.sample_rate

    @property
    def network(self) -> nn.Module:
        """The denoiser: the pipeline's transformer or U-Net."""
        return self.pipeline.components[self.part]

    @property
    def part(self) -> str:
        """What the pipeline calls the denoiser."""
        return "unet" if "unet" in self.pipeline.components else "transformer"

    @property
    def home(self) -> adapters.Home:
        """The pipeline, which may know more formats of LoRA than peft's."""
        return adapters.Home(type(self.pipeline), self.part)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Rows:
        """The condition, one row a prompt. With `plan.offload` each prompt is encoded once and kept in main memory."""
        if not prompts:
            return self.encode_prompts([""])[torch.tensor([], dtype=torch.long)]
        if not self.checkpoint.plan.offload:
            return self.condition(prompts)
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._said]
        with self._text_encoders_in_place(bool(new)):
            for prompt in new:  # alone, so that its bits do not depend on when it was first met: a run may be resumed
                self._said[prompt] = _moved(self.condition([prompt]), torch.device("cpu"))
        said = [self._said[prompt] for prompt in prompts]
        return _moved(type(said[0]).join(said), self.device)

    def denoise(
        self, noisy: Float[Tensor, " n *latent"], t: Float[Tensor, " n"], condition: Rows
    ) -> Float[Tensor, " n *latent"]:
        """The clean latents that the network's prediction implies."""
        with self.autocast():
            output = self.predict(noisy, t.to(noisy), condition)
        alpha, sigma = (expand(value.to(noisy), noisy) for value in (self.schedule.alpha(t), self.schedule.sigma(t)))
        return clean(self.prediction, noisy, output.to(noisy), alpha, sigma)

    def decode(self, latents: Float[Tensor, " n *latent"]) -> Media:
        """Latents to media; gradients pass."""
        return self.codec.decode(latents)

    def encode(self, media: Media) -> Float[Tensor, " n *latent"]:
        """Media to latents; what is longer or larger than the model makes is cut or scaled, what is shorter padded."""
        return self.codec.encode(self.codec.fit(media, self.latent_shape))

    @contextmanager
    def _text_encoders_in_place(self, wanted: bool) -> Iterator[None]:
        """Within it they are on the device; before and after in main memory."""
        parts = [
            part
            for name, part in self.pipeline.components.items()
            if isinstance(part, nn.Module) and part is not self.network and name not in AUTOENCODER
        ]
        if not wanted or self.device.type == "cpu":
            yield
            return
        try:
            for part in parts:
                nn.Module.to(part, self.device)
            yield
        finally:
            for part in parts:
                nn.Module.to(part, torch.device("cpu"))


def clean(
    prediction: Prediction,
    noisy: Float[Tensor, " n *latent"],
    output: Float[Tensor, " n *latent"],
    alpha: Float[Tensor, " n *ones"],
    sigma: Float[Tensor, " n *ones"],
) -> Float[Tensor, " n *latent"]:
    """x_0 from what the network says of x = alpha x_0 + sigma eps; a velocity's alpha^2 + sigma^2 is 1."""
    match prediction:
        case "clean":
            return output
        case "epsilon":
            return (noisy - sigma * output) / alpha
        case "velocity":
            return alpha * noisy - sigma * output
        case "flow":
            return (noisy - sigma * output) / (alpha + sigma)


def _moved(rows: Rows, device: torch.device) -> Rows:
    """The record with its tensors on `device`."""
    columns = [getattr(rows, column.name) for column in fields(rows)]
    return type(rows)(*(column.to(device) if isinstance(column, Tensor) else column for column in columns))

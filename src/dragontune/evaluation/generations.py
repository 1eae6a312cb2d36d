"""Generate for an evaluation, keeping little: features for the rewards, latents, and the audio of a few items."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dragontune.data import join_columns
from dragontune.evaluation.plots import Clip
from dragontune.generators.base import Generator
from dragontune.media.audio import Audio
from dragontune.rewards.base import Features, Reward
from dragontune.sampling import Sampler
from dragontune.seeding import Key

Progress = Callable[[str, int, int], None]
"""Called with what is going on, how much is done and how much there is."""


@dataclass(frozen=True)
class Costs:
    """What an evaluation took; denoiser calls are counted by item (guidance makes two a step)."""

    items: int = 0
    calls: int = 0
    decodes: int = 0
    encodes: int = 0

    def __add__(self, other: "Costs") -> "Costs":
        """Both together."""
        return Costs(
            self.items + other.items,
            self.calls + other.calls,
            self.decodes + other.decodes,
            self.encodes + other.encodes,
        )


@dataclass(frozen=True, eq=False)
class Generations:
    """What one model made of the prompts, as far as it is kept."""

    features: Mapping[str, Features]
    latents: Float[Tensor, " n *latent"]
    clips: Mapping[int, Clip]
    costs: Costs


@dataclass(frozen=True, eq=False)
class Making:
    """How items are made: item `i` is prompt `i` with noise `i`, whichever model makes it, however it is batched."""

    generator: Generator
    sampler: Sampler
    prompts: Sequence[str]
    rewards: Mapping[str, Reward]
    micro_batch: int
    key: Key
    progress: Progress

    @torch.no_grad()
    def make(self, phase: str, items: Sequence[int], players: Sequence[int] = ()) -> Generations:
        """Generate and encode `items` with the generator as it is now; keep those of `players` that are audio."""
        self.progress(phase, 0, len(items))
        parts = []
        for start in range(0, len(items), self.micro_batch):
            parts.append(self._part(items[start : start + self.micro_batch], players))
            self.progress(phase, min(start + self.micro_batch, len(items)), len(items))
        return Generations(
            {name: join_columns([part.features[name] for part in parts]) for name in self.rewards},
            torch.cat([part.latents for part in parts]),
            {item: kept for part in parts for item, kept in part.clips.items()},
            sum((part.costs for part in parts), Costs()),
        )

    def _part(self, items: Sequence[int], players: Sequence[int]) -> Generations:
        heard = [item for item in items if item in players]
        decode = bool(heard) or any(reward.needs_media for reward in self.rewards.values())
        asked = [self.prompts[item] for item in items]
        samples = self.sampler.sample(self.generator, asked, self.key, items=items, decode=decode)
        features = {name: reward.encode(samples) for name, reward in self.rewards.items()}
        clips = {item: clip(samples.media, items.index(item)) for item in heard if isinstance(samples.media, Audio)}
        count = len(items)
        costs = Costs(count, self.sampler.calls(count), count * decode, count * len(self.rewards))
        return Generations(features, samples.latents.cpu(), clips, costs)


def clip(audio: Audio, row: int) -> Clip:
    """One item's audio, apart from PyTorch."""
    return Clip(audio.waveform[row].detach().float().cpu().numpy(), audio.sample_rate)

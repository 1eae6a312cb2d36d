"""What becomes of items whose reward or features are not finite: the run stops, or their pairs are left out.

What is left out depends on the features alone, so it is the same however many processes and micro-batches there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dragontune.demonstrations import unsound_features
from dragontune.errors import InputError, NonFiniteError
from dragontune.rewards import standardise
from dragontune.rewards.base import Features, InstanceReward, Reward

BadItems = Literal["stop", "drop"]


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Of 2n items, two of each prompt: the rows of whole pairs that are kept, and the items that were bad."""

    kept: Int[Tensor, " k"]
    bad: tuple[str, ...]


def check_bad_items(most: float) -> None:
    """InputError unless it is a share that leaves something."""
    if not 0 <= most < 1:
        raise InputError(f"expected most_bad_items from 0 to below 1, got {most}; 0.1 is 10 %")


def leave_out(reward: Reward, features: Features, prompts: Sequence[str], most: float) -> LeftOut:
    """Leave out the pairs with an item whose features, or score under a reward of items, are not finite.

    `prompts` names the items: those of the first set, then the same ones of the second.

    Raises:
        NonFiniteError: more than the share `most` of the items is bad, or too few pairs are left for the reward.
    """
    bad = _bad(reward, features, len(prompts))
    named = tuple(f"item {row} ({prompts[row]!r})" for row in bad.nonzero()[:, 0].tolist())
    first, second = bad.chunk(2)
    sound = ~(first | second)
    what = f"{type(reward).__name__} is not finite for {len(named)} of {len(bad)} items: {', '.join(named)}"
    if len(named) > most * len(bad):
        raise NonFiniteError(f"{what}; more than most_bad_items ({100 * most:g} %) are not left out")
    if named and int(sound.sum()) < max(1, reward.minimum):
        raise NonFiniteError(f"{what}; without them too few are left for it")
    return LeftOut(torch.cat([sound, sound]).nonzero()[:, 0], named)


def _bad(reward: Reward, features: Features, items: int) -> Bool[Tensor, " items"]:
    if isinstance(reward, InstanceReward) and not standardise.learns(reward):
        return ~reward.score(features).isfinite().cpu()
    return unsound_features(features, items)

"""Divide on-policy generations into D+ and D- under a reward of any scope (DRAGON, Bai et al. 2025, algorithm 1).

An instance reward compares the two items of a prompt, or ranks all of them. A reward of a set is raised by exchanging
elements: begin with the better set and swap a pair whenever that makes the better set better still. Left out: accepting
by the difference of both sets' rewards.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dragontune.data import Demonstrations, Rows, Samples
from dragontune.errors import InputError, NonFiniteError
from dragontune.rewards.base import DistributionReward, Features, InstanceReward, Reward
from dragontune.seeding import Key

Pairing = Literal["paired", "unpaired"]


@dataclass(frozen=True, eq=False)
class Division(Rows):
    """Row numbers, into both sets one after the other, of D+ and D-, and how many exchanges were accepted."""

    positive: Int[Tensor, " n"]
    negative: Int[Tensor, " n"]
    accepted: int


def contrast(
    reward: Reward, first: Samples, second: Samples, key: Key, passes: int = 1, pairing: Pairing = "paired"
) -> Demonstrations:
    """Encode two sets of the same prompts and divide them; D+ and D- together hold exactly the items given."""
    both = Samples.join([first, second])
    with torch.no_grad():
        division = divide(reward, reward.encode(both), both.prompts, key, passes, pairing)
    return Demonstrations(both[division.positive], both[division.negative])


def divide(
    reward: Reward,
    features: Features,
    prompts: Sequence[str],
    key: Key,
    passes: int = 1,
    pairing: Pairing = "paired",
) -> Division:
    """Which of 2n encoded items (first set, then second set) belong to D+ and which to D-.

    `paired`: D+[i] and D-[i] are the two items of prompt i. `unpaired` (instance rewards only): the better half of all
    items, best first. A tie keeps the order given. `prompts` names the items in errors.

    Raises NonFiniteError where a reward is not finite, InputError where there are too few items for the reward.
    """
    n = len(prompts) // 2
    if 0 < n < reward.minimum:
        raise InputError(
            f"{type(reward).__name__} needs at least {reward.minimum} items in a set, got {n}: raise loop.pairs"
        )
    match reward:
        case InstanceReward() if pairing == "unpaired":
            ranks = _instance_scores(reward, features, prompts).argsort(descending=True, stable=True)
            return Division(ranks[:n], ranks[n:], int((ranks[:n] >= n).sum()))
        case InstanceReward():
            scores = _instance_scores(reward, features, prompts)
            swap = scores[n:] > scores[:n]
            return _division(swap, int(swap.sum()))
        case DistributionReward() if pairing == "paired":
            return _exchange(reward, features, prompts, key, passes)
        case DistributionReward():
            raise InputError(f"unpaired ranks single items, but {type(reward).__name__} scores sets: use paired")
        case _:
            raise TypeError(f"{type(reward).__name__} must be an InstanceReward or a DistributionReward")


def _exchange(
    reward: DistributionReward, features: Features, prompts: Sequence[str], key: Key, passes: int
) -> Division:
    """Greedy exchange in random order, until a pass accepts nothing or `passes` are done. Only D+ is scored."""
    n = len(prompts) // 2
    if n == 0:
        return _division(torch.zeros(0, dtype=torch.bool), 0)
    rows = torch.arange(n)
    first, second = reward.score(features[rows]).item(), reward.score(features[rows + n]).item()
    for name, value in (("first", first), ("second", second)):
        if value != value or abs(value) == float("inf"):
            raise NonFiniteError(
                f"{type(reward).__name__} of the {name} set is {value}: {_suspects(features, prompts)}"
            )
    swap = torch.full((n,), second > first)
    best, accepted = max(first, second), 0
    for number in range(passes):
        before = accepted
        for i in key.fold("pass", number).permutation(n).tolist():
            swap[i] = ~swap[i]
            trial = reward.score(features[torch.where(swap, rows + n, rows)]).item()
            if trial > best:
                best, accepted = trial, accepted + 1
            else:
                swap[i] = ~swap[i]
        if accepted == before:
            break
    return _division(swap, accepted)


def _division(swap: Bool[Tensor, " n"], accepted: int) -> Division:
    rows = torch.arange(len(swap))
    n = len(swap)
    return Division(torch.where(swap, rows + n, rows), torch.where(swap, rows, rows + n), accepted)


def _instance_scores(reward: InstanceReward, features: Features, prompts: Sequence[str]) -> Tensor:
    scores = reward.score(features).cpu()
    for row in (~scores.isfinite()).nonzero()[:1, 0].tolist():
        raise NonFiniteError(f"{type(reward).__name__} is {scores[row].item()} for item {row} ({prompts[row]!r})")
    return scores


def _suspects(features: Features, prompts: Sequence[str]) -> str:
    """The items whose features are not finite, in words."""
    bad = torch.zeros(len(prompts), dtype=torch.bool)
    for column in _tensors(features):
        bad |= ~column.reshape(len(prompts), -1).isfinite().all(1).cpu()
    named = ", ".join(f"item {row} ({prompts[row]!r})" for row in bad.nonzero()[:, 0].tolist())
    return f"not finite: {named}" if named else "every item's features are finite, their combination is not"


def _tensors(features: object) -> Iterator[Tensor]:
    """Every tensor inside features."""
    match features:
        case Tensor():
            yield features
        case Rows():
            for column in fields(features):
                yield from _tensors(getattr(features, column.name))
        case dict():
            for member in features.values():
                yield from _tensors(member)

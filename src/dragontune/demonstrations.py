"""Divide on-policy generations into D+ and D- under a reward of any scope (DRAGON, Bai et al. 2025, algorithm 1).

An instance reward compares the two items of a prompt, or ranks all of them. A reward of a set is raised by exchanging
elements: begin with the better set and swap whenever that makes the better set better still. Left out: accepting by the
difference of both sets' rewards.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dragontune.data import Demonstrations, Rows, Samples
from dragontune.distances.swaps import Swaps
from dragontune.errors import InputError, NonFiniteError
from dragontune.rewards.base import DistributionReward, Features, InstanceReward, Reward
from dragontune.seeding import Key

Pairing = Literal["paired", "unpaired"]
"""`paired`: D+[i] and D-[i] are the two items of prompt i. `unpaired`: the best n of all 2n, whatever their prompts."""

Search = Literal["greedy", "best"]
"""How the exchanges of a reward of a set are looked for. `greedy`: each pair once, in random order, taken if it is an
improvement (the paper). `best`: always the one exchange that is the greatest improvement of all."""

ORDINALS = ("first", "second")


@dataclass(frozen=True, eq=False)
class Division(Rows):
    """Row numbers, into both sets one after the other, of D+ and D-; exchanges accepted and asked about."""

    positive: Int[Tensor, " n"]
    negative: Int[Tensor, " n"]
    accepted: int
    asked: int


def contrast(
    reward: Reward,
    first: Samples,
    second: Samples,
    key: Key,
    passes: int = 1,
    pairing: Pairing = "paired",
    search: Search = "greedy",
) -> Demonstrations:
    """Encode two sets of the same prompts and divide them; D+ and D- together hold exactly the items given."""
    both = Samples.join([first, second])
    with torch.no_grad():
        division = divide(reward, reward.encode(both), both.prompts, key, passes, pairing, search)
    return Demonstrations(both[division.positive], both[division.negative])


def divide(
    reward: Reward,
    features: Features,
    prompts: Sequence[str],
    key: Key,
    passes: int = 1,
    pairing: Pairing = "paired",
    search: Search = "greedy",
) -> Division:
    """Which of 2n encoded items (first set, then second set) belong to D+ and which to D-.

    For a reward of a set and `paired`, `greedy` goes over the pairs `passes` times at most, until a pass accepts
    nothing; `best`, and `unpaired` in any case, go on until no exchange is an improvement. An instance reward needs no
    search: `unpaired` is the better half of all items, best first. A tie keeps the order given. `prompts` names the
    items in errors.

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
            return Division(ranks[:n], ranks[n:], int((ranks[:n] >= n).sum()), 2 * n)
        case InstanceReward():
            scores = _instance_scores(reward, features, prompts)
            swap = scores[n:] > scores[:n]
            rows = torch.arange(n)
            positive, negative = torch.where(swap, rows + n, rows), torch.where(swap, rows, rows + n)
            return Division(positive, negative, int(swap.sum()), n)
        case DistributionReward() if n == 0:
            return Division(torch.arange(0), torch.arange(0), 0, 0)
        case DistributionReward():
            return _exchange(reward, features, prompts, key, passes, pairing, search)
        case _:
            raise TypeError(f"{type(reward).__name__} must be an InstanceReward or a DistributionReward")


def _exchange(
    reward: DistributionReward,
    features: Features,
    prompts: Sequence[str],
    key: Key,
    passes: int,
    pairing: Pairing,
    search: Search,
) -> Division:
    """Beginning with the better set. Only D+ is scored."""
    n = len(prompts) // 2
    rows = torch.arange(2 * n)
    halves = rows.chunk(2)
    scores = [_set_score(reward, features, prompts, half, name) for half, name in zip(halves, ORDINALS, strict=True)]
    if scores[1] > scores[0]:
        rows = torch.cat(halves[::-1])
    swaps = reward.swaps(features[rows[:n]], features[rows[n:]])
    if pairing == "unpaired":
        accepted, asked = _best_of_pool(swaps)
    elif search == "best":
        accepted, asked = _best_of_pairs(swaps)
    else:
        accepted, asked = _greedy(swaps, key, passes)
    return Division(rows[swaps.members], rows[swaps.candidates], accepted, asked)


def _greedy(swaps: Swaps, key: Key, passes: int) -> tuple[int, int]:
    """Each pair in random order, until a pass accepts nothing or `passes` are done."""
    n, accepted, asked = len(swaps.members), 0, 0
    bar = _bar(swaps)
    for number in range(passes):
        before = accepted
        for i in key.fold("pass", number).permutation(n).tolist():
            trial = swaps.pairs(i, i)
            asked += 1
            if _exceeds(trial, bar) and bool(swaps.allowed(i, i)):
                swaps.accept(i, i)
                bar, accepted = _bar(swaps), accepted + 1
        if accepted == before:
            break
    return accepted, asked


def _best_of_pairs(swaps: Swaps) -> tuple[int, int]:
    """The best of all pairs, again and again, until none is an improvement."""
    n, accepted, asked = len(swaps.members), 0, 0
    rows, bar = torch.arange(n), _bar(swaps)
    while True:
        trials = swaps.pairs(rows, rows)
        asked += n
        trials = trials[allowed := swaps.allowed(rows, rows)]
        if not len(trials) or not _exceeds(trials.max(), bar):
            return accepted, asked
        i = int(rows[allowed][trials.argmax()])
        swaps.accept(i, i)
        bar, accepted = _bar(swaps), accepted + 1


def _best_of_pool(swaps: Swaps) -> tuple[int, int]:
    """Exchange any member with any candidate until that is no improvement.

    From each table the best exchange of every member, best first, as long as it is one when its turn comes.
    """
    accepted, asked, bar = 0, 0, _bar(swaps)
    while True:
        look = swaps.screen().cpu().masked_fill(~swaps.allowed_screen(), -torch.inf)
        asked += look.numel()
        i, j, best = swaps.best(highest=True, look=look)
        if not bool(swaps.allowed(i, j)) or not _exceeds(torch.tensor(best), bar):
            return accepted, asked
        swaps.accept(i, j)
        bar, accepted = _bar(swaps), accepted + 1
        taken = torch.zeros(look.shape[1], dtype=torch.bool)
        taken[j] = True
        first, (promise, partner) = i, look.max(1)
        for i in promise.argsort(descending=True, stable=True).tolist():
            j = int(partner[i])
            if i == first or taken[j]:
                continue
            asked += 1
            if not _exceeds(swaps.pairs(i, j), bar):
                break
            if not bool(swaps.allowed(i, j)):
                continue
            swaps.accept(i, j)
            taken[j] = True
            bar, accepted = _bar(swaps), accepted + 1


def _bar(swaps: Swaps) -> float:
    """What the value after an exchange must be above."""
    return swaps.value + swaps.rounding


def _exceeds(trial: Tensor, bar: float) -> bool:
    if not bool(trial.isfinite().all()):
        raise NonFiniteError("the reward of a set is not finite after an exchange of two items, though it was before")
    return trial.item() > bar


def refuse_suspects(reward: Reward, features: Features, prompts: Sequence[str]) -> None:
    """NonFiniteError, naming the items, if features are not finite. `prompts` names the items in errors."""
    if bad := _suspects(features, prompts):
        raise NonFiniteError(f"the features of {type(reward).__name__} are {bad}")


def unsound_features(features: Features, items: int) -> Bool[Tensor, " items"]:
    """Which of so many items have a feature that is not finite."""
    bad = torch.zeros(items, dtype=torch.bool)
    for column in _tensors(features):
        bad |= ~column.reshape(items, -1).isfinite().all(1).cpu()
    return bad


def _set_score(
    reward: DistributionReward, features: Features, prompts: Sequence[str], rows: Tensor, name: str
) -> float:
    bad = _suspects(features, prompts)
    value = float("nan") if bad else reward.score(features[rows]).item()
    if value != value or abs(value) == float("inf"):
        reason = bad or "every item's features are finite, their combination is not"
        raise NonFiniteError(f"{type(reward).__name__} of the {name} set is {value}: {reason}")
    return value


def _instance_scores(reward: InstanceReward, features: Features, prompts: Sequence[str]) -> Tensor:
    scores = reward.score(features).cpu()
    for row in (~scores.isfinite()).nonzero()[:1, 0].tolist():
        raise NonFiniteError(f"{type(reward).__name__} is {scores[row].item()} for item {row} ({prompts[row]!r})")
    return scores


def _suspects(features: Features, prompts: Sequence[str]) -> str:
    """The items whose features are not finite, in words; empty if there are none."""
    bad = unsound_features(features, len(prompts))
    named = ", ".join(f"item {row} ({prompts[row]!r})" for row in bad.nonzero()[:, 0].tolist())
    return f"not finite: {named}" if named else ""


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

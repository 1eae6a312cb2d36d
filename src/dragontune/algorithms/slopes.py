"""The gradient of a loss on a reward with respect to the latents of generations, item by item, in little memory.

A reward of a set couples all items, but only through their features, which are small. So all items are encoded without
gradients, the score is differentiated with respect to the features at once (in float64 where the reward computes so),
and every item is then decoded and encoded once more, a micro-batch at a time, to carry the gradient of its features
back to its latents. That is the gradient of the whole set, exactly, for the memory of a micro-batch. The features of
all processes are gathered; each process carries back its own items. For a reward of single items the first pass is
left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import repeat
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dragontune.algorithms.objectives import Objective
from dragontune.data import Media, Rows, Samples, join_columns
from dragontune.errors import InputError, NonFiniteError
from dragontune.generators.base import Generator
from dragontune.parallel import everyone, gather_rows, share
from dragontune.rewards.base import DifferentiableReward, DistributionReward, Features, Reward
from dragontune.rewards.combine import DifferentiableSum
from dragontune.rewards.crop import Crop
from dragontune.seeding import Key


@dataclass(frozen=True, eq=False)
class Slopes(Rows):
    """Of each item; a set's score and loss are repeated for its items.

    `slope` is the gradient of the mean loss over rows, times the number of rows.
    """

    score: Float[Tensor, " n"]
    loss: Float[Tensor, " n"]
    slope: Float[Tensor, " n *latent"]
    members: Mapping[str, float] = field(default_factory=dict)
    """The score of each member of a sum, in its own units."""


@dataclass(frozen=True, eq=False)
class Judge:
    """A generator's decoder, a reward and an objective: from clean latents to a loss and its slope."""

    generator: Generator
    reward: Reward
    objective: Objective
    micro_batch: int

    def slopes(
        self, prompts: tuple[str, ...], latents: Float[Tensor, " n *latent"], items: Int[Tensor, " n"], key: Key
    ) -> Slopes:
        """Of this process's items, which are its `share` of all; `key` and `items` draw windows for a `Crop`.

        Raises:
            InputError: no gradient comes back, or it is 0 for every item.
            NonFiniteError: a score or a gradient is NaN or infinite; the message names the item.
        """
        groups = torch.arange(len(latents)).split(self.micro_batch)
        texts = [prompts[int(rows[0]) : int(rows[-1]) + 1] for rows in groups]
        given = [(asked, latents[rows], items[rows]) for asked, rows in zip(texts, groups, strict=True)]
        pulls: Iterator[_Pull | None] = repeat(None)
        if isinstance(self.reward, DistributionReward):
            pulled = self._pull(given, key)
            pulls = (pulled[rows] for rows in share(len(pulled)).split(self.micro_batch))
        found = Slopes.join([self._carried(*one, key, pull) for one, pull in zip(given, pulls, strict=False)])
        self._check(found, prompts, items)
        return found

    def _encode(
        self, prompts: tuple[str, ...], latents: Float[Tensor, " n *latent"], items: Int[Tensor, " n"], key: Key
    ) -> Features:
        reward = self.reward
        if isinstance(reward, Crop):
            latents, reward = reward.window(latents, key.fold("crop").uniform(items)), reward.reward
        media = self._decode(latents) if reward.needs_media else None
        return reward.encode(Samples(prompts, latents, media))

    @torch.enable_grad()
    def _features(
        self, prompts: tuple[str, ...], latents: Float[Tensor, " n *latent"], items: Int[Tensor, " n"], key: Key
    ) -> Features:
        """Without gradients, but on the way that gradients take: resampling, for one, has two."""
        found = self._encode(prompts, latents.detach().requires_grad_(), items, key)
        return rebuilt(found, iter([each.detach() for each in floats(found)]))

    def _decode(self, latents: Float[Tensor, " n *latent"]) -> Media:
        """Its activations are computed again on the way back, once the encoder's are gone."""
        kept = list[Media]()

        def decode(given: Tensor) -> tuple[Tensor, ...]:
            media = self.generator.decode(given)
            if not kept:
                kept.append(rebuilt(media, iter([each.detach() for each in floats(media)])))
            return tuple(floats(media))

        columns = checkpoint(decode, latents, use_reentrant=False, preserve_rng_state=False)
        return rebuilt(kept[0], iter(columns))

    def _pull(self, given: Sequence[tuple[tuple[str, ...], Tensor, Tensor]], key: Key) -> "_Pull":
        """The score of the set of all processes, and the gradient of its loss with respect to every item's features."""
        features = gather_rows(join_columns([self._features(*one, key) for one in given]))
        leaves = [each.detach().requires_grad_() for each in floats(features)]
        with torch.enable_grad():
            score = self.reward.score(rebuilt(features, iter(leaves)))
            loss = self.objective.losses(score.double())
        self._check_flow(loss)
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        known = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]
        count = len(features)
        score, loss = (value.detach().double().cpu().expand(count) for value in (score, loss))
        members = self.reward.members(features) if isinstance(self.reward, DifferentiableSum) else {}
        return _Pull(score, loss, rebuilt(features, iter([count * each for each in known])), members)

    @torch.enable_grad()
    def _carried(
        self,
        prompts: tuple[str, ...],
        latents: Float[Tensor, " n *latent"],
        items: Int[Tensor, " n"],
        key: Key,
        pull: "_Pull | None",
    ) -> Slopes:
        """A micro-batch, decoded and encoded with gradients."""
        leaf = latents.detach().requires_grad_()
        features = self._encode(prompts, leaf, items, key)
        if pull is None:
            score = self.reward.score(features).double()
            loss = self.objective.losses(score)
            self._check_flow(loss)
            whole = loss.sum()
            score, loss = score.detach().cpu(), loss.detach().cpu()
        else:
            score, loss = pull.score, pull.loss
            pairs = zip(floats(pull.features), floats(features), strict=True)
            whole = torch.stack([_product(*pair).double().cpu() for pair in pairs]).sum()
            self._check_flow(whole)
        (slope,) = torch.autograd.grad(whole, leaf, allow_unused=True)
        if slope is None:
            raise InputError(self._without_gradient("none"))
        return Slopes(score, loss, slope, pull.members if pull is not None else {})

    def _check_flow(self, value: Tensor) -> None:
        if not value.requires_grad:
            raise InputError(self._without_gradient("none"))

    def _check(self, found: Slopes, prompts: Sequence[str], items: Int[Tensor, " n"]) -> None:
        columns = {"score": found.score[:, None], "gradient": found.slope.flatten(1)}
        for what, values in columns.items():
            for row in (~values.isfinite().all(1)).nonzero()[:1, 0].tolist():
                raise NonFiniteError(
                    f"the {what} of {self.reward.label} is NaN or infinite for item {int(items[row])} "
                    f"({prompts[row]!r}); look at reward, and at how loud, short or silent that item is"
                )
        slopes, losses = (
            any(seen) for seen in zip(*everyone((bool(found.slope.any()), bool(found.loss.any()))), strict=True)
        )
        if not slopes and not (self.objective.capped and not losses):
            raise InputError(self._without_gradient("0 for every item"))

    def _without_gradient(self, got: str) -> str:
        return (
            f"expected a gradient of {self.reward.label} with respect to the latents, got {got}; set reward to one "
            "whose score depends smoothly on the media, or algorithm to Dragon, Vard or Ddpo, which need no gradients"
        )


@dataclass(frozen=True, eq=False)
class _Pull(Rows):
    """Where the loss of a set pulls the features of its items (times their number)."""

    score: Float[Tensor, " n"]
    loss: Float[Tensor, " n"]
    features: Features
    members: Mapping[str, float]


def floats(column: Any) -> Iterator[Tensor]:  # noqa: ANN401 - a column is of any kind
    """The tensors of real or complex numbers in features or media, in a fixed order."""
    match column:
        case Tensor():
            if column.is_floating_point() or column.is_complex():
                yield column
        case Rows():
            for field in fields(column):
                yield from floats(getattr(column, field.name))
        case dict():
            for member in column.values():
                yield from floats(member)
        case _:
            return


def rebuilt(column: Any, tensors: Iterator[Tensor]) -> Any:  # noqa: ANN401 - and one of its kind
    """The same features or media with other tensors in the places of `floats`."""
    match column:
        case Tensor():
            return next(tensors) if column.is_floating_point() or column.is_complex() else column
        case Rows():
            return type(column)(*(rebuilt(getattr(column, field.name), tensors) for field in fields(column)))
        case dict():
            return {name: rebuilt(member, tensors) for name, member in column.items()}
        case _:
            return column


def _product(pull: Tensor, features: Tensor) -> Float[Tensor, ""]:
    """The sum of products; the pull may be padded to longer items than are here, with zeros."""
    product = pull[tuple(slice(length) for length in features.shape)].conj() * features
    return product.real.sum() if product.is_complex() else product.sum()


def check_differentiable(reward: Reward, algorithm: object) -> None:
    """InputError unless gradients pass through the reward."""
    if not isinstance(reward, DifferentiableReward):
        raise InputError(
            f"expected a DifferentiableReward as reward of {type(algorithm).__name__}, got {reward.label}, through "
            "which no gradients pass; choose another reward, or Dragon, Vard or Ddpo as algorithm"
        )

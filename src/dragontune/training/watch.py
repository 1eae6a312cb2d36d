"""What the looks of an over-optimisation guard decide: what a run hands over, and when it stops early.

A look is made after every few rounds by a `Watch`, which finds at most one candidate: the model as it is, at a LoRA
scale. The best candidate is the one with the highest target; the untuned model (scale 0, after 0 rounds) is the first.
Everything decided is in the history, so a resumed run decides the same. Left out: going on from an earlier round.
"""

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dragontune.generators.base import Generator
from dragontune.parallel import by_main
from dragontune.training.checkpoint import Record

Look = Mapping[str, Any]
"""What a look found, ready for JSON; higher is better.

`untuned`: `target`, `rewards` (held out, by name) and `diversity` of the untuned model. `tried`: a list of the same at
each LoRA `scale` that was tried, with the `distance` to the untuned model and the names of what `failed`. `sound`: the
scale of the candidate, or None. In the history also `best`, a `Candidate`, and `seconds`.
"""


@runtime_checkable
class Watch(Protocol):
    """Measures the generator that is being tuned, the same way at every look."""

    @property
    def every(self) -> int:
        """Rounds between looks."""
        ...

    @property
    def patience(self) -> int:
        """Looks in a row without a new best after which the run stops."""
        ...

    def look(self) -> Look:
        """Measure the model as it is: `untuned`, `tried` and `sound`. It leaves the model as it was."""
        ...

    def say(self, sentence: str, /) -> None:
        """Tell the user something that is no warning."""
        ...


@dataclass(frozen=True)
class Candidate:
    """What may be handed over: the weights after `round` rounds at a LoRA scale, and their target."""

    round: int
    scale: float
    target: float


def looks(history: Sequence[Record]) -> Iterator[tuple[int, Look]]:
    """Every look and the round after which it was made."""
    return ((record["round"], record["look"]) for record in history if "look" in record)


def best(history: Sequence[Record]) -> Candidate | None:
    """The best candidate so far; None before the first look."""
    found = [Candidate(**look["best"]) for _, look in looks(history)]
    return found[-1] if found else None


def stopped(history: Sequence[Record]) -> bool:
    """Whether a look ended the run."""
    return bool(history) and "stopped" in history[-1]


def due(watch: Watch, history: Sequence[Record]) -> bool:
    """Whether the last round is one of those after which a look is made."""
    return history[-1]["round"] % watch.every == 0


def inspect(
    watch: Watch,
    history: list[Record],
    weights: Sequence[nn.Parameter],
    kept: Sequence[Tensor],
    in_step: bool = False,
) -> list[Tensor]:
    """Look, and write what was found on the last record, which is replaced; returns the weights of the best so far.

    `kept` are those before this look. A look that is not `due`, after the last round of a run, never stops it. Of
    several processes the main one looks; `in_step` all do, as the network needs them, and the main one is believed.
    """
    start, number = time.monotonic(), history[-1]["round"]
    found = by_main(watch.look, in_step)
    before = best(history) or Candidate(0, 0.0, found["untuned"]["target"])
    sound = [Candidate(number, one["scale"], one["target"]) for one in found["tried"] if one["scale"] == found["sound"]]
    now = max([before, *sound], key=lambda candidate: candidate.target)  # the earlier one of two that are equal
    entry = {**found, "best": asdict(now), "seconds": round(time.monotonic() - start, 3)}
    history[-1] = {**history[-1], "look": entry}
    _warn_if_unsound(number, found)
    if now is not before:
        watch.say(f"Guard: after round {number} a new best, target {now.target:.4g} at LoRA scale {now.scale:g}.")
    elif (waited := _waited(history)) >= watch.patience and due(watch, history):
        reason = f"the guard stopped the run after round {number}: no new best in {waited} looks in a row"
        history[-1]["stopped"] = reason
        warnings.warn(reason, stacklevel=1)
    return copies(weights) if now is not before else list(kept)


def copies(weights: Sequence[Tensor]) -> list[Tensor]:
    """Copies of weights, on the CPU."""
    return [weight.detach().cpu().clone() for weight in weights]


def hand_over(
    watch: Watch,
    generator: Generator,
    history: Sequence[Record],
    weights: Sequence[nn.Parameter],
    kept: Sequence[Tensor],
) -> None:
    """Give the generator the best candidate: its weights, for good at its LoRA scale."""
    chosen = best(history)
    if chosen is None:
        return
    with torch.no_grad():
        for weight, value in zip(weights, kept, strict=True):
            weight.copy_(value)
    if chosen.scale != 1:
        generator.rescale(chosen.scale)
    if chosen.round:
        watch.say(f"{summary(history)}.")
        return
    warnings.warn(
        "THE ADAPTER CHANGES NOTHING: at no look of the guard was there a sound model whose target is above the "
        f"untuned one's ({chosen.target:.4g}), so that one is handed over; lower loop.lr, add what fell to the reward, "
        "or loosen guard.tolerance",
        stacklevel=1,
    )


def summary(history: Sequence[Record]) -> str:
    """One sentence, without its full stop, on what a guarded run handed over; empty without a guard."""
    chosen, count = best(history), sum(1 for _ in looks(history))
    if chosen is None:
        return ""
    if not chosen.round:
        return "Handed over: an adapter that changes nothing, since no look of the guard found a better sound model"
    untuned = next(look["untuned"]["target"] for _, look in looks(history))
    folded = " (multiplied in: use it at scale 1)" if chosen.scale != 1 else ""
    return (
        f"Handed over: the weights after round {chosen.round} of {history[-1]['round']}, at LoRA scale "
        f"{chosen.scale:g}{folded}, the best sound candidate of {count} looks of the guard (target "
        f"{chosen.target:.4g}, untuned {untuned:.4g}; higher is better)"
    )


def numbers(record: Record) -> dict[str, float]:
    """A look's numbers for a tracker: those at the first scale that was tried."""
    if "look" not in record:
        return {}
    first = record["look"]["tried"][0]
    found = {**first["rewards"], **{name: first[name] for name in ("target", "diversity", "distance")}}
    return {f"guard {name}": value for name, value in found.items()}


def _waited(history: Sequence[Record]) -> int:
    """Looks since the best one; since the start if that is the untuned model."""
    chosen = best(history)
    return sum(chosen is not None and number > chosen.round for number, _ in looks(history))


def _warn_if_unsound(number: int, found: Look) -> None:
    wrong = [f"{one['scale']:g} ({', '.join(one['failed'])})" for one in found["tried"] if one["failed"]]
    if wrong:
        rest = "at none" if found["sound"] is None else f"at {found['sound']:g}"
        warnings.warn(
            f"after round {number} the guard finds the model not sound at LoRA scale {', '.join(wrong)}, sound {rest}",
            stacklevel=1,
        )

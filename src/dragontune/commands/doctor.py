"""Check everything a recipe needs and estimate what it costs, without running it."""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dragontune.algorithms.base import Algorithm
from dragontune.commands.recipe import Recipe, Seconds, read_prompts
from dragontune.errors import InputError
from dragontune.evaluation.guard import Guard
from dragontune.seeding import Key

FORWARD_AND_BACKWARD = 3.0
"""What a differentiated evaluation of the denoiser costs, in plain ones."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    found: str


@dataclass(frozen=True)
class Denoising:
    """What one item costs in one call of the network."""

    seconds: float
    saved_bytes: int


def doctor(recipe: Recipe, out: Path) -> None:
    """Print what was found; it stops at the first thing that would stop a run.

    Raises:
        InputError: something is wrong, the same as `tune` would say.
    """
    table = Table(title="The recipe is fine. Estimates are rough: others may use the machine, too.")
    table.add_column("what")
    table.add_column("found", overflow="fold")
    for finding in examine(recipe, out):
        table.add_row(finding.what, finding.found)
    Console().print(table)


def examine(recipe: Recipe, out: Path) -> Iterator[Finding]:
    """Everything `tune` depends on, in the order in which it would fail."""
    prompts = read_prompts(recipe.prompts)
    yield Finding("prompts", f"{len(prompts)} in {recipe.prompts}, {recipe.loop.pairs} a round")
    algorithm = recipe.build()
    count = sum(weight.numel() for weight in algorithm.parameters())
    generator = algorithm.generator
    yield Finding("model", f"{generator.name} on {generator.device}, latents {generator.latent_shape}")
    yield Finding("adapter", f"{count:,} weights to tune")
    item = recipe.rehearse(algorithm, prompts)
    yield Finding("reward", f"{recipe.reward.label}, works on {max(2, recipe.reward.minimum)} items")
    if recipe.evaluation:
        names = ", ".join(recipe.evaluation.named(recipe.reward)[1])
        yield Finding("evaluation", f"{len(recipe.evaluation.read())} prompts, rewards that work: {names}")
    if recipe.guard:
        yield Finding("guard", _guard(recipe, recipe.guard))
    call = _denoise(algorithm, prompts)
    yield Finding("time", _time(recipe, algorithm, call, item))
    yield Finding("memory", _memory(recipe, count, call))
    yield Finding("disk", _disk(out, count * (16 if recipe.guard else 12) * (recipe.loop.keep + 2)))


def _guard(recipe: Recipe, guard: Guard) -> str:
    prompts, (least, most) = len(guard.read()), guard.generations(recipe.loop.rounds)
    names = ", ".join(guard.named(recipe.reward)[1])
    return (
        f"{prompts} prompts every {guard.every} rounds, {least:,} to {most:,} generations in all, rewards that work: "
        f"{names}"
    )


def _denoise(algorithm: Algorithm[Any, Any], prompts: list[str], items: int = 4) -> Denoising:
    """Time a call without gradients, and add up what a call with gradients keeps for the way back."""
    generator, saved = algorithm.generator, 0
    noise = Key(0).fold("doctor").normal(range(items), generator.latent_shape).to(generator.device)
    condition = generator.encode_prompts([prompts[i % len(prompts)] for i in range(items)])
    t = torch.full((items,), 0.5, device=generator.device)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal saved
        saved += tensor.numel() * tensor.element_size()
        return tensor

    with torch.no_grad():
        generator.denoise(noise, t, condition)  # the first call warms up
        seconds = min(_seconds(lambda: generator.denoise(noise, t, condition).sum().item()) for _ in range(3))
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        generator.denoise(noise, t, condition)
    return Denoising(seconds / items, saved // items)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _time(recipe: Recipe, algorithm: Algorithm[Any, Any], call: Denoising, item: Seconds) -> str:
    loop = recipe.loop
    one = algorithm.sampler.calls(1) * call.seconds + item.decode + item.encode
    budget = algorithm.budget(loop.pairs, loop.batch, loop.updates)
    calls = budget["denoiser_calls"] + FORWARD_AND_BACKWARD * budget["gradient_calls"]
    each = calls * call.seconds + budget["decodes"] * item.decode + budget["encodes"] * item.encode
    made = f"{budget['generations']:,.0f} generations in {_span(each)}"
    parts = [f"a round {made}, {loop.rounds} rounds {_span(loop.rounds * each)}"]
    if recipe.evaluation:
        sweep = sum(scale not in (0, 1) for scale in recipe.evaluation.scales) * recipe.evaluation.subset
        parts.append(f"evaluation {_span((2 * len(recipe.evaluation.read()) + sweep) * one)}")
    if recipe.guard:
        least, most = (_span(count * one) for count in recipe.guard.generations(loop.rounds))
        parts.append(f"guard {least} to {most.removeprefix('about ')}")
    return ", ".join(parts)


def _memory(recipe: Recipe, count: int, call: Denoising) -> str:
    """What the step of training keeps; the model itself is loaded already and fits."""
    step = 2 * recipe.loop.micro_batch * call.saved_bytes + 16 * count
    if not torch.cuda.is_available():
        return f"a step of training keeps about {step / 2**30:.2f} GiB beside the model"
    free, _ = torch.cuda.mem_get_info()
    verdict = "fits" if step < free else "does not fit: lower loop.micro_batch"
    return f"a step of training keeps about {step / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free: {verdict}"


def _disk(out: Path, needed: int) -> str:
    folder = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"expected {needed / 2**20:.0f} MiB free in {folder} for checkpoints, got {free / 2**20:.0f} MiB; make room"
        )
    return f"about {needed / 2**20:.1f} MiB for checkpoints in {folder}, {free / 2**30:.1f} GiB free"


def _span(seconds: float) -> str:
    return f"about {seconds:.0f} s" if seconds < 90 else f"about {seconds / 60:.0f} min"

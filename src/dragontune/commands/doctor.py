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
from rich.text import Text

from dragontune.algorithms.base import Algorithm
from dragontune.commands.memory import MORE, Judging, available, forecast
from dragontune.commands.recipe import Recipe, Seconds, read_prompts
from dragontune.errors import InputError
from dragontune.evaluation.evaluate import Evaluation
from dragontune.evaluation.guard import Guard
from dragontune.plain_text import line
from dragontune.seeding import Key

GIB = 2**30
FORWARD_AND_BACKWARD = 3.0
"""What a differentiated evaluation of the denoiser costs, in plain ones."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    found: str


def doctor(recipe: Recipe, out: Path, memory: float | None = None) -> None:
    """Print what was found; it stops at the first thing that would stop a run.

    Raises:
        InputError: something is wrong, the same as `tune` would say, or the run takes more than `memory` (in GiB; by
            default what the device has).
    """
    table = Table(title="The recipe is fine. Estimates are rough: others may use the machine, too.")
    table.add_column("what")
    table.add_column("found", overflow="fold")
    for finding in examine(recipe, out, memory):
        table.add_row(Text(line(finding.what)), Text(line(finding.found)))
    Console().print(table)


def examine(recipe: Recipe, out: Path, memory: float | None = None) -> Iterator[Finding]:
    """Everything `tune` depends on, in the order in which it would fail.

    Raises:
        InputError: something is wrong.
    """
    if memory is not None and not 0 < memory < 1e6:
        raise InputError(f"expected --memory in GiB above 0, got {memory}; a card of 24 GB has 24")
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
    yield Finding("memory", _memory(recipe, algorithm, prompts, memory))
    yield Finding("disk", _disk(out, count * (16 if recipe.guard else 12) * (recipe.loop.keep + 2)))


def _guard(recipe: Recipe, guard: Guard) -> str:
    prompts, (least, most) = len(guard.read()), guard.generations(recipe.loop.rounds)
    names = ", ".join(guard.named(recipe.reward)[1])
    return (
        f"{prompts} prompts every {guard.every} rounds, {least:,} to {most:,} generations in all, rewards that work: "
        f"{names}"
    )


def _denoise(algorithm: Algorithm[Any, Any], prompts: list[str], items: int = 4) -> float:
    """Seconds of an item in a call of the network without gradients."""
    generator, items = algorithm.generator, min(items, algorithm.micro_batch)
    noise = Key(0).fold("doctor").normal(range(items), generator.latent_shape).to(generator.device)
    condition = generator.encode_prompts([prompts[i % len(prompts)] for i in range(items)])
    t = torch.full((items,), 0.5, device=generator.device)

    with torch.no_grad():
        generator.denoise(noise, t, condition)  # the first call warms up
        return min(_seconds(lambda: generator.denoise(noise, t, condition).sum().item()) for _ in range(3)) / items


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _time(recipe: Recipe, algorithm: Algorithm[Any, Any], call: float, item: Seconds) -> str:
    loop = recipe.loop
    one = algorithm.sampler.calls(1) * call + item.decode + item.encode
    budget = algorithm.budget(loop.pairs, loop.batch, loop.updates)
    calls = budget["denoiser_calls"] + FORWARD_AND_BACKWARD * budget["gradient_calls"]
    each = calls * call + budget["decodes"] * item.decode + budget["encodes"] * item.encode
    made = f"{budget['generations']:,.0f} generations in {_span(each)}"
    parts = [f"a round {made}, {loop.rounds} rounds {_span(loop.rounds * each)}"]
    if recipe.evaluation:
        sweep = sum(scale not in (0, 1) for scale in recipe.evaluation.scales) * recipe.evaluation.subset
        parts.append(f"evaluation {_span((2 * len(recipe.evaluation.read()) + sweep) * one)}")
    if recipe.guard:
        least, most = (_span(count * one) for count in recipe.guard.generations(loop.rounds))
        parts.append(f"guard {least} to {most.removeprefix('about ')}")
    return ", ".join(parts)


def _memory(recipe: Recipe, algorithm: Algorithm[Any, Any], prompts: list[str], memory: float | None) -> str:
    device = algorithm.generator.device
    room = memory * GIB if memory is not None else available(device)
    try:
        found = forecast(algorithm, recipe.loop, prompts, judged(recipe))
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"expected a run that fits into {_bytes(room)}, got one of which {MORE} items at once do not; "
            f"{_ways_out(recipe, algorithm, 'training')}"
        ) from error
    worst = found.worst
    if worst.bytes > room:
        raise InputError(
            f"expected a run that fits into {_bytes(room)}, got one that takes about {_bytes(worst.bytes)} "
            f"while {worst.name}; {_ways_out(recipe, algorithm, worst.name)}"
        )
    stages = ", ".join(f"{stage.name} {_bytes(stage.bytes)}" for stage in found.stages)
    place = "tensors in main memory" if device.type == "cpu" else f"memory of {device}"
    return (
        f"at most about {_bytes(worst.bytes)} of {place} ({_bytes(found.resident)} for what is loaded; "
        f"{stages}), {_bytes(room)} {'asked for' if memory is not None else 'there'}"
    )


def _bytes(count: float) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"


def judged(recipe: Recipe) -> list[Judging]:
    """What is made to be judged, beside the rounds."""
    parts = (("evaluating", recipe.evaluation), ("guarding", recipe.guard))
    return [
        Judging(
            name,
            min(part.micro_batch, len(part.read())),
            len(part.read()),
            part.players if isinstance(part, Evaluation) else 0,
            list(part.named(recipe.reward)[1].values()),
        )
        for name, part in parts
        if part is not None
    ]


def _ways_out(recipe: Recipe, algorithm: Algorithm[Any, Any], stage: str) -> str:
    """What takes less memory in a stage and has not been done yet."""
    plan, ways = recipe.plan, []
    if stage == "training":
        ways += ["set plan.checkpointing: true"] * (not plan.checkpointing)
        ways += [f"lower loop.micro_batch from {recipe.loop.micro_batch}"] * (recipe.loop.micro_batch > 1)
    if stage in ("generating", "preparing"):
        ways += [f"lower the algorithm's micro_batch from {algorithm.micro_batch}"] * (algorithm.micro_batch > 1)
    for name, part in (("evaluating", recipe.evaluation), ("guarding", recipe.guard)):
        if stage == name and part is not None and part.micro_batch > 1:
            ways.append(
                f"lower {'evaluation' if name == 'evaluating' else 'guard'}.micro_batch from {part.micro_batch}"
            )
    if stage != "training" and recipe.reward.needs_media:
        ways += ["set plan.tiling: true"] * (not plan.tiling)
    ways += ["set precision: bf16"] * (recipe.precision == "float32")
    ways += ["set plan.offload: true"] * (not plan.offload)
    return f"{', '.join([*ways, 'make size smaller'][:-1])}{' or ' * bool(ways)}make size smaller"


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

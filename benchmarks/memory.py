"""Peak memory of tuning by gradients: against a plain training step, and with sets of any size.

    python benchmarks/memory.py

Counts the bytes of all tensors that are alive at once beyond the models' own, operation by operation, so that it does
not depend on the allocator or on what else the machine does; workspaces inside of an operation are not seen.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dragontune import (
    Alignment,
    AlignProp,
    Draft,
    DraftLv,
    Lora,
    Sampler,
    SetCrop,
    SetFrechet,
    TinyClap,
    Vendi,
    alive,
    load,
)
from dragontune.algorithms.base import Algorithm
from dragontune.rewards.base import Reward
from dragontune.seeding import Key
from dragontune.training.loop import Loop

RESULT = Path(__file__).parent / "results" / "memory.json"
SAMPLER = Sampler(steps=5, guidance=2.0)
PROMPTS = [f"a tune for {name}" for name in ("flute", "violin", "banjo", "organ", "choir")]
MEBIBYTE = 2**20


def peak(work: Callable[[], object]) -> float:
    """In MiB."""
    return alive.peak(work) / MEBIBYTE


def plain_step(size: int) -> Callable[[], object]:
    """Noise latents, estimate the clean ones, and backpropagate the error into the adapter."""
    generator = load("tiny-music", Lora())
    clean = 0.5 * Key(0).normal(range(size), generator.latent_shape)
    condition = generator.encode_prompts([PROMPTS[i % len(PROMPTS)] for i in range(size)])
    t = torch.full((size,), 0.4)

    def work() -> None:
        noisy = generator.schedule.diffuse(clean, torch.randn_like(clean), t)
        loss = (generator.denoise(noisy, t, condition) - clean).square().mean()
        loss.backward()

    return work


def decoder_pass(size: int, gradients: bool) -> Callable[[], object]:
    generator = load("tiny-music")
    latents = (0.5 * Key(0).normal(range(size), generator.latent_shape)).requires_grad_(gradients)

    def work() -> None:
        audio = generator.decode(latents).waveform  # pyright: ignore[reportAttributeAccessIssue]
        if gradients:
            audio.square().sum().backward()

    return work


def update(make: Callable[[Any], Algorithm], items: int, size: int) -> Callable[[], object]:
    """One update as the loop does it."""
    algorithm = make(load("tiny-music", Lora()))
    loop = Loop(rounds=1, pairs=items, updates=1, batch=items, micro_batch=size, lr=1e-4, sample_every=0)
    algorithm.reward(algorithm.sampler.sample(algorithm.generator, PROMPTS[:2], Key(0)))  # loads everything
    return lambda: loop.run(algorithm, PROMPTS)


def main() -> None:
    clap = TinyClap()
    frechet: Reward = SetFrechet(clap, "tiny-music/references/train-tiny-clap.safetensors")
    found: dict[str, Any] = {}
    for size in (8, 20):
        step, decoder = peak(plain_step(size)), peak(decoder_pass(size, False))
        rows: dict[str, Any] = {"plain training step": step, "decoder pass": decoder}
        rows["decoder pass with gradients"] = peak(decoder_pass(size, True))
        for name, make in {
            "DRaFT-1": lambda g, size=size: Draft(g, Alignment(clap), SAMPLER, micro_batch=size),
            "DRaFT-LV": lambda g, size=size: DraftLv(g, Alignment(clap), SAMPLER, micro_batch=size),
            "DRaFT, all 5 steps": lambda g, size=size: Draft(g, Alignment(clap), SAMPLER, last="all", micro_batch=size),
            "AlignProp": lambda g, size=size: AlignProp(g, Alignment(clap), SAMPLER, micro_batch=size),
            "DRaFT-1, a quarter of each item": lambda g, size=size: Draft(
                g, SetCrop(Vendi(clap), 0.25), SAMPLER, micro_batch=size
            ),
        }.items():
            rows[name] = peak(update(make, size, size))
        rows["DRaFT-1 / (training step + decoder pass)"] = rows["DRaFT-1"] / (step + decoder)
        found[f"micro-batch {size}"] = rows
    sets = {
        items: peak(update(lambda g: Draft(g, frechet, SAMPLER, micro_batch=20), items, 20))  # pyright: ignore
        for items in (40, 160, 640)
    }
    found["set Fréchet, micro-batch 20, by items in the set"] = {**sets, "640 / 40": sets[640] / sets[40]}
    for name, rows in found.items():
        print(name)
        for what, value in rows.items():
            print(f"  {what:45} {value:8.2f}{'' if '/' in str(what) else ' MiB'}")
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

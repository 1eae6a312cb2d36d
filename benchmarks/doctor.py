"""What `doctor` foresees of the memory of four runs, against what they take.

    python benchmarks/doctor.py

On a GPU both are what PyTorch has allocated; elsewhere the bytes of all tensors, beside them the growth of the process.
Each run is a round of tuning and an evaluation, as `dragontune tune` makes them, in a process of its own.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from gpu import save, words
from transformers import CLIPTextConfig, CLIPTextModel

from dragontune import Alignment, Brightness, Draft, Dragon, Latents, Loop, Lora, Sampler, SetFrechet, TinyClap, Vendi
from dragontune.commands.doctor import judged
from dragontune.commands.memory import Meter, forecast
from dragontune.commands.recipe import Recipe, read_prompts
from dragontune.evaluation.evaluate import Evaluation, evaluate
from dragontune.generators.checkpoint import Plan

RESULT = Path(__file__).parent / "results" / "doctor.json"
MIB = 2**20
TRAIN, TEST = "tiny-music/prompts/train.txt", "tiny-music/prompts/test.txt"


def dragon(place: Path) -> Recipe:
    """The demo, one round."""
    return Recipe(
        model="tiny-music",
        reward=SetFrechet(TinyClap(), "tiny-music/exemplars/train"),
        algorithm=lambda generator, reward: Dragon(generator, reward, sampler=Sampler(steps=5, guidance=2.0), beta=50),
        prompts=TRAIN,
        loop=Loop(rounds=1, pairs=80, updates=2, batch=80, micro_batch=40, sample_every=0),
        evaluation=Evaluation(TEST, count=40, subset=20, rewards={"alignment": Alignment(TinyClap())}),
    )


def draft(place: Path) -> Recipe:
    """DRaFT-2 through decoder and encoder."""
    return Recipe(
        model="tiny-music",
        reward=Alignment(TinyClap()),
        algorithm=lambda generator, reward: Draft(
            generator, reward, sampler=Sampler(steps=5, guidance=2.0), last=2, micro_batch=20
        ),
        prompts=TRAIN,
        loop=Loop(rounds=1, pairs=40, updates=1, batch=40, micro_batch=10, sample_every=0),
    )


def stable_audio(place: Path) -> Recipe:
    """Stable Audio's classes at a hundredth of the size, in bfloat16 with everything that saves memory."""
    save(place / "stable-audio", small=True)
    return Recipe(
        model=str(place / "stable-audio"),
        reward=Vendi(Latents(str(place / "stable-audio"))),
        algorithm=lambda generator, reward: Dragon(
            generator, reward, sampler=Sampler(steps=5, guidance=7.0), beta=50, micro_batch=4
        ),
        prompts=TRAIN,
        precision="bf16",
        plan=Plan(checkpointing=True, offload=True, tiling=True),
        loop=Loop(rounds=1, pairs=16, updates=2, batch=16, micro_batch=8, sample_every=0),
        evaluation=Evaluation(TEST, count=16, subset=8, micro_batch=2),
    )


def stable_diffusion(place: Path) -> Recipe:
    """Stable Diffusion's classes at a fiftieth of the size, DRaFT-1 towards light pictures of 256 x 256."""
    save_stable_diffusion(place / "stable-diffusion")
    return Recipe(
        model=str(place / "stable-diffusion"),
        reward=Brightness(),
        algorithm=lambda generator, reward: Draft(
            generator, reward, sampler=Sampler(steps=5, guidance=7.5), last=1, micro_batch=6
        ),
        prompts=TRAIN,
        lora=Lora(rank=8),
        loop=Loop(rounds=1, pairs=12, updates=1, batch=12, micro_batch=3, sample_every=0),
    )


def save_stable_diffusion(folder: Path) -> None:
    torch.manual_seed(0)
    text = CLIPTextConfig(vocab_size=1000, hidden_size=128, intermediate_size=256, num_hidden_layers=2)
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(64, 128, 128, 128),  # pyright: ignore[reportArgumentType]
        cross_attention_dim=128,
        norm_num_groups=16,
        layers_per_block=1,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        block_out_channels=(32, 64, 64, 64),  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        norm_num_groups=16,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    parts: Any = (vae, CLIPTextModel(text), words(77), unet, scheduler, None, None)
    StableDiffusionPipeline(*parts, requires_safety_checker=False).save_pretrained(folder)


RUNS: dict[str, Callable[[Path], Recipe]] = {
    "DRAGON, set Fréchet, tiny-music, with evaluation": dragon,
    "DRaFT-2, alignment, tiny-music": draft,
    "DRAGON, Vendi in latents, Stable Audio (small), bf16, thrifty, with evaluation": stable_audio,
    "DRaFT-1, brightness, Stable Diffusion (small)": stable_diffusion,
}


@dataclass(frozen=True)
class Quiet:
    """A reporter that says nothing."""

    def __call__(self, phase: str, done: int, total: int, note: str = "") -> None: ...


def foresee(recipe: Recipe, place: Path) -> dict[str, float]:
    prompts, algorithm = read_prompts(recipe.prompts), recipe.build()
    recipe.rehearse(algorithm, prompts)
    found = forecast(algorithm, recipe.loop, prompts, judged(recipe))
    return {"resident": found.resident, "foreseen": found.worst.bytes} | {
        stage.name: stage.bytes for stage in found.stages
    }


def take(recipe: Recipe, place: Path) -> dict[str, float]:
    prompts, algorithm = read_prompts(recipe.prompts), recipe.build()
    recipe.rehearse(algorithm, prompts)
    meter, before = Meter(algorithm.generator.device), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def work() -> None:
        history = recipe.loop.run(algorithm, prompts)
        if recipe.evaluation:
            arguments = (recipe.reward, algorithm.sampler, 0, place / "report", history)
            evaluate(algorithm.generator, recipe.evaluation, *arguments)

    _, use = meter.measure(work)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"taken": use.peak, "process_grew": 1024 * (after - before)}


def child(work: Callable[[Recipe, Path], dict[str, float]], name: str, answer: Any) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        answer.send(work(RUNS[name](Path(place)), Path(place)))


def apart(work: Callable[[Recipe, Path], dict[str, float]], name: str) -> dict[str, float]:
    """In a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=child, args=(work, name, there))
    process.start()
    there.close()
    found = here.recv()
    process.join()
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found = {}
    for name in RUNS:
        figures = apart(foresee, name) | apart(take, name)
        found[name] = figures | {"ratio": figures["foreseen"] / figures["taken"]}
        print(
            f"{name}: foreseen {figures['foreseen'] / MIB:.1f} MiB, taken {figures['taken'] / MIB:.1f} MiB, "
            f"{found[name]['ratio'] - 1:+.1%}",
            flush=True,
        )
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

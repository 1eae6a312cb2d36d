"""Memory of Stable Audio Open at full size, counted on tensors without content: no GPU and no weights are needed.

    python benchmarks/count.py

The real configuration (gpu.py), bfloat16, LoRA of rank 16, checkpointing, text encoder off-loaded, tiles. PyTorch's
FakeTensorMode runs the same code on shapes alone; the bytes of all tensors that are alive are added up, operation by
operation. What operations need inside of themselves and what an allocator wastes is not seen, and kernels of a GPU may
keep other things than those of a CPU, so this says what to expect, not what was measured.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_oobleck import AutoencoderOobleck
from diffusers.models.transformers.stable_audio_transformer import StableAudioDiTModel
from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel
from diffusers.pipelines.stable_audio.pipeline_stable_audio import StableAudioPipeline
from diffusers.schedulers.scheduling_cosine_dpmsolver_multistep import CosineDPMSolverMultistepScheduler
from gpu import words
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import T5Config, T5EncoderModel

from dragontune import Lora, Plan
from dragontune.alive import Alive, together
from dragontune.generators import adapters
from dragontune.generators.checkpoint import Checkpoint
from dragontune.generators.stable_audio import Condition, ExponentialCosine, StableAudio, oobleck

RESULT = Path(__file__).parent / "results" / "count.json"
GIB = 2**30


def build() -> StableAudio:
    vae = AutoencoderOobleck()
    torch.set_default_dtype(torch.bfloat16)
    transformer = StableAudioDiTModel()
    torch.set_default_dtype(torch.float32)
    text = T5EncoderModel(T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12))
    parts = (vae, text, StableAudioProjectionModel(768, 768, 0, 512), words(128), transformer)
    checkpoint = Checkpoint(Path(), "stable-audio-open", torch.device("cpu"), "bf16", plan=Plan(True, True, True))
    for part in (vae, transformer):
        part.requires_grad_(False).eval()
    adapters.attach(transformer, Lora(rank=16))
    transformer.enable_gradient_checkpointing()
    return StableAudio(
        checkpoint=checkpoint,
        pipeline=StableAudioPipeline(*parts, CosineDPMSolverMultistepScheduler()),
        codec=oobleck(vae, checkpoint),
        schedule=ExponentialCosine(),
        latent_shape=(64, 1024),
        prediction="velocity",
        seconds=47.5,
    )


def main() -> None:
    nn.Module.to = lambda self, *_, **__: self  # tensors without content cannot be moved, and are where they should be
    with FakeTensorMode(allow_non_fake_inputs=True):
        generator = build()
        network, codec = generator.network, generator.codec.network
        resident = [*network.parameters(), *network.buffers(), *codec.parameters(), *codec.buffers(), *generator.rotary]
        found = {
            "weights": sum(weight.numel() for weight in network.parameters()),
            "resident": together(resident) / GIB,
        }

        def count(name: str, work: Callable[[], object]) -> None:
            with Alive(resident) as alive:
                work()
            found[name] = (together(resident) + alive.peak) / GIB
            print(f"{name:44} {found[name]:.2f} GiB", flush=True)

        def estimate(rows: int) -> torch.Tensor:
            condition = Condition(torch.randn(rows, 130, 768), torch.randn(rows, 1, 1536))
            return generator.denoise(torch.randn(rows, 64, 1024), torch.rand(rows), condition)

        def train(pairs: int) -> None:
            estimate(2 * pairs).square().mean().backward()
            for weight in generator.parameters():
                weight.grad = None

        print(f"{found['weights'] / 1e9:.3f} billion weights; loaded: {found['resident']:.2f} GiB")
        for pairs in (1, 2, 4, 8):
            count(f"a training step, loop.micro_batch {pairs}", lambda pairs=pairs: train(pairs))
        with torch.no_grad():
            for rows in (1, 4, 8, 16):
                count(f"a guided step of {rows} generations", lambda rows=rows: estimate(2 * rows))
            count("decoding, whatever the number", lambda: generator.decode(torch.randn(4, 64, 1024)))
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""A round of DRAGON on Stable Audio Open at full size, on a GPU: memory, seconds, the transformer's share, utilisation.

    python benchmarks/gpu.py                 # the real configuration with random weights; needs CUDA, under 8 minutes
    python benchmarks/gpu.py --compile       # with the network compiled
    python benchmarks/gpu.py --small         # a hundredth of the size, also on a CPU: whether the script works

The configuration is that of stabilityai/stable-audio-open-1.0 as the defaults of diffusers' classes have it: a
transformer of 1.06 billion weights, the autoencoder of 156 million, T5-base; the tokenizer is a made-up one. LoRA of
rank 16 on all linear layers, 47.5 s of stereo at 44.1 kHz, 40 steps with guidance, 16 generations a round, a Fréchet
distance of the set in the model's latents. What `doctor` predicts of the memory is compared with what was taken.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_oobleck import AutoencoderOobleck
from diffusers.models.transformers.stable_audio_transformer import StableAudioDiTModel
from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel
from diffusers.pipelines.stable_audio.pipeline_stable_audio import StableAudioPipeline
from diffusers.schedulers.scheduling_cosine_dpmsolver_multistep import CosineDPMSolverMultistepScheduler
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from dragontune import Audio, Dragon, Key, Latents, Lora, Sampler, SetFrechet, load
from dragontune.commands.memory import Meter, forecast
from dragontune.generators.checkpoint import Plan
from dragontune.generators.pipeline import PipelineGenerator
from dragontune.training.loop import Loop
from dragontune.training.rounds import Rounds

GIB = 2**30
PROMPTS = [
    f"a {tempo} {kind} for {what}"
    for tempo in ("slow", "quick")
    for kind in ("jig", "reel")
    for what in ("flute", "organ")
]
PEAKS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "4090": 165, "3090": 71}
"""TFLOP/s of dense bfloat16, from the makers' data sheets."""


@dataclass
class Stopwatch:
    """Milliseconds on the device between pairs of marks."""

    cuda: bool
    marks: list[tuple[Any, Any]] = field(default_factory=list)

    def mark(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.mark()
            result = work(*args, **kwargs)
            self.marks.append((start, self.mark()))
            return result

        return timed

    @property
    def seconds(self) -> float:
        if not self.cuda:
            return sum(end - start for start, end in self.marks)
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in self.marks) / 1000


def words(length: int) -> PreTrainedTokenizerFast:
    """A tokenizer that knows no word."""
    known = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    known.pre_tokenizer = pre_tokenizers.Whitespace()
    known.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=known, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=length
    )


def save(folder: Path, small: bool) -> None:
    """The pipeline with random weights."""
    torch.manual_seed(0)
    text = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
    if small:
        vae = AutoencoderOobleck(channel_multiples=[1, 1, 1, 1, 1], decoder_channels=16)
        transformer = StableAudioDiTModel(
            sample_size=64, num_layers=2, num_attention_heads=4, num_key_value_attention_heads=2, attention_head_dim=32
        )
        text |= {"num_layers": 2, "d_ff": 256}
    else:
        vae, transformer = AutoencoderOobleck(), StableAudioDiTModel()
    parts = (vae, T5EncoderModel(T5Config(**text)), StableAudioProjectionModel(768, 768, 0, 512))
    StableAudioPipeline(*parts, words(128), transformer, CosineDPMSolverMultistepScheduler()).save_pretrained(folder)


def exemplars(folder: Path, seconds: float) -> None:
    """Coloured noise: what the exemplars are does not change what the round costs."""
    folder.mkdir()
    for item in range(4):
        noise = Key(0).normal([item], (2, int(44100 * seconds)))
        Audio((0.05 * noise.cumsum(-1)).clamp(-1, 1), 44100).write(folder / f"{item}.flac")


def operations(generator: PipelineGenerator) -> tuple[float, float]:
    """Floating-point operations of one item: forward, and forward with backward into the adapter."""
    noise = Key(0).normal([0], generator.latent_shape).to(generator.device)
    condition, t = generator.encode_prompts(PROMPTS[:1]), torch.full((1,), 0.5, device=generator.device)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        generator.denoise(noise, t, condition)
    with FlopCounterMode(display=False) as both:
        generator.denoise(noise, t, condition).square().mean().backward()
    for weight in generator.parameters():
        weight.grad = None
    return forward.get_total_flops(), both.get_total_flops()


def run(small: bool, compiled: bool, rows: int) -> dict[str, Any]:
    """One round to warm up, one that is measured."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "stable-audio-open"
        save(folder, small)
        exemplars(Path(place) / "exemplars", 1.0 if small else 20.0)
        plan = Plan(checkpointing=True, offload=True, tiling=True, compile=compiled)
        generator = load(str(folder), Lora(rank=16), precision="bf16", plan=plan)
        assert isinstance(generator, PipelineGenerator)
        reward = SetFrechet(Latents(str(folder)), str(Path(place) / "exemplars"))
        sampler = Sampler(steps=4 if small else 40, guidance=7.0)
        algorithm = Dragon(generator, reward, sampler=sampler, beta=50.0, micro_batch=rows)
        loop = Loop(rounds=2, pairs=8, updates=4, batch=8, micro_batch=max(rows // 4, 1), lr=1e-5)
        foreseen = forecast(algorithm, loop, PROMPTS, [])
        forward, both = operations(generator)
        return measure(algorithm, loop, device) | {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU",
            "weights": sum(weight.numel() for weight in generator.network.parameters()),
            "compiled": compiled,
            "rows": rows,
            "seconds_of_audio": generator.latent_shape[1] * 2048 / 44100,
            "forward_tflop": forward / 1e12,
            "forward_backward_tflop": both / 1e12,
            "predicted_gib": foreseen.worst.bytes / GIB,
            "predicted_stages_gib": {stage.name: stage.bytes / GIB for stage in foreseen.stages},
        }


def measure(algorithm: Dragon, loop: Loop, device: torch.device) -> dict[str, Any]:
    """The second round."""
    weights = list(algorithm.parameters())
    cuda = device.type == "cuda"
    rounds = Rounds(
        algorithm=algorithm,
        prompts=PROMPTS,
        weights=weights,
        optimizer=torch.optim.Adam(weights, lr=loop.lr),
        key=Key(loop.seed),
        pairs=loop.pairs,
        updates=loop.updates,
        batch=loop.batch,
        micro_batch=loop.micro_batch,
        max_norm=loop.max_norm,
        rate=loop.rate,
    )
    rounds(0)
    watch, collecting = Stopwatch(cuda), Stopwatch(cuda)
    network, collect = algorithm.generator.network, algorithm.collect
    started: list[Any] = []
    hooks = [
        network.register_forward_pre_hook(lambda *_: started.append(watch.mark())),
        network.register_forward_hook(lambda *_: watch.marks.append((started.pop(), watch.mark()))),
    ]
    object.__setattr__(rounds, "backward", watch.around(torch.Tensor.backward))
    object.__setattr__(algorithm, "collect", collecting.around(collect))
    meter = Meter(device)
    start = time.perf_counter()
    record, use = meter.measure(lambda: rounds(1))
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    for hook in hooks:
        hook.remove()
    object.__delattr__(algorithm, "collect")
    metrics = record["metrics"]
    return {
        "round_seconds": seconds,
        "collect_seconds": collecting.seconds,
        "seconds_per_generation": collecting.seconds / metrics["generations"],
        "transformer_share": watch.seconds / seconds,
        "peak_gib": use.peak / GIB,
        "generations": metrics["generations"],
        "denoiser_calls": metrics["denoiser_calls"],
        "gradient_calls": algorithm.budget(loop.pairs, loop.batch, loop.updates)["gradient_calls"],
    }


def utilisation(found: dict[str, Any]) -> float | None:
    """Model FLOP utilisation of the round: operations a model without recomputation needs, of the device's peak."""
    peak = next((tflops for name, tflops in PEAKS.items() if name in found["device"]), None)
    if peak is None:
        return None
    work = found["denoiser_calls"] * found["forward_tflop"] + found["gradient_calls"] * 3 * found["forward_tflop"]
    return work / found["round_seconds"] / peak


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--small", action="store_true")
    options.add_argument("--compile", action="store_true")
    options.add_argument("--rows", type=int, default=8, help="generations at once")
    options.add_argument("--out", type=Path, help="also write the figures as JSON")
    given = options.parse_args()
    if not (given.small or torch.cuda.is_available()):
        raise SystemExit("expected a CUDA device, got none; --small runs on a CPU")
    found = run(given.small, given.compile, given.rows)
    found["mfu"] = utilisation(found)
    rows = {
        "device": found["device"],
        "transformer": f"{found['weights'] / 1e9:.3f} billion weights with the adapter's",
        "a generation": f"{found['seconds_of_audio']:.1f} s of audio in {found['seconds_per_generation']:.2f} s",
        "the round": f"{found['round_seconds']:.1f} s for {found['generations']:.0f} generations and the updates",
        "in the transformer": f"{found['transformer_share']:.1%} (asked: 90 %)",
        "utilisation": "peak unknown" if found["mfu"] is None else f"{found['mfu']:.1%} of bfloat16",
        "memory": f"{found['peak_gib']:.2f} GiB (asked: 22); foreseen {found['predicted_gib']:.2f}",
    }
    for name, value in rows.items():
        print(f"{name:20} {value}")
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

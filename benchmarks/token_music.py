"""A masked-token music model on the codec of tiny-music: its codes, its training, what it makes, plain and steered.

python benchmarks/token_music.py make       (latents of tiny-music, 8 minutes on one thread)
python benchmarks/token_music.py train      (codes and network, 10 minutes; writes runs/discrete/token-music)
python benchmarks/token_music.py measure    (writes benchmarks/results/token-music.json)
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from dragontune.data import Samples
from dragontune.encoders.clap import TinyClap
from dragontune.generators.codes import fit
from dragontune.generators.pretrained import load
from dragontune.generators.tiny_music import TinyMusic
from dragontune.generators.token_music import TokenMusicPipeline, open_generator, token_music
from dragontune.generators.tokens import TokenTransformer, masked_cross_entropy
from dragontune.media.audio import Audio
from dragontune.rewards.alignment import Alignment
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.steering.base import Steering
from dragontune.steering.best_of_n import BestOfN
from dragontune.steering.svdd import Svdd
from dragontune.unmasking import Unmasking

HERE = Path(__file__).parent
FOLDER, RESULT = Path("runs/discrete"), HERE / "results" / "token-music.json"
MODEL = FOLDER / "token-music"
PROMPTS = HERE.parent / "src" / "dragontune" / "assets" / "tiny-music" / "prompts"
ROUNDS, LEVELS, SIZE = 4, 4, 256


def base() -> TinyMusic:
    generator = load("tiny-music", device="cpu")
    assert isinstance(generator, TinyMusic)
    return generator


def prompts(name: str) -> list[str]:
    return (PROMPTS / f"{name}.txt").read_text().splitlines()


def make() -> None:
    """Generations of every training prompt, `ROUNDS` times."""
    generator, texts, sampler = base(), prompts("train"), Sampler(steps=12, guidance=2.0)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for number in range(ROUNDS):
        key = Key(100).fold("data", number)
        parts = []
        for first in range(0, len(texts), 50):
            some = texts[first : first + 50]
            items = range(first, first + len(some))
            parts.append(sampler.sample(generator, some, key, items=items, decode=False).latents.half())
        torch.save(torch.cat(parts), FOLDER / f"latents-{number}.pt")
        print(f"round {number + 1} of {ROUNDS}", flush=True)


def train(seconds: float = 600, batch: int = 32, rate: float = 2e-3) -> None:
    """Codes by k-means, then the network by MDLM's bound; a tenth of the prompts are left out, for guidance."""
    torch.manual_seed(0)
    music, texts = base(), prompts("train")
    latents = torch.cat([torch.load(FOLDER / f"latents-{i}.pt", weights_only=True) for i in range(ROUNDS)]).float()
    frames = latents.transpose(1, 2).flatten(0, 1)
    codes = fit(frames[Key(0).permutation(len(frames))[:60_000]], LEVELS, SIZE, Key(0))
    tokens = codes.encode(latents)
    held, which = torch.arange(len(tokens)) % 40 == 0, torch.arange(len(tokens)) % len(texts)
    length = tokens.shape[1]
    network = TokenTransformer(SIZE, length, LEVELS, width=128, depth=3, heads=4, text_width=128)
    generator = token_music(TokenMusicPipeline(network, codes), music, "token-music")
    print(f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters", flush=True)
    network.train().requires_grad_()
    conditions, nothing = generator.encode_prompts(texts), len(texts)
    conditions = type(conditions).join([conditions, generator.encode_prompts([""])])
    optimiser = torch.optim.AdamW(network.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.01)
    train_rows = (~held).nonzero()[:, 0]
    began, step, log = time.monotonic(), 0, []
    while (share := (time.monotonic() - began) / seconds) < 1:
        optimiser.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 50, 1.001 - share)
        draws = Key(0).fold("train", step).generator()
        rows = train_rows[torch.randint(len(train_rows), (batch,), generator=draws)]
        asked = torch.where(torch.rand(batch, generator=draws) < 0.1, nothing, which[rows])
        rates = (torch.rand((), generator=draws) + torch.arange(batch) / batch) % 1
        uniforms = torch.rand(batch, length, generator=draws)
        losses = masked_cross_entropy(generator, tokens[rows], rates.clamp(min=0.02), uniforms, conditions[asked])
        optimiser.zero_grad()
        (losses.mean() / length).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        step += 1
        log.append(losses.mean().item() / length)
        if step % 50 == 0:
            print(f"{step} {time.monotonic() - began:.0f} s {sum(log[-50:]) / 50:.4f} nats a token", flush=True)
    network.eval().requires_grad_(False)
    with torch.no_grad():
        rows = held.nonzero()[:, 0]
        rates, uniforms = (
            torch.linspace(0.02, 1, len(rows)),
            torch.rand(len(rows), length, generator=Key(1).generator()),
        )
        for name, asked in (("its", which[rows]), ("another's", which[rows.roll(7)]), ("no", rows * 0 + nothing)):
            losses = masked_cross_entropy(generator, tokens[rows], rates, uniforms, conditions[asked])
            print(f"{step} steps; held-out rows with {name} prompt {losses.mean() / length:.4f} nats a token")
    generator.pipeline.to(torch.float16).save_pretrained(MODEL)


REWARD = Alignment(TinyClap())
WIDE, NARROW, STEPS, CANDIDATES, SEEDS = 96, 16, 16, 8, (0, 1, 2)
STEERED: dict[str, Steering] = {
    "best of 8": BestOfN(REWARD, CANDIDATES),  # as many evaluations of the network as SVDD
    "best of 16": BestOfN(REWARD, 2 * CANDIDATES),  # as many, and more than as many reward calls counted like them
    "SVDD": Svdd(REWARD, CANDIDATES),
}


def write(found: dict[str, Any]) -> None:
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


def aligned(samples: Samples) -> dict[str, float]:
    """Mean alignment with the prompts, with other items' prompts, and the share of pairs in which the own is closer."""
    assert samples.media is not None
    clips = normalize(REWARD.encoder.embed(samples.media).mean(), dim=1)
    texts = normalize(REWARD.encoder.embed_text(samples.prompts).mean(), dim=1)
    cosines = clips @ texts.T
    own, other = cosines.diagonal(), ~torch.eye(len(cosines), dtype=torch.bool)
    return {
        "own": own.mean().item(),
        "standard error": (own.std() / len(own) ** 0.5).item(),
        "others": cosines[other].mean().item(),
        "own is closer": (own[:, None] > cosines)[other].double().mean().item(),
    }


@torch.no_grad()
def measure() -> None:
    """What there is already is not made again."""
    generator = open_generator(str(MODEL), "token-music", torch.device("cpu"), "float32")
    music, texts = generator.base, prompts("test")
    found: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"plain": {}, "steered": {}}
    if "codes" not in found:
        source = Sampler(steps=12, guidance=2.0).sample(music, texts[:WIDE], Key(0))
        assert isinstance(source.media, Audio)
        tokens = generator.encode(source.media)
        back = generator.pipeline.codes.decode(tokens)
        clips = [music.decode(part) for part in (source.latents, back)]
        logs = [music.pipeline.vae.spectrum(clip.waveform) for clip in clips]
        found["codes"] = {
            "latent error": ((back - source.latents).square().mean() / source.latents.var()).sqrt().item(),
            "log-spectral distance": (logs[0] - logs[1]).abs().mean().item(),
            "between different clips": (logs[0] - logs[0].roll(1, 0)).abs().mean().item(),
        }
        found["plain"]["tiny-music"] = aligned(source)
        found["plain"]["tiny-music through the codes"] = aligned(Samples(source.prompts, tokens, clips[1]))
        write(found)
    for guidance in (1.0, 2.0, 4.0):
        name = f"token-music, {2 * STEPS} steps, guidance {guidance:g}"
        if name not in found["plain"]:
            process = Unmasking(2 * STEPS, guidance)
            found["plain"][name] = aligned(process.sample(generator, texts[:WIDE], Key(0)))
            print(name, found["plain"][name], flush=True)
            write(found)
    process = Unmasking(STEPS, 2.0)
    for seed in SEEDS:
        some = texts[NARROW * seed : NARROW * (seed + 1)]
        for name, steering in {"plain": None, **STEERED}.items():
            rows = found["steered"].setdefault(name, {})
            if str(seed) in rows:
                continue
            began = time.monotonic()
            samples = process.sample(generator, some, Key(seed), steer=steering)
            costs = steering.budget(process, 1, Key(seed)) if steering else None
            rows[str(seed)] = {
                **aligned(samples),
                "calls": costs.calls if costs else process.calls(1),
                "reward calls": costs.encodes if costs else 0,
                "seconds": time.monotonic() - began,
                "scores": REWARD(samples).tolist(),
            }
            print(name, seed, {k: v for k, v in rows[str(seed)].items() if k != "scores"}, flush=True)
            write(found)


def show() -> None:
    """The tables of docs/discrete.md."""
    found = json.loads(RESULT.read_text())
    print({name: round(value, 3) for name, value in found["codes"].items()})
    print("| model | alignment | with others' prompts | own prompt is closer |\n|---|---|---|---|")
    for name, row in found["plain"].items():
        own = f"{row['own']:.3f} ± {row['standard error']:.3f}"
        print(f"| {name} | {own} | {row['others']:.3f} | {100 * row['own is closer']:.1f} % |")
    print("\n| method | calls | reward calls | alignment by seed | all | lowest |\n|---|---|---|---|---|---|")
    for name, seeds in found["steered"].items():
        runs = list(seeds.values())
        scores = torch.tensor([score for run in runs for score in run["scores"]])
        by_seed = ", ".join(f"{run['own']:.3f}" for run in runs)
        error = scores.std().item() / len(scores) ** 0.5
        cells = (runs[0]["calls"], runs[0]["reward calls"], by_seed, f"{scores.mean():.3f} ± {error:.3f}")
        print(f"| {name} | {' | '.join(map(str, cells))} | {scores.min():.3f} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"make": make, "train": train, "measure": measure, "show": show}[sys.argv[1]]()

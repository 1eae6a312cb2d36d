"""Build the embedded default: `tiny-music`, `tiny-clap`, exemplars, prompts and references, from public-domain scores.

One seeded, resumable command (`make assets`): whatever is finished lies in `.build` and is not done again. Only the
result, in `src/dragontune/assets`, ships. Weights are stored in half precision and used in single.
"""

import json
import random
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import soundfile
import torch

from autoencoder import autoencoder
from clap import clap
from diffusion import diffusion, latents_of
from dragontune.generators.tiny import TinyMusicPipeline
from music import INSTRUMENTS, Facts, caption
from render import RATE, clips
from tokenizer import Words

ROOT = Path(__file__).resolve().parent.parent
BUILD, SHIPPED = ROOT / ".build", ROOT / "src" / "dragontune" / "assets"
TUNES = ("Aird's Airs", "Ryan's Mammoth Collection")
PER_INSTRUMENT, PROMPTS = {"train": 27, "test": 3}, {"train": 1200, "validation": 200, "test": 400}


def main() -> None:
    """All stages."""
    BUILD.mkdir(exist_ok=True)
    sound, facts = clips(BUILD)
    sound = np.asarray(sound)
    train = [i for i, fact in enumerate(facts) if fact.split == "train"]
    words = Words(BUILD, facts)
    vae = autoencoder(BUILD, sound, train)
    latents = latents_of(BUILD, vae, sound)
    towers = clap(BUILD, sound, facts, words)
    transformer, text_encoder = diffusion(BUILD, latents, facts, words)

    model, encoder = SHIPPED / "tiny-music", SHIPPED / "tiny-clap"
    for folder in (model, encoder):
        shutil.rmtree(folder, ignore_errors=True)
    pipeline = TinyMusicPipeline(vae.half(), text_encoder.half(), words.tokenizer, transformer.half())
    pipeline.save_pretrained(model)
    towers.half().save_pretrained(encoder)
    words.tokenizer.save_pretrained(encoder / "tokenizer")
    _exemplars(model / "exemplars", sound, facts)
    _prompts(model / "prompts", facts)
    _references(model / "references", sound, facts)
    shutil.copy(ROOT / "assets" / "NOTICE", SHIPPED / "NOTICE")


def _exemplars(folder: Path, sound: np.ndarray, facts: list[Facts]) -> None:
    """Real clips of training pieces, one folder an instrument, and a few of test pieces to compare with by ear."""
    rng = random.Random(3)
    for split, count in PER_INSTRUMENT.items():
        lines, captions = [], []
        for instrument in INSTRUMENTS:
            rows = [i for i, f in enumerate(facts) if f.split == split and f.instrument == instrument]
            place = folder / split / instrument.replace(" ", "-")
            place.mkdir(parents=True)
            for row in sorted(rng.sample(rows, count)):
                name = f"{row:05d}.ogg"
                soundfile.write(place / name, sound[row], RATE, format="OGG", subtype="VORBIS", compression_level=0.8)
                lines.append(json.dumps({"file": f"{place.name}/{name}", **asdict(facts[row])}))
                captions.append(caption(facts[row], rng))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        (folder / f"{split}-captions.txt").write_text("\n".join(captions) + "\n")
    part_music(folder)


def part_music(folder: Path) -> None:
    """A second set of exemplars out of the first: a playlist of what is no dance or air, and its captions."""
    facts = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    captions = (folder / "train-captions.txt").read_text().splitlines()
    chosen = [i for i, fact in enumerate(facts) if fact["collection"] not in TUNES]
    files = [f"train/{facts[i]['file']}" for i in chosen]
    lines = ["#EXTM3U", "# the exemplars that are music in several parts", *files]
    (folder / "part-music.m3u").write_text("\n".join(lines) + "\n")
    (folder / "part-music-captions.txt").write_text("\n".join(captions[i] for i in chosen) + "\n")


def _prompts(folder: Path, facts: list[Facts]) -> None:
    """Captions by split; the `open` ones name no instrument."""
    folder.mkdir(parents=True)
    rng = random.Random(4)
    for split, count in PROMPTS.items():
        rows = [f for f in facts if f.split == split]
        for name, named in ((split, True), (f"open-{split}", False)):
            texts = dict.fromkeys(caption(f, rng, named) for f in rng.sample(rows, len(rows)))
            (folder / f"{name}.txt").write_text("\n".join(list(texts)[:count]) + "\n")


def _references(folder: Path, sound: np.ndarray, facts: list[Facts]) -> None:
    """Statistics by split (at most 2,000 clips), of the sound as rendered: what ships as exemplars is compressed."""
    from dragontune.encoders.clap import TinyClap
    from dragontune.encoders.latents import Latents
    from dragontune.media.audio import Audio
    from dragontune.reference import Reference

    for split in ("train", "validation", "test"):
        rows = [i for i, fact in enumerate(facts) if fact.split == split]
        rows = sorted(random.Random(6).sample(rows, min(2000, len(rows))))
        for name, encoder in (("tiny-clap", TinyClap()), ("latents", Latents())):
            batches = (
                Audio(torch.from_numpy(sound[some].astype(np.float32) / 32768)[:, None], RATE)
                for some in np.array_split(rows, len(rows) // 32)
            )
            source = f"{len(rows)} clips of the {split} pieces"
            Reference.build(encoder, batches, source).save(folder / f"{split}-{name}.safetensors")


if __name__ == "__main__":
    main()

"""Does another folder lead to other music? The share of an instrument before and after tuning towards its clips.

Run `dragontune tune recipes/towards-banjo.yaml` and `recipes/towards-choir.yaml` first. The prompts name no instrument;
which one a clip has is what tiny-clap finds nearest among the fourteen names.
"""

import json
from collections import Counter
from pathlib import Path

import torch

from dragontune.embedded import locate
from dragontune.encoders.clap import TinyClap
from dragontune.generators.adapters import Lora
from dragontune.generators.pretrained import load
from dragontune.sampling import Sampler
from dragontune.seeding import Key

NAMES = ("piano", "harpsichord", "marimba", "organ", "accordion", "guitar", "banjo", "violin", "trumpet", "clarinet",
         "flute", "string quartet", "choir", "brass ensemble")  # fmt: skip
COUNT, SAMPLER = 200, Sampler(steps=5, guidance=2.0)


@torch.no_grad()
def main() -> None:
    """Both folders, before and after."""
    clap, generator = TinyClap(), load("tiny-music", Lora())
    names = clap.embed_text([f"The sound of a {name}" for name in NAMES]).mean()
    prompts = locate("tiny-music/prompts/open-test.txt").read_text().splitlines()[:COUNT]

    def shares() -> dict[str, float]:
        found: Counter[str] = Counter()
        for start in range(0, COUNT, 40):
            some = prompts[start : start + 40]
            made = SAMPLER.sample(generator, some, Key(7), items=range(start, start + len(some)))
            found.update(NAMES[k] for k in (clap.encode(made).mean() @ names.T).argmax(1).tolist())
        return {name: found[name] / len(prompts) for name in NAMES}

    with generator.reference():
        result = {"prompts": len(prompts), "before": shares()}
    for name in ("banjo", "choir"):
        run = Path("runs") / f"towards-{name}"
        generator.load_adapter(str(run / "adapter"))
        result[f"after towards {name}"] = shares()
        result[f"points gained, {name}"] = 100 * (result[f"after towards {name}"][name] - result["before"][name])
    text = json.dumps(result, indent=1)
    Path("benchmarks/results/instruments.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

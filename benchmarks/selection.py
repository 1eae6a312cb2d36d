"""What choosing D+ by a reward does to that reward and to others (DRAGON, table A3.T5: per-song against dataset).

    python benchmarks/selection.py

Two sets of 200 test prompts by the untuned five-step model, divided by per-song and by set Fréchet distance in two
encoders; three seeds; one pass over the pairs, as in the paper. Writes benchmarks/results/selection.json.
"""

import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from dragontune import Alignment, Latents, Sampler, SetFrechet, SongFrechet, TinyClap, Vendi, load
from dragontune.data import Samples, join_columns
from dragontune.demonstrations import divide
from dragontune.evaluation.evaluate import Evaluation
from dragontune.seeding import Key

RESULTS = Path(__file__).parent / "results" / "selection.json"
SEEDS = 3
ENCODERS = {
    "tiny-clap": (TinyClap(), "tiny-music/exemplars/train"),
    "latents": (Latents(), "tiny-music/references/train-latents.safetensors"),
}


def main() -> None:
    prompts = Evaluation("tiny-music/prompts/test.txt", count=200).read()
    generator, sampler = load("tiny-music"), Sampler(steps=5, guidance=2.0)
    rewards = {"alignment": Alignment(TinyClap()), "vendi": Vendi(TinyClap())}
    for name, (encoder, exemplars) in ENCODERS.items():
        rewards[f"per-song, {name}"] = SongFrechet(encoder, exemplars)
        rewards[f"set, {name}"] = SetFrechet(encoder, exemplars)
    rows: list[dict] = []
    for seed in range(SEEDS):
        key, features = Key(seed).fold("selection"), {name: [] for name in rewards}
        with torch.no_grad():
            for half in ("first", "second"):
                for items in torch.arange(len(prompts)).split(50):
                    asked = [prompts[i] for i in items.tolist()]
                    made: Samples = sampler.sample(generator, asked, key.fold(half), items=items.tolist())
                    for name, reward in rewards.items():
                        features[name].append(reward.encode(made))
        joined = {name: join_columns(parts) for name, parts in features.items()}
        count, twice = len(prompts), [*prompts, *prompts]

        def measure(chosen: torch.Tensor, joined: dict = joined) -> dict[str, float]:
            return {name: reward.score(joined[name][chosen]).mean().item() for name, reward in rewards.items()}

        rows.append({"seed": seed, "D+ by": "none (first set)", "scores": measure(torch.arange(count))})
        for name in [name for name in rewards if "," in name]:
            division = divide(rewards[name], joined[name], twice, key.fold("division"))
            rows.append({"seed": seed, "D+ by": name, "scores": measure(division.positive)})
    RESULTS.write_text(json.dumps({"prompts": len(prompts), "rows": rows}, indent=1) + "\n")
    table = Table("D+ chosen by", *rewards)
    for chosen in dict.fromkeys(row["D+ by"] for row in rows):
        values = [[row["scores"][name] for row in rows if row["D+ by"] == chosen] for name in rewards]
        table.add_row(chosen, *(" ".join(f"{abs(value):.4g}" for value in column) for column in values))
    Console(width=180).print(table)


if __name__ == "__main__":
    main()

"""Over-optimise on purpose, with the guard and without: one reward, a large rate, three seeds.

    python benchmarks/guard.py

Tunes recipes/gradients/per-song-draft.yaml at six times its rate by `dragontune tune`, and compares the held-out
rewards of what is handed over with the untuned model's, on 200 test prompts that neither tuning nor guard has seen.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RECIPE = HERE.parent / "recipes" / "gradients" / "per-song-draft.yaml"
RUNS, RESULT = Path("runs/guard"), HERE / "results" / "guard.json"
HOT = ["--loop.lr", "3.0e-3", "--loop.sample_every", "0", "--evaluation.scales", "[0, 1]", "--evaluation.players", "0"]
STRICT = ["--guard.every", "1", "--guard.patience", "4", "--guard.tolerance", "0.03"]


def tune(name: str, seed: int, options: list[str]) -> dict[str, Any]:
    """What a run measured and what its log says of the guard."""
    folder = RUNS / f"{name}-{seed}"
    if not (folder / "report" / "metrics.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "dragontune.cli", "tune", str(RECIPE), "--out", str(folder), *HOT, *options]
        subprocess.run([*command, "--loop.seed", str(seed)], check=True)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    rewards = json.loads((folder / "report" / "metrics.json").read_text())["rewards"]
    changes = {which: (row["after"] - row["before"]) / abs(row["before"]) for which, row in rewards.items()}
    looks = [record["look"] for record in log if "look" in record]
    return {
        "rounds": len(log),
        "stopped": log[-1].get("stopped"),
        "best": looks[-1]["best"] if looks else None,
        "changes": changes,
    }


def main() -> None:
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in (0, 1, 2):
        for name, options in (("guarded", STRICT), ("unguarded", ["--guard", "null"])):
            found.setdefault(name, []).append(tune(name, seed, options))
    names = [name for name in found["guarded"][0]["changes"] if name != "target"]
    print(f"| run | seed | rounds | handed over | target | {' | '.join(names)} |\n{'|---' * (5 + len(names))}|")
    for name, runs in found.items():
        for seed, run in enumerate(runs):
            best = run["best"]
            given = f"round {best['round']}, scale {best['scale']:g}" if best else "the last round"
            cells = [f"{100 * run['changes'][which]:+.1f} %" for which in ("target", *names)]
            print(f"| {name} | {seed} | {run['rounds']} | {given} | {' | '.join(cells)} |")
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Pages and pictures from what benchmarks/table.py found.

    python benchmarks/table_report.py

Writes docs/table.md, docs/table.svg (20 x 20 win rates) and docs/table-diversity.svg (diversity against aesthetics by
class of reward, after DRAGON's figure 4).
"""

import json
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from table import ALIGNMENT, CELLS, DIVERSITY, FALL, HERE, SHARE, Plan

DOCS = HERE.parent / "docs"
CLASSES = {"song": "item against exemplars", "set": "set against exemplars", "kernel": "set against exemplars"}
COLOURS = {
    "one item": "#c2571a",
    "item against exemplars": "#1f6f8b",
    "set against exemplars": "#3d7d35",
    "set alone": "#7a4fa3",
}

INTRODUCTION = """\
Made by `python benchmarks/table.py` and `python benchmarks/table_report.py`; every figure of every model by every
reward, with intervals, is in `benchmarks/results/table/`. What the names mean stands in `recipes/table/rewards.yaml`.

{count} test prompts, the same noise before and after. Win rates: of an item's reward by prompt, a tie one half,
Wilson's interval; of a set's reward over {subsets} random subsets of {subset} prompts, the interval by resampling
prompts. Distances are negative: higher is better everywhere. Guard rails: alignment falls by at most {fall}, diversity
(Vendi) keeps {share:.0f} %; where they do not hold, the largest LoRA scale of 0.75, 0.5, 0.25, 0.125 at which they do
(found on the same prompts), with the target and the win rate there. One training seed."""


def kind(name: str) -> str:
    """The class of a reward, from its name in the recipe."""
    return {"aesthetics": "one item", "clap": "one item", "vendi": "set alone"}.get(name) or CLASSES[name.split("-")[0]]


def read(plan: Plan) -> dict[str, dict[str, Any]]:
    """The models that are there and up to date."""
    return {name: json.loads((CELLS / f"{name}.json").read_text()) for name in plan.names if plan.done(name)}


def percent(entry: Mapping[str, Any]) -> str:
    low, high = entry["win_rate_ci95"]
    return f"{100 * entry['win_rate']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def value(entry: Mapping[str, Any], side: str) -> str:
    return f"{entry[side]:.4g}"


def summary(plan: Plan, cells: Mapping[str, Any]) -> list[str]:
    lines = [
        "| tuned for | before | after | win rate, % (95 %) | alignment | diversity | clean sound | guard rails |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in plan.content["rewards"]:
        if name not in cells:
            lines.append(f"| {name} | not run | | | | | | |")
            continue
        cell = cells[name]
        all_of, target = cell["rewards"], cell["rewards"][name]
        moved = all_of[ALIGNMENT]["after"] - all_of[ALIGNMENT]["before"]
        ratio = all_of[DIVERSITY]["after"] / all_of[DIVERSITY]["before"]
        clean = all_of["clean-sound"]["after"] - all_of["clean-sound"]["before"]
        lines.append(
            f"| {name} | {value(target, 'before')} | {value(target, 'after')} | {percent(target)} | {moved:+.3f} "
            f"| ×{ratio:.2f} | {clean:+.3f} | {guard(cell, name)} |"
        )
    return lines


def guard(cell: Mapping[str, Any], name: str) -> str:
    """Whether the guard rails hold, else at which LoRA scale, and what is left of the win rate there."""
    if cell["holds"]:
        return "hold"
    restored = cell["restored"]
    target = restored["rewards"][name]
    words = f"at LoRA scale {restored['scale']}: {value(target, 'after')}, {percent(target)}"
    return words if restored["holds"] else f"not even {words}"


def means(plan: Plan, cells: Mapping[str, Any]) -> list[str]:
    found = [cells[name]["rewards"][name] for name in plan.content["rewards"] if name in cells]
    above = sum(entry["win_rate_ci95"][0] > 0.5 for entry in found)
    mean = 100 * np.mean([entry["win_rate"] for entry in found])
    kept = [
        (cell["rewards"] if cell["holds"] else cell["restored"]["rewards"])[name]["win_rate"]
        for name in plan.content["rewards"]
        if (cell := cells.get(name))
    ]
    count, kept_mean = len(plan.content["rewards"]), 100 * np.mean(kept)
    return [
        f"{len(found)} of {count} models; {above} targets improve with the interval above 50 %; mean win rate",
        f"{mean:.2f} % (the paper, for 20 rewards on its own model: 81.45 %); with every row at the LoRA scale",
        f"at which the guard rails hold {kept_mean:.2f} %.",
    ]


def ablations(plan: Plan, cells: Mapping[str, Any]) -> list[str]:
    lines = [
        "| tuned for | with | before | after | win rate, % (95 %) | to other clips | alignment | diversity |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in plan.content.get("ablations", {}).items():
        if name in cells:
            cell = cells[name]
            target, clap, vendi = (cell["rewards"][each] for each in (cell["target"], ALIGNMENT, DIVERSITY))
            before, after = value(target, "before"), value(target, "after")
            other = cell["rewards"]["set-clap-test"]
            lines.append(
                f"| {entry['reward']} | {entry['what']} | {before} | {after} | {percent(target)} "
                f"| {value(other, 'before')} → {value(other, 'after')} "
                f"| {clap['after'] - clap['before']:+.3f} | ×{vendi['after'] / vendi['before']:.2f} |"
            )
    return lines


def encoders(plan: Plan, cells: Mapping[str, Any]) -> list[str]:
    """What encoder and exemplars of the target do to what no target knows."""
    watched = [*plan.content["watched"], ALIGNMENT, DIVERSITY, "aesthetics"]
    lines = [f"| tuned for | {' | '.join(watched)} |", "|---|" + "---|" * len(watched)]
    for name in plan.content["rewards"]:
        if name in cells and kind(name) in ("item against exemplars", "set against exemplars"):
            found = (cells[name]["rewards"][each] for each in watched)
            lines.append(f"| {name} | " + " | ".join(f"{entry['after']:.3g}" for entry in found) + " |")
    untuned = next(iter(cells.values()))["rewards"]
    return [
        *lines[:2],
        "| untuned | " + " | ".join(f"{untuned[each]['before']:.3g}" for each in watched) + " |",
        *lines[2:],
    ]


def heat(plan: Plan, cells: Mapping[str, Any]) -> None:
    """Rows: what was tuned for; columns: what judges."""
    names = [name for name in plan.content["rewards"] if name in cells]
    columns = list(plan.rewards)
    rates = np.array([[100 * cells[row]["rewards"][column]["win_rate"] for column in columns] for row in names])
    figure, axes = plt.subplots(figsize=(13, 9.5))
    image = axes.imshow(rates, cmap="RdBu", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    for i, row in enumerate(rates):
        for j, rate in enumerate(row):
            strong = abs(rate - 50) > 35
            own = columns[j] == names[i]
            axes.text(
                j, i, f"{rate:.0f}", ha="center", va="center", fontsize=6.5, color="white" if strong else "black",
                weight="bold" if own else "normal",
            )  # fmt: skip
    axes.set_xlabel("judged by")
    axes.set_ylabel("tuned for")
    figure.colorbar(image, label="win rate against the untuned model, %", fraction=0.03, pad=0.02)
    save(figure, "table.svg")


def diversity(plan: Plan, cells: Mapping[str, Any]) -> None:
    """Vendi of the model against its aesthetics win rate."""
    figure, axes = plt.subplots(figsize=(8, 5.5))
    seen = set()
    for name in plan.content["rewards"]:
        if name not in cells:
            continue
        rewards, group = cells[name]["rewards"], kind(name)
        x, y = 100 * rewards["aesthetics"]["win_rate"], rewards[DIVERSITY]["after"]
        axes.scatter(x, y, color=COLOURS[group], label=None if group in seen else group, s=40)
        axes.annotate(name, (x, y), fontsize=6.5, xytext=(4, 3), textcoords="offset points")
        seen.add(group)
        axes.axhline(rewards[DIVERSITY]["before"], color="grey", lw=0.8, ls="--")
    axes.axvline(50, color="grey", lw=0.8, ls="--")
    axes.margins(x=0.12)
    axes.set_xlabel("aesthetics win rate, % of prompts")
    axes.set_ylabel("Vendi score of 400 items")
    axes.legend(fontsize=8, title="tuned for")
    axes.grid(alpha=0.2)
    save(figure, "table-diversity.svg")


def save(figure: Any, name: str) -> None:
    mpl.rcParams["svg.hashsalt"] = "dragontune"
    figure.tight_layout()
    figure.savefig(DOCS / name, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    plan = Plan.read()
    cells = read(plan)
    settings = plan.content["evaluation"]
    heat(plan, cells)
    diversity(plan, cells)
    text = [
        "# Twenty rewards, one table",
        "",
        *INTRODUCTION.format(fall=FALL, share=100 * SHARE, **settings).splitlines(),
        "",
        *means(plan, cells),
        "",
        *summary(plan, cells),
        "",
        "![Win rates of every model by every reward](table.svg)",
        "",
        "![Diversity against aesthetics](table-diversity.svg)",
        "",
    ]
    text += ["## Encoders and exemplars", "", *encoders(plan, cells), ""]
    if len(lines := ablations(plan, cells)) > 2:
        text += ["## Ablations", "", *lines, ""]
    (DOCS / "table.md").write_text("\n".join(text))
    print("\n".join(means(plan, cells)))


if __name__ == "__main__":
    main()

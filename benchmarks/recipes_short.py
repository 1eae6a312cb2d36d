"""Recipes of a few seconds on the embedded model: what benchmarks/kills.py, torn.py and soak.py run."""

from collections.abc import Mapping

PARTS = {
    "dragon": """\
reward:
  class_path: SetFrechet
  init_args: {encoder: {class_path: TinyClap}, exemplars: tiny-music/references/train-tiny-clap.safetensors}
algorithm: {class_path: Dragon, init_args: {beta: 50, sampler: {steps: 2, guidance: 2.0}}}
""",
    "draft": """\
reward: {class_path: Alignment, init_args: {encoder: {class_path: TinyClap}}}
algorithm: {class_path: Draft, init_args: {last: 1, sampler: {steps: 2, guidance: 2.0}}}
""",
}
GUARD = """\
guard:
  prompts: tiny-music/prompts/validation.txt
  count: 3
  every: 3
  patience: 100
  scales: [1.0]
  rewards: {alignment: {class_path: Alignment, init_args: {encoder: {class_path: TinyClap}}}}
"""
REST = """\
model: tiny-music
lora: {rank: 4, alpha: 4}
prompts: tiny-music/prompts/train.txt
evaluation: {prompts: tiny-music/prompts/test.txt, count: 4, subset: 3, subsets: 4, scales: [0, 1], players: 1}
"""


def recipe(algorithm: str, guard: bool, loop: Mapping[str, float]) -> str:
    """As YAML."""
    settings = {"pairs": 3, "updates": 2, "batch": 3, "lr": 1e-3, "max_norm": 1.0, "sample_every": 3, "sample_count": 1}
    fields = ", ".join(f"{name}: {value}" for name, value in {**settings, **loop}.items())
    return f"{PARTS[algorithm]}{REST}loop: {{{fields}}}\n{GUARD if guard else ''}"

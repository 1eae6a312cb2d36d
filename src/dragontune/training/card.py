"""RUN/README.md: what the adapter is, what it was tuned towards, how to use it, and what it measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dragontune.training import watch
from dragontune.training.checkpoint import Record


@dataclass(frozen=True, eq=False)
class Card:
    """A model card in the form that model hubs read: a few fields of YAML, then Markdown."""

    model: str
    algorithm: str
    reward: str
    folder: str
    history: Sequence[Record]
    metrics: Mapping[str, Any] | None

    def text(self) -> str:
        """The whole page."""
        parts = [self._head(), self._course(), *([self._results(self.metrics)] if self.metrics else []), self._use()]
        return "\n".join(parts)

    def _head(self) -> str:
        return (
            f"---\nbase_model: {self.model}\nlibrary_name: peft\ntags: [lora, dragontune]\n---\n\n"
            f"# {self.model}, tuned with {self.algorithm} towards {self.reward}\n\n"
            "A LoRA adapter. The licence of the base model holds for it too. "
            "`recipe.yaml` beside this file repeats the run.\n"
        )

    def _course(self) -> str:
        if not self.history:
            return ""
        first, last = self.history[0], self.history[-1]
        seconds = sum(record["seconds"] for record in self.history)
        peak = max(record.get("peak_memory") or 0 for record in self.history)
        said = [
            f"Rounds: {last['round']}, in {seconds:.0f} s. Reward while tuning (higher is better): "
            f"{first['reward']:.4g} in the first round, {last['reward']:.4g} in the last.",
            *([f"Peak memory: {peak / 2**30:.2f} GiB."] if peak else []),
            *([f"\n{handed}."] if (handed := watch.summary(self.history)) else []),
        ]
        return "\n".join([*said, ""])

    def _results(self, metrics: Mapping[str, Any]) -> str:
        lines = [
            f"## Measured on {metrics['prompts']} prompts, against the base model with the same noise\n",
            "| reward | scope | tuned for | before | after | win rate | 95 % interval |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, row in metrics["rewards"].items():
            low, high = row["win_rate_ci95"]
            lines.append(
                f"| {name} | {row['scope']} | {'yes' if row['target'] else 'no'} | {row['before']:.4g} "
                f"| {row['after']:.4g} | {row['win_rate']:.1%} | {low:.1%} to {high:.1%} |"
            )
        return "\n".join([*lines, "", "Players and plots: `report/index.html`.\n"])

    def _use(self) -> str:
        return (
            "## Use\n\n```\n"
            f'dragontune generate --model {self.model} --adapter {self.folder} --prompt "a text" --out clips\n'
            "```\n\n`adapter/` is in peft's format and loads in peft and diffusers as well.\n"
        )

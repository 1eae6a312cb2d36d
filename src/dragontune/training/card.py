"""RUN/README.md: what the adapter is, what it was tuned towards, how to use it, and what it measured."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dragontune.health import Health, findings, summary
from dragontune.plain_text import line, markdown
from dragontune.training import watch
from dragontune.training.checkpoint import Record

WORDS_OF_YAML = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
"""That are no texts."""


@dataclass(frozen=True, eq=False)
class Card:
    """A model card in the form that model hubs read: a few fields of YAML, then Markdown."""

    model: str
    algorithm: str
    reward: str
    folder: str
    history: Sequence[Record]
    metrics: Mapping[str, Any] | None
    health: Health = field(default_factory=Health)

    def text(self) -> str:
        """The whole page."""
        parts = [self._head(), self._course(), *([self._results(self.metrics)] if self.metrics else []), self._use()]
        return "\n".join(parts)

    def _head(self) -> str:
        return (
            f"---\nbase_model: {_scalar(self.model)}\nlibrary_name: peft\ntags: [lora, dragontune]\n---\n\n"
            f"# {markdown(self.model)}, tuned with {self.algorithm} towards {markdown(self.reward)}\n\n"
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
            f"{_number(first['reward'])} in the first round, {_number(last['reward'])} in the last.",
            *([f"Peak memory: {peak / 2**30:.2f} GiB."] if peak else []),
            *([f"\n{handed}."] if (handed := watch.summary(self.history)) else []),
            *([f"\n{markdown(well)}."] if (well := summary(findings(self.history, self.health))) else []),
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
                f"| {markdown(name)} | {row['scope']} | {'yes' if row['target'] else 'no'} | {row['before']:.4g} "
                f"| {row['after']:.4g} | {row['win_rate']:.1%} | {low:.1%} to {high:.1%} |"
            )
        return "\n".join([*lines, "", "Players and plots: `report/index.html`.\n"])

    def _use(self) -> str:
        return (
            "## Use\n\n```\n"
            f"dragontune generate --model {_word(self.model)} --adapter {_word(self.folder)} "
            '--prompt "a text" --out clips\n'
            "```\n\n`adapter/` is in peft's format and loads in peft and diffusers as well.\n"
        )


def _scalar(text: str) -> str:
    """A text as YAML reads it, quoted unless it is plainly a name; JSON is YAML."""
    plain = re.fullmatch(r"[A-Za-z][\w./-]*", text, re.ASCII) and text.lower() not in WORDS_OF_YAML
    return text if plain else json.dumps(text)


def _word(text: str) -> str:
    """A word of a command, in a block of code that it cannot end."""
    return shlex.quote(line(text).replace("`", "'"))


def _number(reward: float | None) -> str:
    return "unknown" if reward is None else f"{reward:.4g}"

"""The report: one self-contained HTML page, from `page.html` (Jinja, escapes everything), `page.css` and `page.js`.

Audio, pictures and plots are inside the page; it asks the network for nothing and works from a memory stick.
"""

import os
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from importlib.resources import files
from math import floor, isfinite, log10
from pathlib import Path

from dragontune.costs import Costs
from dragontune.evaluation import plots
from dragontune.evaluation.arms import UNTUNED, Result, Steering
from dragontune.evaluation.comparison import Player, Sweep, Verdict
from dragontune.evaluation.looks import Looks, Trial
from dragontune.evaluation.pictures import Kept, Picture, picture_uri
from dragontune.evaluation.plots import Clip
from dragontune.evaluation.statistics import WinRate
from dragontune.health import Finding

MINUS = "\N{MINUS SIGN}"
QUANTILES = ("q05", "q25", "q50", "q75", "q95")
"""As the loop names them in the log."""


@dataclass(frozen=True, eq=False)
class Page:
    """Everything the page tells; the target's verdict comes first.

    `optimised` is the class of the reward that was tuned towards; `stand_in`: the evaluation judges by another in its
    place. `after` says what the untuned model is compared with: the same model tuned, or steered.
    """

    model: str
    prompts: int
    subset: int
    subsets: int
    seed: int
    optimised: str
    optimised_distance: bool
    stand_in: bool
    verdicts: tuple[Verdict, ...]
    players: tuple[Player, ...]
    sweep: Sweep
    history: tuple[Mapping, ...]
    looks: Looks | None
    costs: Costs
    seconds: float
    change: float
    versions: Mapping[str, str]
    recipe: str | None
    after: str = "tuned"
    steering: Steering | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def target(self) -> Verdict:
        """What was optimised, or what stands in for it."""
        return self.verdicts[0]

    @property
    def changed(self) -> bool:
        """Whether the adapter does anything at all."""
        return self.change > 0

    @property
    def fallen(self) -> tuple[Verdict, ...]:
        """Held-out rewards that are worse than before, and not by chance: their interval lies below one half."""
        return tuple(verdict for verdict in self.verdicts[1:] if verdict.result == 0 and verdict.wins.high < 0.5)

    @property
    def over_optimised(self) -> bool:
        """The target rose while a held-out reward fell."""
        return self.target.result == 1 and bool(self.fallen)

    @property
    def tuning(self) -> float:
        """Seconds of all rounds in the log."""
        return sum(row.get("seconds", 0.0) for row in self.history)

    @property
    def peak_memory(self) -> int:
        """The largest of all rounds in the log, in bytes; 0 if it was not measured."""
        return max((row.get("peak_memory") or 0 for row in self.history), default=0)

    @cached_property
    def pictures(self) -> list[tuple[Player, list[dict[str, str]]]]:
        """Each prompt's two items, for the page: as pictures, or as audio, spectrogram and waveform.

        The two of audio share one decibel scale.
        """
        return [(player, _pictures({"before": player.before, "after": player.after})) for player in self.players]

    @property
    def seen(self) -> bool:
        """Whether there are items to look at, images or videos, not to listen to."""
        return any(isinstance(player.before, Picture) for player in self.players)

    @property
    def moving(self) -> bool:
        """Whether these are videos."""
        return any(isinstance(player.before, Picture) and player.before.fps is not None for player in self.players)

    @cached_property
    def arms(self) -> list[tuple[Result, list[tuple[str, WinRate | None]]]]:
        """Each way to make items with every reward's number, and its win rate against the untuned model."""
        if self.steering is None:
            return []
        results = self.steering.results
        columns = [
            numbers(*(shown(verdict.after, verdict.distance) for verdict in column))
            for column in zip(*(result.verdicts for result in results), strict=True)
        ]
        return [
            (
                result,
                [
                    (number, None if result.arm.name == UNTUNED else verdict.wins)
                    for number, verdict in zip(row, result.verdicts, strict=True)
                ],
            )
            for result, row in zip(results, zip(*columns, strict=True), strict=True)
        ]

    @cached_property
    def steered_pictures(self) -> list[tuple[str, list[dict[str, str]]]]:
        """The prompt of each player, and its clips by the arms that are not heard above."""
        if self.steering is None:
            return []
        clips = {result.arm.name: result.clips for result in self.steering.shown}
        if not clips:
            return []
        items = sorted({item for found in clips.values() for item in found})
        return [
            (player.prompt, _pictures({name: found[item] for name, found in clips.items()}))
            for item, player in zip(items, self.players, strict=True)
        ]

    @cached_property
    def curve(self) -> str | None:
        """The policy's reward over the rounds of tuning, if there is a log of at least two."""
        rows = [row for row in self.history if isfinite(row.get("reward") or float("nan"))]
        if len(rows) < 2:
            return None
        values = [shown(row["reward"], self.optimised_distance) for row in rows]
        return plots.line_plot([row["round"] for row in rows], values, "curve", "round", size=(7.2, 2.8), rounds=True)

    @cached_property
    def health(self) -> list[tuple[Finding, str | None]]:
        """Every finding, with a small plot over the rounds where there is something to see; dashed is the threshold."""
        return [(finding, _plot(finding)) for finding in self.findings]

    @cached_property
    def implicit(self) -> list[tuple[int, str, list[str]]]:
        """Quantiles of the implicit rewards of D+ and D- in a few rounds, evenly spaced with the first and the last."""
        logged = [(row["round"], row.get("metrics", {})) for row in self.history]
        known = [(number, metrics) for number, metrics in logged if f"beta_a_positive_{QUANTILES[0]}" in metrics]
        chosen = sorted({round(i * (len(known) - 1) / 4) for i in range(5)}) if known else []
        return [
            (number, side, list(numbers(*(metrics[f"beta_a_{name}_{each}"] for each in QUANTILES))))
            for number, metrics in (known[i] for i in chosen)
            for side, name in (("D+", "positive"), (f"D{MINUS}", "negative"))
        ]

    @cached_property
    def panels(self) -> list[tuple[Verdict, str, list[tuple[float, str]]]]:
        """The sweep, a small plot and its numbers for every reward."""
        found = []
        for number, verdict in enumerate(self.verdicts):
            if verdict.name in self.sweep.values and len(self.sweep.scales) > 1:
                values = [shown(value, verdict.distance) for value in self.sweep.values[verdict.name]]
                name = f"sweep{number}"
                plot = plots.line_plot(self.sweep.scales, values, name, "LoRA scale", size=(3.6, 2.3), emphasis=(1.0,))
                found.append((verdict, plot, list(zip(self.sweep.scales, numbers(*values), strict=True))))
        return found

    @cached_property
    def guarded(self) -> list[tuple[str, bool, str, list[tuple[int, str]]]]:
        """Rewards and diversity over the guard's looks, at the first scale that was tried.

        Name, whether it is a distance, a plot and its numbers by round. A dashed line is the worst that is sound, the
        mark on the x axis the round that was handed over.
        """
        if self.looks is None:
            return []
        looks, found = self.looks, []
        rounds = [trial.round for trial in looks.largest]
        for number, (name, distance, read) in enumerate(_columns(looks)):
            values = [shown(read(trial), distance) for trial in looks.largest]
            floor = _floor(looks, name, read(looks.untuned))
            plot = plots.line_plot(
                rounds,
                values,
                f"guard{number}",
                "round",
                size=(3.6, 2.3),
                emphasis=(looks.chosen.round,),
                rounds=True,
                floor=None if floor is None else shown(floor, distance),
            )
            found.append((name, distance, plot, list(zip(rounds, numbers(*values), strict=True))))
        return found

    @cached_property
    def trials(self) -> list[tuple[Trial, list[str]]]:
        """The rows of the guard's table: every model that was tried, with its rewards and diversity as text."""
        if self.looks is None:
            return []
        columns = [
            numbers(*(shown(read(trial), distance) for trial in self.looks.trials))
            for _, distance, read in _columns(self.looks)
        ]
        return [(trial, list(row)) for trial, row in zip(self.looks.trials, zip(*columns, strict=True), strict=True)]


def render(page: Page) -> str:
    """The page as HTML."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    folder = files("dragontune.evaluation")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": percent,
        "svg": Markup,
        "duration": duration,
        "count": "{:,}".format,
        "size": size,
    }
    environment.globals |= {"numbers": numbers, "shown": shown, "change": change, "verb": verb, "relative": relative}
    style, script = (Markup(folder.joinpath(name).read_text("utf-8")) for name in ("page.css", "page.js"))
    template = environment.from_string(folder.joinpath("page.html").read_text("utf-8"))
    rows = [_row(verdict) for verdict in page.verdicts]
    return template.render(page=page, style=style, script=script, script_hash=_hash(script), rewards=rows)


def _hash(script: str) -> str:
    """By which the page's content security policy knows its own script; no other is run."""
    return f"sha256-{b64encode(sha256(script.encode()).digest()).decode()}"


def write(path: Path, text: str) -> None:
    """All of the file or nothing: written beside it, then renamed."""
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.unlink(missing_ok=True)  # a link that lay there would be written through
        beside.write_text(text, "utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def shown(value: float, distance: bool) -> float:
    """A reward as people read it: a distance without its turned sign."""
    return -value if distance else value


def verb(verdict: Verdict) -> str:
    """What the shown number did."""
    if verdict.result == 0.5:
        return "stayed"
    return "rose" if (verdict.result == 1) != verdict.distance else "fell"


def numbers(*values: float) -> tuple[str, ...]:
    """Values to compare, with the same number of decimals: three significant digits of the largest."""
    largest = max((abs(value) for value in values if isfinite(value)), default=0)
    decimals = 2 if largest == 0 else max(0, min(8, 2 - floor(log10(largest))))
    return tuple(f"{value:,.{decimals}f}".replace("-", MINUS) for value in values)


def percent(share: float) -> str:
    """A share in per cent: one decimal where whole numbers would round to 0 or 100."""
    plain = f"{100 * share:.0f}"
    return plain if plain not in ("0", "100") or share in (0, 1) else f"{100 * share:.1f}"


def change(verdict: Verdict) -> str:
    """The relative change of the shown number, with its sign; empty where the start is about 0."""
    return relative(shown(verdict.before, verdict.distance), shown(verdict.after, verdict.distance))


def relative(before: float, after: float) -> str:
    """The change in per cent of `before`, with a sign."""
    if abs(before) < 1e-9:
        return ""
    amount = 100 * (after - before) / abs(before)
    if abs(amount) < 0.05:
        return "0\N{NO-BREAK SPACE}%"
    digits = 1 if abs(amount) < 10 else 0
    return f"{amount:+,.{digits}f}".replace("-", MINUS) + "\N{NO-BREAK SPACE}%"


def duration(seconds: float) -> str:
    """Seconds, or minutes and seconds."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def size(count: float) -> str:
    """Bytes as people read them."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _columns(looks: Looks) -> Iterator[tuple[str, bool, Callable[[Trial], float]]]:
    """What the guard measured: name, whether it is a distance, how to read it."""
    for name, distance in looks.distances.items():
        yield name, distance, lambda trial, name=name: trial.rewards[name]
    yield "diversity", False, lambda trial: trial.diversity


def _floor(looks: Looks, name: str, untuned: float) -> float | None:
    """The lowest value of a column that is sound; the target may have any."""
    if name == "diversity":
        return looks.least_diversity * untuned
    return None if name == "target" else untuned - looks.tolerance * abs(untuned)


def _plot(finding: Finding) -> str | None:
    if len(finding.values) < 2 or not any(finding.values):
        return None
    factor = 100 if finding.share else 1
    values = [factor * value for value in finding.values]
    threshold = factor * finding.threshold
    spread = max(values) - min(values)
    near = min(values) - 2 * spread <= threshold <= max(values) + 2 * spread
    return plots.line_plot(
        finding.rounds,
        values,
        f"health-{finding.key}",
        "round",
        size=(3.6, 1.9),
        rounds=True,
        floor=threshold if near or finding.verdict != "fine" else None,
    )


def _row(verdict: Verdict) -> dict[str, object]:
    """A verdict in words."""
    before, after = numbers(shown(verdict.before, verdict.distance), shown(verdict.after, verdict.distance))
    better = {1: "better", 0.5: "same", 0: "worse"}[verdict.result]
    sure = verdict.wins.low > 0.5 or verdict.wins.high < 0.5
    return {"verdict": verdict, "before": before, "after": after, "better": better, "sure": sure}


def _pictures(items: Mapping[str, Kept]) -> list[dict[str, str]]:
    """What the page shows of each; one decibel scale for all audio."""
    shown = [_picture(name, item) for name, item in items.items() if isinstance(item, Picture)]
    return shown or _players({name: item for name, item in items.items() if isinstance(item, Clip)})


def _picture(name: str, picture: Picture) -> dict[str, str]:
    rows, columns = picture.frames.shape[1:3]
    return {
        "name": name,
        "image": picture_uri(picture),
        "width": str(columns),
        "height": str(rows),
        "length": picture.length,
    }


def _players(clips: Mapping[str, Clip]) -> list[dict[str, str]]:
    levels = {name: plots.log_mel(clip) for name, clip in clips.items()}
    top = max(-60.0, *(float(level.max()) for level in levels.values()))
    return [
        {
            "name": name,
            "audio": plots.audio_uri(clip),
            "spectrogram": plots.spectrogram(levels[name], top),
            "waveform": plots.outline(clip),
            "length": f"{clip.seconds:.1f} s",
        }
        for name, clip in clips.items()
    ]

"""Fine-tune a model towards a reward, write the adapter, and compare it with the model it came from."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from dragontune import launcher
from dragontune.algorithms.base import Algorithm
from dragontune.commands.recipe import START, Recipe, read_prompts
from dragontune.errors import InputError, InterruptedRun, LostService
from dragontune.evaluation.evaluate import evaluate
from dragontune.parallel import by_main, everyone, from_main, is_main
from dragontune.rewards.elsewhere import services
from dragontune.training import files
from dragontune.training.card import Card
from dragontune.training.checkpoint import Record
from dragontune.training.listening import Listening
from dragontune.training.progress import Reporter, Silent, reporter
from dragontune.training.run_folder import RunFolder


def tune(recipe: Recipe, text: str, fixed: str, out: Path, resume: bool, again: str) -> None:
    """Run `recipe` in the folder `out`, or go on with it there.

    `text` is the resolved recipe, `fixed` the part of it that may not change on resuming, `again` the command that
    resumes.

    Raises:
        InputError: the recipe or the folder is wrong; the folder is not touched.
        InterruptedRun: Ctrl-C or SIGTERM, with the state saved.
        LostService: a reward service did not answer; likewise.
    """
    folder, main = RunFolder(out), is_main()
    with folder.held() if main else nullcontext():
        if served := from_main(lambda: services(recipe.reward) | services(recipe.guard, "guard")):
            fixed = json.dumps(json.loads(fixed) | {"services": served}, indent=1, sort_keys=True)
        from_main(lambda: folder.check(fixed, resume))
        if from_main(lambda: folder.finished(text)):
            say(f"There is nothing left to do in {out}.")
            return
        prompts = read_prompts(recipe.prompts)
        _agree("recipe and options", text)
        _agree("prompts", json.dumps(prompts))
        recipe = replace(recipe, plan=replace(recipe.plan, shard=recipe.plan.shard or launcher.sharded()))
        with _begun(recipe, out) as begun:
            algorithm = begun.build()
        recipe.rehearse(algorithm, prompts)
        listening = Listening(algorithm.generator, algorithm.sampler, recipe.listened(prompts), recipe.loop.seed)
        from_main(lambda: _claim(recipe, algorithm, folder, text, fixed))
        try:
            with reporter() if main else Silent() as report:
                history = recipe.loop.run(
                    algorithm,
                    prompts,
                    folder,
                    listening=listening,
                    trackers=recipe.trackers,
                    report=report,
                    watch=recipe.watch(algorithm, report, say),
                    health=recipe.health,
                )
                _warn_if_nothing_differed(recipe, history)
                from_main(lambda: folder.save_adapter(algorithm.generator))
                with nullcontext(folder.report) if main else TemporaryDirectory() as place:
                    finish = partial(_finish, recipe, algorithm, text, folder, history, report, Path(place))
                    by_main(finish, algorithm.generator.sharded)
            from_main(lambda: folder.finish(text))
        except (KeyboardInterrupt, InterruptedRun) as stop:
            what = str(stop) or "interrupted after tuning, while writing the adapter or the report"
            raise InterruptedRun(f"{what}; the state is saved, resume with: {again}") from stop
        except LostService as lost:
            raise LostService(f"{lost}; the state is saved, resume with: {again}") from lost
    say(f"The adapter is in {folder.adapter}.")
    if recipe.evaluation:
        say(f"The report is {folder.report / 'index.html'}.")


def say(sentence: str) -> None:
    """Print it, once for all processes."""
    if is_main():
        print(sentence)


def _agree(what: str, text: str) -> None:
    """InputError unless all processes have read the same: on another machine it may be an older file."""
    digests = everyone(sha256(text.encode()).hexdigest())
    if others := [rank for rank, digest in enumerate(digests) if digest != digests[0]]:
        raise InputError(
            f"expected the same {what} on all machines, got others at process {others[0]}; copy them from the first"
        )


@contextmanager
def _begun(recipe: Recipe, out: Path) -> Iterator[Recipe]:
    """The recipe with the `start` that the run's folder keeps; other nodes, which lack that folder, get a copy."""
    kept = from_main(lambda: {file.name: _content(file) for file in (out / START).glob("*")} if recipe.start else {})
    if not kept or is_main():
        yield recipe.within(out)
        return
    with TemporaryDirectory() as place:
        for name, content in kept.items():
            (Path(place) / name).write_bytes(content.numpy().tobytes())
        yield replace(recipe, start=place)


def _content(file: Path) -> Tensor:
    return torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)


def _claim(recipe: Recipe, algorithm: Algorithm, folder: RunFolder, text: str, fixed: str) -> None:
    """Take the folder, and keep what is begun with in it."""
    folder.claim(text, fixed)
    start = folder.path / START
    if recipe.start and not start.exists():
        files.write_folder(start, lambda inside: algorithm.generator.save_adapter(str(inside)))
        folder.note(fixed)


def _warn_if_nothing_differed(recipe: Recipe, history: list[Record]) -> None:
    """A reward that is the same for everything teaches noise."""
    gaps = [record["metrics"].get(f"reward_{side}") for record in history for side in ("positive", "negative")]
    if history and None not in gaps and len(set(gaps)) == 1:
        warnings.warn(
            f"{recipe.reward.label} was {gaps[0]:g} for every set of every round, so there was nothing to learn; look "
            "at the reward with `dragontune score`",
            stacklevel=1,
        )


def _finish(
    recipe: Recipe,
    algorithm: Algorithm,
    text: str,
    folder: RunFolder,
    history: list[Record],
    report: Reporter,
    place: Path,
) -> None:
    """The model card, and the report if the recipe asks for one, in `place`."""
    card = Card(
        model=recipe.model,
        algorithm=type(algorithm).__name__,
        reward=recipe.reward.label,
        folder=str(folder.path),
        history=history,
        metrics=None,
        health=recipe.health,
    )
    if is_main():
        files.write(folder.path / "README.md", card.text().encode())
    if recipe.evaluation is None:
        return
    metrics = evaluate(
        algorithm.generator,
        recipe.evaluation,
        algorithm.current_reward(),
        algorithm.sampler,
        recipe.loop.seed,
        place,
        history=history,
        progress=report,
        recipe=text,
        looks=recipe.guard and recipe.guard.looks(history, recipe.reward),
        health=recipe.health,
    )
    if is_main():
        files.write(folder.path / "README.md", replace(card, metrics=metrics).text().encode())

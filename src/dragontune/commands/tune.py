"""Fine-tune a model towards a reward, write the adapter, and compare it with the model it came from."""

import warnings
from dataclasses import replace
from pathlib import Path

from dragontune.algorithms.base import Algorithm
from dragontune.commands.recipe import START, Recipe, read_prompts
from dragontune.errors import InterruptedRun
from dragontune.evaluation.evaluate import evaluate
from dragontune.training import files
from dragontune.training.card import Card
from dragontune.training.checkpoint import Record
from dragontune.training.listening import Listening
from dragontune.training.progress import Reporter, reporter
from dragontune.training.run_folder import RunFolder


def tune(recipe: Recipe, text: str, fixed: str, out: Path, resume: bool, again: str) -> None:
    """Run `recipe` in the folder `out`, or go on with it there.

    `text` is the resolved recipe, `fixed` the part of it that may not change on resuming, `again` the command that
    resumes.

    Raises:
        InputError: the recipe or the folder is wrong; the folder is not touched.
        InterruptedRun: Ctrl-C or SIGTERM, with the state saved.
    """
    folder = RunFolder(out)
    with folder.held():
        folder.check(fixed, resume)
        if folder.finished(text):
            print(f"There is nothing left to do in {out}.")
            return
        prompts = read_prompts(recipe.prompts)
        algorithm = recipe.within(out).build()
        recipe.rehearse(algorithm, prompts)
        listening = Listening(algorithm.generator, algorithm.sampler, recipe.listened(prompts), recipe.loop.seed)
        folder.claim(text, fixed)
        if recipe.start and not (out / START).exists():
            files.write_folder(out / START, lambda inside: algorithm.generator.save_adapter(str(inside)))
        try:
            with reporter() as report:
                history = recipe.loop.run(
                    algorithm,
                    prompts,
                    folder,
                    listening=listening,
                    trackers=recipe.trackers,
                    report=report,
                    watch=recipe.watch(algorithm, report, print),
                )
                _warn_if_nothing_differed(recipe, history)
                folder.save_adapter(algorithm.generator)
                _finish(recipe, algorithm, text, folder, history, report)
            folder.finish(text)
        except (KeyboardInterrupt, InterruptedRun) as stop:
            what = str(stop) or "interrupted after tuning, while writing the adapter or the report"
            raise InterruptedRun(f"{what}; the state is saved, resume with: {again}") from stop
    print(f"The adapter is in {folder.adapter}.")
    if recipe.evaluation:
        print(f"The report is {folder.report / 'index.html'}.")


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
    recipe: Recipe, algorithm: Algorithm, text: str, folder: RunFolder, history: list[Record], report: Reporter
) -> None:
    """The model card, and the report if the recipe asks for one."""
    card = Card(
        model=recipe.model,
        algorithm=type(algorithm).__name__,
        reward=recipe.reward.label,
        folder=str(folder.path),
        history=history,
        metrics=None,
    )
    files.write(folder.path / "README.md", card.text().encode())
    if recipe.evaluation is None:
        return
    metrics = evaluate(
        algorithm.generator,
        recipe.evaluation,
        algorithm.current_reward(),
        algorithm.sampler,
        recipe.loop.seed,
        folder.report,
        history=history,
        progress=report,
        recipe=text,
        looks=recipe.guard and recipe.guard.looks(history, recipe.reward),
    )
    files.write(folder.path / "README.md", replace(card, metrics=metrics).text().encode())

"""Compare a tuned model with the model it came from again, on the same or on other prompts."""

from dataclasses import replace
from pathlib import Path

from dragontune.commands.recipe import Recipe
from dragontune.errors import InputError, InterruptedRun
from dragontune.evaluation.evaluate import Evaluation
from dragontune.evaluation.evaluate import evaluate as compare
from dragontune.training import files
from dragontune.training.progress import reporter
from dragontune.training.run_folder import RunFolder


def evaluate(run: Path, recipe: Recipe, prompts: str | None, out: Path | None) -> None:
    """Write `out` (default: the run's report) from the adapter of a finished run.

    Raises:
        InputError: the run is not finished, or nobody says on which prompts.
    """
    folder = RunFolder(run)
    if not folder.adapter.is_dir():
        raise InputError(f"expected a finished run, got {run} without adapter/; finish it with `tune --resume`")
    evaluation = recipe.evaluation or (Evaluation(prompts) if prompts else None)
    if evaluation is None:
        raise InputError(f"expected prompts to compare on, got none in the recipe of {run}; add --prompts FILE")
    if prompts:
        evaluation = replace(evaluation, prompts=prompts)
    target = out or folder.report
    files.make_folder(target)
    algorithm = recipe.build()
    algorithm.generator.load_adapter(str(folder.adapter))
    if (state := folder.checkpoints(recipe.loop.keep).latest()) is not None:
        state.recall(algorithm.memory())
    history = folder.history()
    try:
        with reporter() as report:
            compare(
                algorithm.generator,
                evaluation,
                algorithm.current_reward(),
                algorithm.sampler,
                recipe.loop.seed,
                target,
                history=history,
                progress=report,
                recipe=folder.recipe.read_text(),
                looks=recipe.guard and recipe.guard.looks(history, recipe.reward),
            )
    except KeyboardInterrupt as stop:
        raise InterruptedRun("interrupted; run the same command again") from stop
    print(f"The report is {target / 'index.html'}.")

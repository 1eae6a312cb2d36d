"""Compare a tuned model with the model it came from again, on the same or on other prompts; or steering with both."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dragontune.commands.opening import Opening
from dragontune.commands.recipe import Recipe, read_prompts
from dragontune.commands.steer import RANDOM, Steer
from dragontune.errors import InputError, InterruptedRun
from dragontune.evaluation.arms import LatentDiversity
from dragontune.evaluation.evaluate import Evaluation
from dragontune.evaluation.evaluate import evaluate as compare
from dragontune.sampling import Sampler
from dragontune.training import files, links
from dragontune.training.progress import reporter
from dragontune.training.run_folder import RunFolder


def of_model(
    run: Path | None, model: str | None, steer: Path | None, out: Path | None, seed: int | None, others: Sequence[str]
) -> bool:
    """Whether a model without a run is meant.

    Raises:
        InputError: neither or both are, or an option does not go with it.
    """
    if model is not None and others:
        raise InputError(f"expected no other arguments with --model, got {others[0]}; remove it")
    if (run is None) == (model is None):
        got = "neither" if run is None else f"both {run} and --model {model}"
        raise InputError(f"expected the folder of a run, or --model with --steer, got {got}; name one of them")
    if run is not None:
        if seed is not None:
            raise InputError(f"expected no --seed with a run, got {seed}; its recipe has one: add --loop.seed {seed}")
        return False
    if steer is None:
        raise InputError(
            "expected --steer STEER.yaml with --model, which has nothing else to compare, got none; add it"
        )
    if out is None:
        raise InputError("expected --out DIR with --model, got none; say where the report goes")
    if seed is not None and seed < 0:
        raise InputError(f"expected --seed of 0 or more, got {seed}; choose another")
    return True


def evaluate(run: Path, recipe: Recipe, prompts: str | None, out: Path | None, steer: Steer | None = None) -> None:
    """Write `out` (default: the run's report) from the adapter of a finished run.

    Raises:
        InputError: the run is not finished, or nobody says on which prompts.
    """
    folder = RunFolder(run)
    if not folder.adapter.is_dir():
        raise InputError(f"expected a finished run, got {run} without adapter/; finish it with `tune --resume`")
    evaluation = recipe.evaluation or (steer and steer.evaluation) or (Evaluation(prompts) if prompts else None)
    if evaluation is None:
        raise InputError(f"expected prompts to compare on, got none in the recipe of {run}; add --prompts FILE")
    if prompts:
        evaluation = replace(evaluation, prompts=prompts)
    target = out or folder.report
    links.refuse(target)
    files.make_folder(target)
    algorithm = recipe.within(run).build()
    steered = steer and steer.over(steer.walked(algorithm.sampler))
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
                health=recipe.health,
                steer=steered,
            )
    except KeyboardInterrupt as stop:
        raise InterruptedRun("interrupted; run the same command again") from stop
    print(f"The report is {target / 'index.html'}.")


def evaluate_model(opening: Opening, steer: Steer, text: str, prompts: str | None, out: Path, seed: int) -> None:
    """Write a report on a model as it is, plain and steered, into `out`; `text` is the file of steering.

    Plain items are made by the sampler that is steered. Without an `evaluation` in the file, the target is the reward
    that steers, and the diversity of the latents is held out.

    Raises:
        InputError: nobody says on which prompts, or they are too few.
    """
    evaluation = steer.evaluation or (_evaluation(prompts) if prompts else None)
    if evaluation is None:
        raise InputError("expected prompts to compare on, got none; add --prompts FILE")
    if prompts:
        evaluation = replace(evaluation, prompts=prompts)
    sampler = steer.walked(Sampler(guidance=RANDOM.guidance))
    steered, reward = steer.over(sampler), steer.steering.reward
    asked = evaluation.read()
    evaluation.check(evaluation.named(reward)[1], len(asked))
    steered.check(len(asked))
    links.refuse(out)
    files.make_folder(out)
    if opening.of_tokens():
        raise InputError(
            f"expected a continuous diffusion model in evaluate, got {opening.model}, one of tokens; generate with it"
        )
    generator = opening.load()
    try:
        with reporter() as report:
            compare(generator, evaluation, reward, sampler, seed, out, progress=report, recipe=text, steer=steered)
    except KeyboardInterrupt as stop:
        raise InterruptedRun("interrupted; run the same command again") from stop
    print(f"The report is {out / 'index.html'}.")


def _evaluation(prompts: str) -> Evaluation:
    """On sets of half the prompts, so that a set reward can be compared on subsets."""
    half = len(read_prompts(prompts)) // 2
    plain = Evaluation(prompts, rewards={"diversity": LatentDiversity()})
    return replace(plain, subset=max(2, min(plain.subset, half)))

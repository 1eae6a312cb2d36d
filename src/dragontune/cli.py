"""The command line: which verbs there are, what each may be given, and which exit code it ends with.

Nothing heavy is imported before it is known which verb was asked for, so `--help` answers at once. What can go wrong is
turned into exit codes here: 0 done, 1 a defect, 2 wrong input, 5 not finite, 6 a reward service lost (resumable), 75
interrupted and resumable.
"""

import argparse
import dataclasses
import difflib
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from dragontune import launcher
from dragontune.commands.help import HELP
from dragontune.commands.options import Options, speak_plainly
from dragontune.errors import InputError, InterruptedRun, LostService, NonFiniteError
from dragontune.plain_text import line
from dragontune.training import signals


def main() -> int:
    """The program: a signal that comes after the work is over no longer disturbs its end.

    One of several processes that has failed leaves at once: PyTorch would wait for the others, and they for it.
    """
    try:
        code = run(sys.argv[1:])
    except Exception:
        if launcher.count() == 1:
            raise
        traceback.print_exc()
        code = 1
    signals.seen()
    if code and launcher.count() > 1:
        signals.leave(code)
    if signals.asked():
        signals.leave_by(code)
    return code


def run(arguments: Sequence[str]) -> int:
    """Do what the arguments say and return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("dragontune"))
        return 0
    signals.heard()
    speak_plainly()
    try:
        verb = _verb(arguments[0])
        launcher.check(arguments[0])
        verb(list(arguments[1:]))
    except InputError as error:
        return _interrupted() if signals.asked() else _say(error, 2)
    except NonFiniteError as error:
        return _say(error, 5)
    except LostService as error:
        return _say(error, 6)
    except InterruptedRun as error:
        return _say(error, 75)
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        return 0
    except Exception as error:
        return _storage(error)
    finally:
        signals.rest()
    return 0


def _verb(name: str) -> Callable[[list[str]], None]:
    verbs = {
        "tune": _tune,
        "generate": _generate,
        "score": _score,
        "reference": _reference,
        "fit-aesthetics": _fit_aesthetics,
        "evaluate": _evaluate,
        "doctor": _doctor,
        "serve-reward": _serve_reward,
    }
    if name not in verbs:
        close = difflib.get_close_matches(name, verbs, 1)
        meant = f"did you mean {close[0]}?" if close else "see dragontune --help"
        raise InputError(f"expected a command ({', '.join(verbs)}), got {name}; {meant}")
    return verbs[name]


def _tune(argv: list[str]) -> None:
    options = Options(
        "tune",
        "Fine-tune a model as a recipe says. Any field of the recipe can be overridden, as in --loop.rounds 8; "
        "--print_config shows the recipe as it would be run.",
    )
    options.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    options.add_argument("--out", type=Path, metavar="RUN", help="the run's folder (default: runs/<recipe name>)")
    options.add_argument("--resume", action="store_true", help="go on with the run in that folder, or start it")
    from dragontune.training.processes import joined

    with joined():
        _tune_together(*options.parse_known_args(argv))


def _tune_together(given: argparse.Namespace, overrides: list[str]) -> None:
    from dragontune.commands import parsing

    recipe, text, fixed = parsing.read_recipe(given.recipe, overrides)
    out = given.out or Path("runs") / given.recipe.stem
    again = shlex.join(["dragontune", "tune", str(given.recipe), "--out", str(out), "--resume", *overrides])
    from dragontune.commands.tune import tune

    tune(recipe, text, fixed, out, given.resume, again)


def _doctor(argv: list[str]) -> None:
    options = Options("doctor", "Check everything a recipe needs, estimate memory and time, run nothing.")
    options.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    options.add_argument("--out", type=Path, metavar="RUN", help="the run's folder (default: runs/<recipe name>)")
    options.add_argument("--memory", type=float, metavar="GIB", help="must be enough (default: what the device has)")
    given, overrides = options.parse_known_args(argv)
    from dragontune.commands import parsing

    recipe, _, _ = parsing.read_recipe(given.recipe, overrides)
    from dragontune.commands.doctor import doctor

    doctor(recipe, given.out or Path("runs") / given.recipe.stem, given.memory)


def _evaluate(argv: list[str]) -> None:
    options = Options(
        "evaluate", "Compare a run's tuned model with the untuned one, on the same noise, and steering with both."
    )
    options.add_argument("run", type=Path, metavar="RUN", nargs="?")
    options.add_argument("--prompts", metavar="FILE", help="one prompt a line (default: the recipe's)")
    options.add_argument("--out", type=Path, metavar="DIR", help="where the report goes (default: RUN/report)")
    options.add_argument("--steer", type=Path, metavar="STEER.yaml", help="steer the untuned model, at equal cost")
    options.add_argument("--model", help="steer this model, which is not tuned, in place of a run")
    options.add_argument("--seed", type=int, metavar="N", help="with --model (default: 0; of a run: the recipe's)")
    from dragontune.commands import opening

    if options.parse_known_args(argv)[0].model is not None:
        opening.add_options(options)
    given, overrides = options.parse_known_args(argv)
    from dragontune.commands import evaluate, parsing

    named = evaluate.of_model(given.run, given.model, given.steer, given.out, given.seed, overrides)
    steer = parsing.read_steer(given.steer)[0] if given.steer else None
    if named and steer:
        text = given.steer.read_text("utf-8")
        opened = opening.from_options(given, given.model, [])
        return evaluate.evaluate_model(opened, steer, text, given.prompts, given.out, given.seed or 0)
    if not (given.run / "recipe.yaml").is_file():
        raise InputError(f"expected the folder of a run, got {given.run} without recipe.yaml in it; check the path")
    recipe, _, _ = parsing.read_recipe(given.run / "recipe.yaml", overrides)
    return evaluate.evaluate(given.run, recipe, given.prompts, given.out, steer)


def _generate(argv: list[str]) -> None:
    options = Options("generate", "Make clips from prompts.")
    options.add_argument("--model", help="tiny-music, tiny-tokens, a folder or a hub name (default: the adapter's)")
    texts = options.add_mutually_exclusive_group(required=True)
    texts.add_argument("--prompt", metavar="TEXT")
    texts.add_argument("--prompts", metavar="FILE", help="one prompt a line")
    options.add_argument("--out", type=Path, metavar="DIR", required=True)
    folders = "runs' folders or adapters in peft's format, each with a weight after a colon (default: 1), to add up"
    options.add_argument("--adapter", nargs="+", action="extend", default=[], metavar="RUN[:WEIGHT]", help=folders)
    options.add_argument("--scale", type=float, default=1.0, metavar="GAMMA", help="of the adapters (1: as tuned)")
    options.add_argument("--steer", type=Path, metavar="STEER.yaml", help="choose by a reward what is made")
    options.add_argument("--count", type=int, default=1, metavar="N", help="clips of each prompt (default: 1)")
    options.add_argument("--seed", type=int, default=0, metavar="N")
    options.add_argument("--steps", type=int, metavar="N", help="of the sampler (default: STEER's, the run's or 40)")
    options.add_argument("--guidance", type=float, metavar="W", help="(default: STEER's, the run's or 2)")
    from dragontune.commands import opening

    opening.add_options(options)
    given = options.parse_args(argv)
    from dragontune.commands import parsing
    from dragontune.commands.generate import Adapter, Request, first_sampler, fitting, generate, origin
    from dragontune.commands.recipe import read_prompts
    from dragontune.sampling import Sampler

    adapters = tuple(Adapter.read(text) for text in given.adapter)
    model, runs = origin(given.model, adapters)
    wanted = {name: value for name in ("steps", "guidance") if (value := getattr(given, name)) is not None}
    samplers = [(adapter, dataclasses.replace(parsing.sampler(settings), **wanted)) for adapter, settings in runs]
    sampler = first_sampler(samplers) or dataclasses.replace(Sampler(guidance=2.0), **wanted)
    prompts = [given.prompt] if given.prompt is not None else read_prompts(given.prompts)
    steer, said = parsing.read_steer(given.steer) if given.steer else (None, None)
    sampler = dataclasses.replace(steer.walked(sampler), **wanted) if steer else sampler
    opened = opening.from_options(given, model, [settings for _, settings in runs])
    process = fitting(opened, sampler)
    steered = steer and steer.over(process)
    request = Request(opened, tuple(prompts), adapters, given.scale, given.seed, process, given.count, steered, said)
    generate(request, given.out)


def _score(argv: list[str]) -> None:
    options = Options("score", "Print what a reward says of a folder of audio files.")
    options.add_argument("folder", type=Path, metavar="MEDIA_DIR")
    reward_help = "a reward, a recipe, or a function or class of yours: my_rewards.py:brightness"
    options.add_argument("--reward", required=True, metavar="REWARD", help=reward_help)
    options.add_argument(
        "--prompts",
        metavar="FILE",
        help="a .csv of file and prompt, or one line a file (default: the folder's prompts.csv, or a .txt a clip)",
    )
    options.add_argument("--json", action="store_true", help="print JSON")
    from dragontune.commands import caching

    caching.add_options(options)
    given = options.parse_args(argv)
    from dragontune.commands import parsing
    from dragontune.commands.score import score

    reward = parsing.reward(given.reward)
    with caching.opened(given) as cache:
        score(given.folder, reward, given.prompts, given.json, cache, given.workers)


def _reference(argv: list[str]) -> None:
    options = Options(
        "reference", "Store the statistics of exemplars: a folder of audio, a playlist, or captions, one a line."
    )
    options.add_argument("exemplars", metavar="MEDIA_DIR | SONGS.m3u | CAPTIONS.txt")
    options.add_argument(
        "--encoder", required=True, metavar="NAME", help="tiny-clap, latents, log-mel, a class, clap:FOLDER or a .yaml"
    )
    options.add_argument("--out", type=Path, required=True, metavar="REF.safetensors")
    batch = "files of one length that are embedded together: faster, exact to single precision (default: 1)"
    options.add_argument("--batch", type=int, default=1, metavar="N", help=batch)
    from dragontune.commands import caching

    caching.add_options(options)
    given = options.parse_args(argv)
    from dragontune.commands import parsing
    from dragontune.commands.reference import reference

    encoder = parsing.encoder(given.encoder)
    with caching.opened(given) as cache:
        reference(given.exemplars, encoder, given.out, cache, given.workers, given.batch)


def _fit_aesthetics(argv: list[str]) -> None:
    options = Options("fit-aesthetics", "Fit the head of an aesthetics reward to ratings of audio files.")
    options.add_argument("ratings", metavar="RATINGS.csv", help="columns file, rating, rater, prompt")
    options.add_argument(
        "--encoder", required=True, metavar="NAME", help="log-mel, tiny-clap, latents, a class, clap:FOLDER or a .yaml"
    )
    options.add_argument("--out", type=Path, required=True, metavar="HEAD.safetensors")
    options.add_argument("--head", choices=("ridge", "nadaraya-watson"), default="ridge", help="(default: ridge)")
    options.add_argument(
        "--pooling", choices=("mean", "mean-std"), help="of frames (default: the better on validation)"
    )
    options.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the split into known and held-out prompts"
    )
    options.add_argument("--json", action="store_true", help="print JSON")
    given = options.parse_args(argv)
    from dragontune.commands import parsing
    from dragontune.commands.fit_aesthetics import fit_aesthetics

    encoder = parsing.encoder(given.encoder)
    fit_aesthetics(given.ratings, encoder, given.out, given.head, given.pooling, given.seed, given.json)


def _serve_reward(argv: list[str]) -> None:
    options = Options("serve-reward", "Serve a reward over HTTP, for RemoteReward and RemoteSetReward.")
    options.add_argument("reward", metavar="REWARD.yaml", help="a reward, a recipe, or my_rewards.py:brightness")
    options.add_argument("--host", default="127.0.0.1", help="(default: 127.0.0.1; any other needs a token)")
    options.add_argument("--port", type=int, default=8750, help="(default: 8750; 0: any that is free)")
    options.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    token = "the environment variable that holds the token that clients must show"
    options.add_argument("--token-variable", default="", metavar="NAME", help=token)
    options.add_argument("--max-mib", type=int, default=256, metavar="N", help="of a request (default: 256)")
    options.add_argument("--journal", type=Path, metavar="FILE", help="a line of JSON for every request computed")
    given = options.parse_args(argv)
    from dragontune.commands.serve_reward import serve_reward

    serve_reward(
        given.reward, given.host, given.port, given.workers, given.token_variable, given.max_mib, given.journal
    )


def _storage(error: Exception) -> int:
    """A full or read-only disk is the user's to mend; anything else is a defect and keeps its traceback."""
    from dragontune.training.files import storage_trouble

    if (sentence := storage_trouble(error)) is not None:
        return _say(sentence, 2)
    if signals.asked():
        return _interrupted()
    raise error


def _interrupted() -> int:
    """Also where the interruption turned into another error on its way, which does not matter any more."""
    signals.seen()
    return _say("interrupted; run the same command again (tune: with --resume)", 75)


def _say(message: object, code: int) -> int:
    if launcher.first():
        print(f"dragontune: {line(str(message))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

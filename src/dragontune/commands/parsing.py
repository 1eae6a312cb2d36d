"""What is typed becomes objects: recipes, rewards, encoders and samplers from YAML and from the command line.

The only file that knows jsonargparse.
"""

import argparse
import dataclasses
import importlib
import json
import pkgutil
import pydoc
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
import yaml

from dragontune.commands import shorthand
from dragontune.commands.mistakes import read_yaml, sentence
from dragontune.commands.recipe import Recipe, check_fit
from dragontune.commands.steer import Steer, decisive
from dragontune.embedded import locate
from dragontune.encoders.base import Encoder
from dragontune.errors import InputError
from dragontune.rewards.base import Reward
from dragontune.sampling import Sampler

T = TypeVar("T")

FREE = ("evaluation", "trackers", "plan", "health")
FREE_IN_LOOP = ("rounds", "micro_batch", "checkpoint_every", "keep", "sample_every", "sample_count")
"""What may change between the parts of one run without changing its course."""
NOTHING = {"seconds": None, "height": None, "width": None, "frames": None, "fps": None}
NEWER = {"guard": None, "precision": "float32", "start": None, "size": NOTHING, "family": None, "allow_pickle": False}
"""Fields with the defaults that they have in runs which were started before there were such fields."""
NEWER_IN_ALGORITHM = {"bad_items": "stop", "most_bad_items": 0.1}
"""The same of an algorithm's."""
ELSEWHERE = ("RemoteReward", "RemoteSetReward", "RayReward", "RaySetReward")
FREE_ELSEWHERE = (
    *("addresses", "token_variable", "connect", "timeout", "retries", "backoff", "longest_wait", "rest", "deadline"),
    *("concurrency", "actors", "cpus", "gpus", "address"),
)
"""The way to a reward elsewhere, which may change with its machine; that it is the same one its digest says."""


def encoder(name: str) -> Encoder:
    """By its name, the name and a checkpoint (`clap:FOLDER`), a file of its arguments, or these themselves."""
    import_parts()
    named = read_yaml(locate(name)) if name.endswith((".yaml", ".yml")) else shorthand.encoder(name)
    return make(Encoder, "encoder", named)


def reward(name: str) -> Reward:
    """A reward's own YAML, a recipe's, or a function or class of the user's."""
    import_parts()
    full = settings = shorthand.reward(name, Path())
    if settings == name:
        settings = read_yaml(Path(name))
        full = shorthand.reward(settings.get("reward", settings), Path(name).parent)
    return make(Reward, "reward", full)


def read_recipe(path: Path, overrides: list[str]) -> tuple[Recipe, str, str]:
    """The recipe, its resolved text, and the part of it that may not change when a run is resumed (as JSON)."""
    import_parts()
    settings = read_yaml(path)
    full = shorthand.expanded(settings, path.parent)
    config = str(path) if full == settings else yaml.safe_dump(full, sort_keys=False)
    overrides = shorthand.overrides(overrides, path.parent)

    parser = _parser()
    parser.add_argument("--config", action="config", help=argparse.SUPPRESS)
    parser.add_class_arguments(Recipe)
    settings = _parse(lambda: parser.parse_args(["--config", config, *overrides]))
    made = _parse(lambda: parser.instantiate(settings))
    check_fit(pydoc.locate(settings["algorithm"]["class_path"]), made["reward"])
    recipe = Recipe(**{field.name: made[field.name] for field in dataclasses.fields(Recipe)})
    fixed = yaml.safe_load(parser.dump(settings))
    for name in FREE:
        fixed.pop(name, None)
    for name, default in NEWER.items():
        if fixed.get(name) == default:
            fixed.pop(name, None)
    for name in FREE_IN_LOOP:
        fixed["loop"].pop(name, None)
    arguments = fixed["algorithm"].get("init_args", {})
    for name, default in NEWER_IN_ALGORITHM.items():
        if arguments.get(name) == default:
            arguments.pop(name)
    return recipe, parser.dump(settings), json.dumps(_without_ways(fixed), indent=1, sort_keys=True)


def _without_ways(value: Any) -> Any:  # noqa: ANN401 - a part of a recipe
    """The same without `FREE_ELSEWHERE`."""
    match value:
        case {"class_path": str(kind), "init_args": dict(given)} if _elsewhere(kind):
            kept = {name: _without_ways(member) for name, member in given.items() if name not in FREE_ELSEWHERE}
            return {**value, "init_args": kept}
        case dict():
            return {name: _without_ways(member) for name, member in value.items()}
        case list():
            return [_without_ways(member) for member in value]
        case _:
            return value


def _elsewhere(kind: str) -> bool:
    return kind.startswith("dragontune.") and kind.rpartition(".")[2] in ELSEWHERE


def read_steer(path: Path) -> tuple[Steer, dict[str, Any]]:
    """How to steer, and the part of it that decides what is made."""
    import_parts()
    parser, full = _parser(), shorthand.expanded(read_yaml(path), path.parent)
    parser.add_class_arguments(Steer)
    settings = _parse(lambda: parser.parse_object(full), str(path))
    made = _parse(lambda: parser.instantiate(settings), str(path))
    steer = Steer(**{field.name: made[field.name] for field in dataclasses.fields(Steer)})
    return steer, decisive(steer, yaml.safe_load(parser.dump(settings)))


def sampler(settings: dict[str, Any]) -> Sampler:
    """The sampler of a recipe's algorithm."""
    import_parts()
    parser = _parser()
    parser.add_class_arguments(Sampler, "sampler")
    match settings:
        case {"algorithm": {"init_args": {"sampler": values}}}:
            pass
        case _:
            values = {}
    return _parse(lambda: parser.instantiate(parser.parse_object({"sampler": values})))["sampler"]


def make(kind: type[T], name: str, settings: dict[str, Any]) -> T:
    """An object of an abstract class, from the name of a concrete one and its arguments."""
    parser = _parser()
    parser.add_argument(f"--{name}", type=kind, required=True)
    return _parse(lambda: parser.instantiate(parser.parse_object({name: settings})))[name]


def _parser() -> jsonargparse.ArgumentParser:
    def dump(settings: dict[str, Any]) -> str:
        return yaml.safe_dump(shorthand.restored(settings), sort_keys=False, allow_unicode=True)

    jsonargparse.set_loader("recipe", jsonargparse.get_loader("yaml"), (yaml.YAMLError,))
    jsonargparse.set_dumper("recipe", dump)
    jsonargparse.set_parsing_settings(subclasses_disabled=[Sampler])  # it is written as its fields
    return jsonargparse.ArgumentParser(prog="dragontune", exit_on_error=False, parser_mode="recipe", allow_abbrev=False)


def _parse(parse: Callable[[], T], whole: str = "the recipe") -> T:
    """Whatever the parser or a constructor finds wrong as one sentence."""
    try:
        return parse()
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, InputError):
                raise cause from None
            cause = cause.__cause__
        raise InputError(sentence(" ".join(str(error).split()), whole)) from error


def import_parts() -> None:
    """Import everything that a recipe may name by its short class name."""
    for package in ("dragontune.rewards", "dragontune.encoders", "dragontune.algorithms", "dragontune.steering"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            importlib.import_module(module.name)
    importlib.import_module("dragontune.losses")

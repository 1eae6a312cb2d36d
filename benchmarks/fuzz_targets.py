"""What `fuzz.py` tries: every door through which what others wrote comes in, and inputs that look like the real ones.

A target makes a function of (draw) that builds one input and reads it; it returns what the reader returned. Readers
that promise another error than `InputError` say so in `also`.
"""

import asyncio
import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml
from fuzz_inputs import CHANGES, WORDS, Draw, header, mutated, recipes, text_like, tree
from fuzz_weights import adapter, checkpoints, heads, model, references, settings, tensors
from hypothesis import strategies as st
from PIL import Image

from dragontune import cli, wire
from dragontune.commands import media, parsing, ratings, yaml_files
from dragontune.commands.recipe import check_prompt, read_prompts
from dragontune.data import Samples
from dragontune.errors import InputError
from dragontune.evaluation.evaluate import asked
from dragontune.media import audio, image, kinds, video
from dragontune.media.audio import Audio
from dragontune.plain_text import cell, line, markdown, uncell
from dragontune.rewards.link import KIND, digest_field
from dragontune.rewards.served import Work
from dragontune.rewards.signal import KeyStrength
from dragontune.service.app import Limits, create
from dragontune.training.listening import file_name


@dataclass(frozen=True)
class Target:
    """A door: how many of all inputs it gets, how to make what tries one, and which other errors it promises."""

    share: int
    start: Callable[[Path], Callable[[Draw], object]]
    also: tuple[type[BaseException], ...] = ()


def yaml_text(scratch: Path) -> Callable[[Draw], object]:
    """Recipes as text, and bombs."""
    bombs = [
        "a: &a [x, x]\n"
        + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True)),
        "[" * 3000,
        "a: &a [*a]",
        "? " * 500,
        "a: 1\na: 2",
        "{" * 400,
    ]
    texts = text_like(recipes() + bombs)
    return lambda draw: yaml_files.load(draw(texts), "the recipe")


def recipe(scratch: Path) -> Callable[[Draw], object]:
    """Recipes with fields replaced, up to the constructors of a run; models are not loaded."""
    path = scratch / "recipe.yaml"
    parsing.import_parts()

    def once(draw: Draw) -> object:
        if draw(st.booleans()):
            path.write_text(yaml.safe_dump(tree(draw, yaml.safe_load(draw(st.sampled_from(recipes()))))))
        else:
            path.write_bytes(draw(text_like(recipes())))
        return parsing.read_recipe(path, [])

    return once


def prompts(scratch: Path) -> Callable[[Draw], object]:
    """Files of prompts, and prompts as names of files, cells and lines."""
    path, texts = scratch / "prompts.txt", text_like(["a reel for flute\na slow air\n", "x\n" * 50])

    def once(draw: Draw) -> object:
        path.write_bytes(draw(texts))
        word = draw(st.one_of(st.sampled_from(WORDS), st.text(max_size=80)))
        name = file_name(3, word)
        assert (scratch / name).parent == scratch
        assert len(name) < 80
        assert name.isascii()
        assert uncell(cell(word)) == word
        assert line(word).isprintable()
        assert "\n" not in markdown(word)
        with contextlib.suppress(InputError):
            check_prompt(word)
        with contextlib.suppress(InputError):
            asked(str(path), 5)
        return read_prompts(str(path))

    return once


def tables(scratch: Path) -> Callable[[Draw], object]:
    """prompts.csv beside clips, and tables of ratings."""
    soundfile.write(scratch / "a.wav", np.zeros(8), 8000)
    rows = "file,prompt\na.wav,a reel\n../x.wav,=1+1\n"
    rated = "file,rating,rater,prompt\n" + "".join(f"{i}.wav,{i % 5},r{i % 3},p{i % 4}\n" for i in range(12))

    def once(draw: Draw) -> object:
        (scratch / "prompts.csv").write_bytes(draw(text_like([rows])))
        (scratch / "ratings.csv").write_bytes(draw(text_like([rated])))
        with contextlib.suppress(InputError):
            media.items(scratch, None)
        return ratings.read(scratch / "ratings.csv")

    return once


def playlists(scratch: Path) -> Callable[[Draw], object]:
    """What .m3u files name."""
    path = scratch / "songs.m3u"
    soundfile.write(scratch / "a.wav", np.zeros(8), 8000)

    def once(draw: Draw) -> object:
        path.write_bytes(draw(text_like(["#EXTM3U\na.wav\nb.flac\n", "/etc/passwd\n../../x.png\n"])))
        kind, files = kinds.one_kind(audio.playlist(path), path)
        return [kind.read(file) for file in files[:3]]

    return once


def sounds(scratch: Path) -> Callable[[Draw], object]:
    """Headers and bodies of audio files."""
    wave = 0.3 * np.sin(np.arange(4000)[:, None] / (7, 9))
    kinds_of = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III", "aiff": "PCM_16"}
    made = []
    for kind, subtype in kinds_of.items():
        file = io.BytesIO()
        soundfile.write(file, wave, 16000, subtype, format=kind.upper())
        made.append((kind, file.getvalue()))

    def once(draw: Draw) -> object:
        kind, content = draw(st.sampled_from(made))
        path = scratch / f"clip.{kind}"
        path.write_bytes(mutated(content, draw(CHANGES), 128))
        return audio.read(path)

    return once


def pictures(scratch: Path) -> Callable[[Draw], object]:
    """Images and animations."""
    frames = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (12, 16, 3), np.uint8)) for i in range(3)]
    made = []
    for suffix in ("png", "jpeg", "webp", "gif"):
        file = io.BytesIO()
        frames[0].save(file, suffix)
        made.append((suffix, file.getvalue()))
    for suffix in ("png", "webp", "gif"):
        file = io.BytesIO()
        frames[0].save(file, suffix, save_all=True, append_images=frames[1:], duration=40)
        made.append((suffix, file.getvalue()))

    def once(draw: Draw) -> object:
        suffix, content = draw(st.sampled_from(made))
        path = scratch / f"picture.{suffix}"
        path.write_bytes(mutated(content, draw(CHANGES), 96))
        image.animated(path)
        if suffix in ("webp", "gif", "png"):
            with contextlib.suppress(InputError):
                video.read(path)
        return image.Images.read(path)

    return once


def bodies(scratch: Path) -> Callable[[Draw], object]:
    """Messages of a reward service, and records in them."""
    clip = Samples(("a",), torch.zeros(1, 2), Audio(torch.zeros(1, 1, 8), 8000))
    parts: dict[str, torch.Tensor] = {}
    spec = wire.pack(clip, "x", parts)
    content = wire.Message({"samples": spec, "n": 1}, parts).dump()

    def once(draw: Draw) -> object:
        if draw(st.booleans()):
            return wire.unpack(tree(draw, spec), parts)
        message = wire.Message.load(header(draw, content))
        return wire.unpack(message.get("samples", dict), message.tensors)

    return once


def service(scratch: Path) -> Callable[[Draw], object]:
    """Requests to a reward service, in process: whatever comes, an HTTP status other than 500 is the answer."""
    work = Work(KeyStrength())
    app = create(work, "secret", Limits(bytes=1 << 20))
    parts: dict[str, torch.Tensor] = {}
    said = {
        "latents": wire.pack(torch.zeros(2, 1), "latents", parts),
        "media": wire.pack(Audio(torch.zeros(2, 1, 16000), 16000), "media", parts),
    }
    said |= {"version": wire.VERSION, "reward": work.digest, "key": "k", "prompts": ["a", "b"], "ids": ["1", "2"]}
    methods = st.sampled_from(["POST"] * 6 + ["GET", "PUT"])
    paths = ["/v1/encode"] * 4 + ["/v1/score", "/v1/swaps", "/v1/info", "/metrics", "/../x", "/v1/\x00"]

    def once(draw: Draw) -> object:
        changed = tree(draw, said) if draw(st.booleans()) else said
        try:
            body = wire.Message(changed, parts).dump()
        except ValueError:  # what is no JSON
            body = b""
        body = header(draw, body) if body and draw(st.booleans()) else body
        digest = digest_field(body if draw(st.integers(0, 9)) else b"")
        token = draw(st.sampled_from([b"Bearer secret"] * 9 + [b"", b"Bearer \xff", b"Basic x"]))
        length = draw(st.sampled_from([str(len(body))] * 6 + ["-1", "9" * 400, "x", str(1 << 40)]))
        fields = [("content-type", KIND), ("content-digest", digest), ("content-length", length)]
        sent = [(b"authorization", token), *((name.encode(), value.encode()) for name, value in fields)]
        status = asyncio.run(ask(app, draw(methods), draw(st.sampled_from(paths)), sent, body))
        assert status != 500, f"status {status}"
        assert token == b"Bearer secret" or status == 401, f"status {status} without the token"
        return status

    return once


async def ask(app: Any, method: str, path: str, extra: list[tuple[bytes, bytes]], body: bytes) -> int:
    """The status of one request to an ASGI application."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "scheme": "http",
        "raw_path": path.encode("utf-8", "replace"),
        "query_string": b"",
        "headers": extra,
        "client": ("t", 1),
        "server": ("t", 2),
    }
    answers: list[dict[str, Any]] = []
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return parts.pop() if parts else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        answers.append(message)

    await app(scope, receive, send)
    return answers[0]["status"]


def command_line(scratch: Path) -> Callable[[Draw], object]:
    """Whole verbs: the exit code is 0, 2 or 5, and what is said of a failure is one line."""
    folder = scratch / "clips"
    folder.mkdir(exist_ok=True)
    parsing.import_parts()
    once_sound = sounds(folder)
    path, steer = scratch / "recipe.yaml", scratch / "steer.yaml"
    reward = scratch / "reward.yaml"

    def once(draw: Draw) -> object:
        (scratch / "prompts.txt").write_bytes(draw(text_like(["a reel\na slow air\n"])))
        for file in (path, steer, reward):
            file.write_bytes(draw(text_like(recipes())))
        with contextlib.suppress(InputError):
            once_sound(draw)
        word = draw(st.sampled_from(WORDS))
        out = str(scratch / "out")
        verb = draw(
            st.sampled_from(
                [
                    ["doctor", str(path)],
                    ["tune", str(path), "--out", out, "--print_config"],
                    ["score", str(folder), "--reward", str(reward)],
                    ["score", word, "--reward", word],
                    ["reference", str(folder), "--encoder", word, "--out", str(scratch / "x.safetensors")],
                    ["generate", "--model", word, "--prompt", word, "--out", out],
                    ["generate", "--adapter", str(scratch), "--prompts", str(scratch / "prompts.txt"), "--out", out],
                    ["evaluate", str(scratch), "--steer", str(steer)],
                    ["fit-aesthetics", str(scratch / "prompts.txt"), "--encoder", "log-mel", "--out", out],
                    [word, word],
                ]
            )
        )
        said, printed = io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
            try:
                code = cli.run(verb)
            except SystemExit as stop:  # help and --print_config
                code = stop.code or 0
        lines = [each for each in said.getvalue().splitlines() if not each.startswith("dragontune: warning:")]
        assert code in (0, 2, 5), f"exit code {code} of {verb}"
        assert not code or (len([each for each in lines if each.startswith("dragontune: ")]) == 1), lines[-3:]
        return code

    return once


TARGETS: dict[str, Target] = {
    "yaml": Target(9000, yaml_text),
    "recipes": Target(1200, recipe),
    "prompts": Target(6000, prompts),
    "tables": Target(5000, tables),
    "playlists": Target(4000, playlists),
    "audio": Target(7000, sounds),
    "pictures": Target(5000, pictures),
    "safetensors": Target(5000, tensors, (ValueError,)),
    "references": Target(2000, references),
    "heads": Target(1500, heads),
    "checkpoints": Target(2000, checkpoints),
    "adapters": Target(1000, adapter),
    "settings": Target(4000, settings, (ValueError,)),
    "models": Target(100, model),
    "bodies": Target(5000, bodies, (wire.WireError,)),
    "service": Target(1500, service),
    "commands": Target(300, command_line),
}

"""What `fuzz.py` tries: every door through which what others wrote comes in, and inputs that look like the real ones.

A target makes a function of (draw) that builds one input and reads it; it returns what the reader returned. Readers
that promise another error than `InputError` say so in `also`.
"""

import asyncio
import contextlib
import io
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from torch import nn

from dragontune import cli, json_files, tensor_files, wire
from dragontune.commands import media, parsing, ratings, yaml_files
from dragontune.commands.recipe import check_prompt, read_prompts
from dragontune.data import Samples
from dragontune.encoders.log_mel import LogMel
from dragontune.errors import InputError
from dragontune.evaluation.evaluate import asked
from dragontune.generators import adapter_settings, adapters, pretrained
from dragontune.media import audio, image, kinds, video
from dragontune.media.audio import Audio
from dragontune.plain_text import cell, line, markdown, uncell
from dragontune.reference import Reference
from dragontune.rewards.aesthetics import SHIPPED, Head
from dragontune.rewards.link import KIND, digest_field
from dragontune.rewards.served import Work
from dragontune.rewards.signal import KeyStrength
from dragontune.service.app import Limits, create
from dragontune.training.checkpoint import Checkpoints, TrainingState
from dragontune.training.listening import file_name

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "src" / "dragontune" / "assets"
WORDS = [
    "=cmd|' /C calc'!A0",
    "../../etc/passwd",
    "/etc/passwd",
    "C:\\con",
    "nul",
    "\x00",
    "\x1b[2J",
    "\ud800",
    "\u202e",
    "<script>",
    "{{7*7}}",
    "%s%n",
    "!!python/object/apply:os.system [id]",
    "a\r\nb",
    "🎵" * 9,
    "x" * 5000,
    "",
    " ",
    "[/b]",
]
NUMBERS = [0, 1, -1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, 0x7F, 0x80, 0xFF, 0xFFFF]
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**40,
    10**30,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "x",
    "1e999",
    ".inf",
    [],
    {},
    [1],
    {"a": 1},
    "../x",
    "!!binary x",
    "tiny-music",
    "builtins.exec",
    "os.system",
]
Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass(frozen=True)
class Target:
    """A door: how many of all inputs it gets, how to make what tries one, and which other errors it promises."""

    share: int
    start: Callable[[Path], Callable[[Draw], object]]
    also: tuple[type[BaseException], ...] = ()


CHANGES = st.lists(
    st.tuples(st.integers(0, 7), st.integers(0, 2**20), st.sampled_from(NUMBERS), st.integers(1, 8)),
    min_size=1,
    max_size=8,
)


def mutated(content: bytes, changes: list[tuple[int, int, int, int]], head: int = 0) -> bytes:
    """Bytes with something flipped, cut, doubled or overwritten, three times in four within the first `head`."""
    data = bytearray(content)
    for kind, place, number, width in changes:
        room = min(len(data), head) if head and place % 4 else len(data)
        at = (place // 4) % (room + 1)
        match kind:
            case 0 | 1:
                data[at : at + width] = (number % 2 ** (8 * width)).to_bytes(width, "little" if kind else "big")
            case 2:
                data[at : at + 1] = bytes([number & 0xFF])
            case 3:
                del data[at : at + width]
            case 4:
                del data[at:]
            case 5:
                data[at:at] = data[at : at + 16 * width]
            case 6:
                data[at:at] = bytes([number & 0xFF]) * width**3
            case _:
                data[at : at + 1] = bytes([data[at] ^ (1 << width % 8)]) if at < len(data) else b""
    return bytes(data)


def text_like(samples: list[str]) -> st.SearchStrategy[bytes]:
    """Texts that are nearly one of these."""
    words = st.sampled_from(WORDS).map(lambda word: word.encode("utf-8", "surrogatepass"))
    changed = st.builds(mutated, st.sampled_from([text.encode() for text in samples]), CHANGES)
    spliced = st.builds(
        lambda text, word, at: text[: at % (len(text) + 1)] + word + text[at % (len(text) + 1) :],
        changed,
        words,
        st.integers(0, 10**6),
    )
    return st.one_of(changed, spliced, st.lists(words, max_size=6).map(b"\n".join), st.binary(max_size=200))


def tree(draw: Draw, value: Any) -> Any:
    """JSON with one of its values replaced, removed, doubled, nested or renamed."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        spot, steps = value, draw(st.integers(0, 5))
        for _ in range(steps):
            members = list(spot.values()) if isinstance(spot, dict) else spot
            inside = [member for member in members if isinstance(member, dict | list) and member]
            if not inside:
                break
            spot = inside[draw(st.integers(0, 10**6)) % len(inside)]
        if not spot:
            continue
        key = list(spot)[draw(st.integers(0, 10**6)) % len(spot)] if isinstance(spot, dict) else 0
        match draw(st.integers(0, 4)):
            case 0 | 1:
                spot[key] = draw(st.sampled_from(VALUES + WORDS[:12]))
            case 2:
                del spot[key]
            case 3 if isinstance(spot, dict):
                spot[draw(st.sampled_from(WORDS))] = spot[key]
            case _:
                spot[key] = [spot[key]] * draw(st.sampled_from([1, 2, 30]))
    return value


@cache
def recipes() -> list[str]:
    """The text of every recipe that ships."""
    return [path.read_text() for path in sorted((ROOT / "recipes").rglob("*.yaml"))]


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


def header(draw: Draw, content: bytes) -> bytes:
    """A safetensors file whose header was changed as JSON, or whose bytes were."""
    if draw(st.booleans()):
        return mutated(content, draw(CHANGES), 200)
    (length,) = struct.unpack("<Q", content[:8])
    said = json.dumps(tree(draw, json.loads(content[8 : 8 + length]))).encode()
    declared = draw(st.sampled_from([len(said)] * 6 + NUMBERS))
    return struct.pack("<Q", declared % 2**64) + said + content[8 + length :]


def tensors(scratch: Path) -> Callable[[Draw], object]:
    """Safetensors as bytes and as files."""
    content = save({"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.int64)}, {"x": "y"})
    path = scratch / "x.safetensors"

    def once(draw: Draw) -> object:
        data = header(draw, content)
        path.write_bytes(data)
        with contextlib.suppress(ValueError):
            tensor_files.read(path)
        return tensor_files.loads(data)

    return once


def of_file(scratch: Path, write: Callable[[Path], object], read: Callable[[Path], object]) -> Callable[[Draw], object]:
    """A reader of one safetensors file; its own digest is not in the way where only numbers are changed."""
    path = scratch / "file.safetensors"
    write(path)
    content = path.read_bytes()

    def once(draw: Draw) -> object:
        path.write_bytes(header(draw, content))
        return read(path)

    return once


def references(scratch: Path) -> Callable[[Draw], object]:
    """Statistics of exemplars."""
    clips = [Audio(torch.randn(1, 1, 16000, generator=torch.Generator().manual_seed(i)), 16000) for i in range(3)]
    built = Reference.build(LogMel(), clips, "x")
    return of_file(scratch, built.save, Reference.load)


def heads(scratch: Path) -> Callable[[Draw], object]:
    """Heads of aesthetics rewards."""
    return of_file(scratch, Head.load(ASSETS / SHIPPED).save, Head.load)


def checkpoints(scratch: Path) -> Callable[[Draw], object]:
    """A run's state: damage must be found, a crafted one must not crash."""
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = TrainingState.of(list(layer.parameters()), optimizer, [{"round": 1, "reward": 0.0, "seconds": 1.0}])
    kept = Checkpoints(scratch / "kept")
    kept.save(state)
    tensor, record = (next((scratch / "kept").glob(f"*.{suffix}")) for suffix in ("safetensors", "json"))
    whole = tensor.read_bytes(), record.read_bytes()

    def once(draw: Draw) -> object:
        which = draw(st.booleans())
        tensor.write_bytes(header(draw, whole[0]) if which else whole[0])
        record.write_bytes(whole[1] if which else mutated(whole[1], draw(CHANGES)))
        found = kept.latest()
        if found is not None:
            found.restore(list(layer.parameters()), optimizer)
        return found

    return once


class Net(nn.Module):
    """Two layers to put adapters on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)


def adapter(scratch: Path) -> Callable[[Draw], object]:
    """Adapters in peft's format: settings and weights."""
    net = Net()
    adapters.attach(net, adapters.Lora(rank=2))
    adapters.save(net, scratch / "lora", "tiny-music")
    config, weights = (scratch / "lora" / name for name in (adapters.CONFIG_FILE, adapters.WEIGHTS_FILE))
    settings, content = json.loads(config.read_text()), weights.read_bytes()

    def once(draw: Draw) -> object:
        if draw(st.booleans()):
            weights.write_bytes(content)
            config.write_text(json.dumps(tree(draw, settings)))
        else:
            config.write_text(json.dumps(settings))
            weights.write_bytes(header(draw, content))
        return adapters.load(Net(), scratch / "lora")

    return once


def settings(scratch: Path) -> Callable[[Draw], object]:
    """JSON of models and adapters, as text and as values."""
    samples = [path.read_text() for path in sorted(ASSETS.rglob("*config.json")) if path.stat().st_size < 1 << 16]
    deep = ["[" * 5000, '{"a":' * 500 + "1" + "}" * 500, "9" * 5000, '{"r": 1e999, "target_modules": "(a+)+$"}']
    path = scratch / "config.json"

    def once(draw: Draw) -> object:
        path.write_bytes(draw(text_like(samples + deep)))
        with contextlib.suppress(ValueError):
            adapter_settings.read(path)
        return json_files.read(path)

    return once


def model(scratch: Path) -> Callable[[Draw], object]:
    """The embedded model with one of its settings changed, opened as a whole."""
    folder = scratch / "model"
    shutil.copytree(ASSETS / "tiny-music", folder, ignore=shutil.ignore_patterns("exemplars", "ratings", "references"))
    configs = {path: path.read_text() for path in sorted(folder.rglob("*.json")) if path.stat().st_size < 1 << 16}

    def once(draw: Draw) -> object:
        path = draw(st.sampled_from(list(configs)))
        path.write_text(json.dumps(tree(draw, json.loads(configs[path]))))
        try:
            return pretrained.load(str(folder), device="cpu")
        finally:
            path.write_text(configs[path])

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

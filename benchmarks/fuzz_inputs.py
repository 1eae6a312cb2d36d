"""How `fuzz.py` makes inputs: texts, bytes, JSON and headers that are nearly the real ones."""

import json
import struct
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

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
                spot[key] = deepcopy(draw(st.sampled_from(VALUES + WORDS[:12])))  # it may be changed in turn
            case 2:
                del spot[key]
            case 3 if isinstance(spot, dict):
                spot[draw(st.sampled_from(WORDS))] = spot[key]
            case _:
                spot[key] = [spot[key]] * draw(st.sampled_from([1, 2, 30]))
    return value


def header(draw: Draw, content: bytes) -> bytes:
    """A safetensors file whose header was changed as JSON, or whose bytes were."""
    if draw(st.booleans()):
        return mutated(content, draw(CHANGES), 200)
    (length,) = struct.unpack("<Q", content[:8])
    said = json.dumps(tree(draw, json.loads(content[8 : 8 + length]))).encode()
    declared = draw(st.sampled_from([len(said)] * 6 + NUMBERS))
    return struct.pack("<Q", declared % 2**64) + said + content[8 + length :]


@cache
def recipes() -> list[str]:
    """The text of every recipe that ships."""
    return [path.read_text() for path in sorted((ROOT / "recipes").rglob("*.yaml"))]

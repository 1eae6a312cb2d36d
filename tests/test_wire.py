"""What is sent between processes: the same comes out, and nothing else goes in."""

import json
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dragontune.data import Samples
from dragontune.encoders.base import Embeddings
from dragontune.errors import InputError
from dragontune.media.audio import Audio
from dragontune.media.image import Images
from dragontune.media.video import Video
from dragontune.rewards.combine import Parts
from dragontune.wire import (
    DEEPEST,
    LONGEST_HEADER,
    MOST_AXES,
    MOST_TENSORS,
    Message,
    WireError,
    not_finite,
    pack,
    unpack,
)


def sent(value, allowed=None):
    tensors: dict[str, torch.Tensor] = {}
    spec = pack(value, "v", tensors)
    message = Message.load(Message({"spec": spec}, tensors).dump())
    return unpack(message.header["spec"], message.tensors, allowed)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if hasattr(a, "__dataclass_fields__"):
        return type(a) is type(b) and all(same(getattr(a, k), getattr(b, k)) for k in a.__dataclass_fields__)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


VALUES = {
    "audio": Audio(torch.randn(2, 1, 5), 16000),
    "images": Images(torch.rand(2, 3, 4, 4)),
    "video": Video(torch.rand(2, 3, 3, 4, 4), 7.3),
    "a part of a tensor": torch.arange(12.0).reshape(3, 4).T[1:],
    "bfloat16": torch.randn(3).bfloat16(),
    "no rows": torch.zeros(0, 4),
    "one number": torch.tensor(3.5, dtype=torch.float64),
    "booleans": torch.tensor([True, False]),
    "embeddings": Embeddings(torch.randn(2, 3, 4), torch.tensor([3, 2])),
    "parts": Parts({"a b/c": torch.randn(2, 3), "é": Embeddings.of(torch.randn(2, 1, 3))}),
    "nothing": None,
    "texts": ("a", "\n\u2028🎵", ""),
    "numbers": (1, True, 0.1, float("nan").hex() and -0.0, 10**30),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_the_same_comes_out(value):
    assert same(value, sent(value))


def test_two_tensors_in_one_memory():
    x = torch.arange(6.0)
    first, second = sent((x[:3], x[1:4]))
    assert torch.equal(first, x[:3])
    assert torch.equal(second, x[1:4])


def test_what_cannot_be_sent_is_refused():
    for value in (object(), {1: 2}, torch.nn.Linear(1, 1), b"bytes"):
        with pytest.raises(WireError, match="cannot be sent"):
            pack(value, "v", {})
    with pytest.raises(ValueError, match="JSON"):
        Message({"x": float("nan")}).dump()


def test_only_what_is_allowed_is_made():
    with pytest.raises(WireError, match="not known here"):
        sent(VALUES["embeddings"], (Audio,))
    with pytest.raises(WireError, match="not known here"):
        unpack({"rows": "os.system", "columns": {}}, {})


SPECS = {
    "no tensor of that name": {"tensor": "x"},
    "more beside": {"value": 1, "rows": "x"},
    "other columns": {"rows": "dragontune.media.audio.Audio", "columns": {"waveform": {"value": 1}}},
    "a list": [1],
    "a number": 3,
    "a float that is none": {"float": "one"},
    "a huge float": {"float": "0x1p99999"},
    "a nested value": {"value": [1]},
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_records_that_are_none(spec):
    with pytest.raises(WireError):
        unpack(spec, {})


def test_records_too_deep():
    spec: object = {"value": 1}
    for _ in range(DEEPEST + 2):
        spec = {"list": [spec]}
    with pytest.raises(WireError, match="deep"):
        unpack(spec, {})


def test_columns_of_different_length():
    frames, count = torch.zeros(2, 3, 4), torch.tensor([1, 1, 1])
    columns = {"frames": {"tensor": "f"}, "count": {"tensor": "c"}}
    with pytest.raises(WireError):
        unpack({"rows": "dragontune.encoders.base.Embeddings", "columns": columns}, {"f": frames, "c": count})


def body(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


JSON = {"__metadata__": {"json": "{}"}}
BODIES = {
    "empty": b"",
    "short": b"abc",
    "a length beyond the body": (1 << 40).to_bytes(8, "little") + b"{}",
    "a length beyond what may be": body(b" " * (LONGEST_HEADER + 1)),
    "not JSON": body(b"{"),
    "not UTF-8": body(b'{"\xff": 1}'),
    "deep": body(b"[" * 100_000),
    "a list": body([]),
    "no JSON inside": body({}),
    "no JSON inside that": body({"__metadata__": {"json": "["}}),
    "NaN inside": body({"__metadata__": {"json": '{"x": NaN}'}}),
    "more metadata": body({"__metadata__": {"json": "{}", "x": "y"}}),
    "a name twice": body(b'{"__metadata__": {"json": "{}"}, "__metadata__": {"json": "{}"}}'),
    "a type that is none": body(JSON | {"x": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)),
    "a shape below 0": body(JSON | {"x": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}, bytes(4)),
    "a huge shape of nothing": body(JSON | {"x": {"dtype": "F32", "shape": [2**60, 0], "data_offsets": [0, 0]}}),
    "another length": body(JSON | {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
    "a gap": body(JSON | {"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)),
    "a rest": body(JSON | {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(5)),
    "overlap": body(JSON | {n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "xy"}, bytes(4)),
    "many axes": body(JSON | {"x": {"dtype": "F32", "shape": [1] * 64, "data_offsets": [0, 4]}}, bytes(4)),
    "many tensors": body(
        JSON | {str(i): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(MOST_TENSORS + 1)}
    ),
    "a pickle": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x94.",
}


@pytest.mark.parametrize("content", BODIES.values(), ids=BODIES)
def test_bodies_that_are_none(content):
    with pytest.raises(WireError):
        Message.load(content)


GOOD = Message({"a": 1}, {"x": torch.arange(4.0), "y": torch.tensor([True])}).dump()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4), st.integers(0, len(GOOD)))
def test_a_damaged_body_is_refused_or_read(changes, length):
    content = bytearray(GOOD)
    for place, value in changes:
        content[place] = value
    with suppress(WireError):
        Message.load(bytes(content[:length]))


@pytest.mark.parametrize(
    ("header", "tensors"),
    [
        ({"prompts": ["x" * (LONGEST_HEADER + 1)]}, {}),
        ({}, {"x": torch.zeros(2, dtype=torch.uint16)}),
        ({}, {"x": torch.zeros([1] * (MOST_AXES + 1))}),
        ({}, {f"x{number}": torch.zeros(1) for number in range(MOST_TENSORS + 1)}),
    ],
)
def test_what_no_reader_would_take_is_not_sent(header, tensors):
    with pytest.raises(InputError, match="fewer items"):
        Message(header, tensors).dump()


def test_fields_are_asked_for_by_type():
    message = Message({"n": 1, "b": True, "t": ["a", 1]}, {"x": torch.zeros(2)})
    assert message.get("n", int) == 1
    for name, kind in (("b", int), ("n", str), ("none", int)):
        with pytest.raises(WireError, match=name):
            message.get(name, kind)
    with pytest.raises(WireError, match="no text"):
        message.texts("t")
    assert len(message.tensor("x", (2,), torch.float32)) == 2
    for shape, kind in (((3,), torch.float32), ((2,), torch.float64)):
        with pytest.raises(WireError, match="x of shape"):
            message.tensor("x", shape, kind)


def test_numbers_that_are_not_finite_are_found_anywhere():
    bad = torch.tensor([[1.0, float("inf")]])
    assert not_finite(bad)
    assert not_finite(Message({}, {"x": bad}))
    assert not_finite(Parts({"x": torch.zeros(1), "y": Embeddings.of(bad[None])}))
    assert not not_finite(Samples(("a",), torch.zeros(1, 2), Audio(torch.zeros(1, 1, 2), 8000)))
    assert not not_finite(torch.tensor([2**62]))

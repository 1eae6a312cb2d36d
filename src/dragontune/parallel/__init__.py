"""What processes say to each other: the only place that knows of ranks.

Each process works on its `share` of the rows; everything else is said by a few collectives, which all processes call in
the same order. Each begins with a short exchange by which a process can say that it has failed instead: then all fail,
with the same sentence, and nobody waits (`in_company`). Rows travel as JSON and bytes, over CPU memory; only sums of
tensors stay on their device. Processes of one run trust each other. Left out: a process that joins or leaves a run.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from dragontune.data import join_columns
from dragontune.errors import InputError, InterruptedRun, LostService, NonFiniteError
from dragontune.parallel.packing import pack, unpack
from dragontune.plain_text import line

T = TypeVar("T")

PATIENCE = timedelta(seconds=60)
"""How long a process that has failed waits for the others to hear of it."""
KINDS = {"InputError": InputError, "NonFiniteError": NonFiniteError, "LostService": LostService}
"""Errors that keep their kind in the other processes; any other is an interruption there."""
SHORT, LITTLE = 512, 2**20
"""Bytes of the first message of an exchange, and of contents that are worth sending in one padded message."""
TRACES = ("gloo", "nccl")
"""Words by which the error of a collective is known from others, which may be about connections, too."""
ALONE = (*TRACES, "connection", "socket", "peer", "timed out")
"""The same, where there is nothing but a collective that could fail."""


def processes() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and speaks to the user."""
    return processes() == 1 or dist.get_rank() == 0


def share(count: int) -> Int[Tensor, " k"]:
    """The consecutive part of 0 .. count - 1 that is this process's work."""
    numbers = torch.arange(count)
    return numbers if processes() == 1 else numbers.tensor_split(processes())[dist.get_rank()]


@dataclass(frozen=True, eq=False)
class Portion:
    """Rows to be worked on at once. Where it is not `real`, the result is to be thrown away."""

    rows: Int[Tensor, " k"]
    real: bool = True


def portions(rows: Int[Tensor, " k"], size: int, in_step: bool = False) -> Iterator[Portion]:
    """This process's `rows`, at most `size` at a time.

    `in_step` is for work that all processes must do equally often, as calls of a network are whose weights they share:
    those with less to do get stand-ins of one row, and an error of one process reaches the others between portions.
    """
    pieces = rows.split(size) if len(rows) else ()
    if not in_step or processes() == 1:
        yield from (Portion(piece) for piece in pieces)
        return
    stand_in = Portion(torch.cat([rows, torch.tensor([0])])[:1], False)
    for number in range(max(everyone(len(pieces)))):
        if number:
            everyone(None)
        yield Portion(pieces[number]) if number < len(pieces) else stand_in


def gather_rows(rows: T) -> T:
    """The rows of every process, in the order of ranks; `rows` itself where there is one process."""
    return rows if processes() == 1 else join_columns(everyone(rows))


def everyone(value: T) -> list[T]:
    """The value of every process, in the order of ranks."""
    return [value] if processes() == 1 else _exchange("everyone", value)


def from_main(work: Callable[[], T]) -> T:
    """What `work` gives on the main process, the only one that does it."""
    if processes() == 1:
        return work()
    with in_company():
        found = work() if is_main() else None
    return _exchange("from_main", found)[0]


def by_main(work: Callable[[], T], in_step: bool) -> T:
    """What `work` gives on the main process; `in_step` all do the same work beside it, and let go of theirs."""
    if not in_step:
        return from_main(work)
    found = work()
    return from_main(lambda: found)


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, in place, by its sum over all processes: one message for each kind of number."""
    _each_kind(tensors, dist.all_reduce)


def level(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, in place, by the main process's."""
    _each_kind(tensors, partial(dist.broadcast, src=0))


def _each_kind(tensors: Iterable[Tensor], collective: Callable[[Tensor], object]) -> None:
    if processes() == 1:
        return
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    everyone(None)
    for members in kinds.values():
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in members])
        with connected(ALONE):
            collective(flat)
        for tensor, total in zip(members, flat.split([tensor.numel() for tensor in members]), strict=True):
            with torch.no_grad():
                tensor.copy_(total.view_as(tensor))


@contextmanager
def in_company() -> Iterator[None]:
    """Within it an error of one process is an error of all of them, at their next collective.

    An interruption is not told: every process gets the signal, or notices that one is gone.
    """
    try:
        yield
    except InterruptedRun:
        raise
    except Exception as error:
        if processes() > 1 and not vars(error).get("heard"):
            vars(error)["heard"] = True
            _tell(error)
        raise


@contextmanager
def connected(traces: Sequence[str] = TRACES) -> Iterator[None]:
    """Within it the failure of a collective is an `InterruptedRun`: another process is gone."""
    try:
        yield
    except (InterruptedRun, NonFiniteError, LostService):
        raise
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or any(word in str(error).lower() for word in traces)
        if processes() == 1 or not lost:
            raise
        reason = str(error).strip().partition("\n")[0][:120]
        raise InterruptedRun(f"a process of this run was lost, or did not answer ({reason})") from error


def _tell(error: Exception) -> None:
    """Say that this process has failed, when the others next exchange something; to the user, if they do not in time.

    They may be gone themselves, or wait for this process in a collective of the network's.
    """
    said = {"error": type(error).__name__, "sentence": str(error)}
    try:
        _headers(json.dumps(said).encode(), 0, PATIENCE)
    except (RuntimeError, ValueError) as nobody:
        told = f"process {dist.get_rank()} failed ({said['error']}: {line(said['sentence'])}), which the others"
        print(f"dragontune: {told} were not told ({line(str(nobody))[:80]})", file=sys.stderr, flush=True)


def _exchange(what: str, value: Any) -> list[Any]:  # noqa: ANN401 - of any kind that can be packed
    said, content = pack(value)
    header = json.dumps({"what": what, "said": said}).encode()
    with connected(ALONE):
        found = _headers(header, len(content))
    headers = [json.loads(text) for text, _ in found]
    for rank, other in enumerate(headers):
        if "error" in other:
            raise _heard(rank, other["error"], other["sentence"])
    if wrong := {other["what"] for other in headers} - {what}:
        raise AssertionError(f"processes are out of step: {what} here, {', '.join(sorted(wrong))} elsewhere")
    with connected(ALONE):
        contents = _contents(content, [length for _, length in found])
    pairs = enumerate(zip(headers, contents, strict=True))
    return [value if rank == dist.get_rank() else unpack(other["said"], read) for rank, (other, read) in pairs]


def _headers(text: bytes, length: int, patience: timedelta | None = None) -> list[tuple[bytes, int]]:
    """What every process says, and how many bytes of content follow: one message, or two where somebody says much."""
    start = len(text).to_bytes(8, "little") + length.to_bytes(8, "little") + text
    starts = [bytes(part.numpy()) for part in _gathered(_padded(_tensor(start[:SHORT]), SHORT), patience)]
    sizes = [(int.from_bytes(part[:8], "little"), int.from_bytes(part[8:16], "little")) for part in starts]
    said = [part[16:] for part in starts]
    if (longest := max(size for size, _ in sizes)) > SHORT - 16:
        rest = _padded(_tensor(text[SHORT - 16 :]), longest - SHORT + 16)
        said = [one + bytes(more.numpy()) for one, more in zip(said, _gathered(rest, patience), strict=True)]
    return [(one[:size], length) for one, (size, length) in zip(said, sizes, strict=True)]


def _contents(content: Tensor, lengths: list[int]) -> list[Tensor]:
    """Of every process: at once where it is little, one after another where padding would cost more."""
    longest = max(lengths)
    if longest * len(lengths) <= LITTLE and sum(length > 0 for length in lengths) > 1:
        parts = _gathered(_padded(content, longest), None)
        return [part[:length] for part, length in zip(parts, lengths, strict=True)]
    found = [content if rank == dist.get_rank() else content.new_empty(length) for rank, length in enumerate(lengths)]
    for rank, part in enumerate(found):
        if len(part):
            dist.broadcast(part, rank)
    return found


def _tensor(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)


def _padded(content: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(content, (0, length - len(content)))


def _gathered(tensor: Tensor, patience: timedelta | None) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(processes())]
    work = dist.all_gather(parts, tensor, async_op=True)
    if work is not None:
        work.wait() if patience is None else work.wait(patience)
    return parts


def _heard(rank: int, kind: str, sentence: str) -> Exception:
    """The error of another process, as this one's; the file that is missing may be missing there only."""
    error = (
        KINDS[kind](f"{sentence} (process {rank})")
        if kind in KINDS
        else InterruptedRun(f"process {rank} failed ({kind}: {sentence})")
    )
    vars(error)["heard"] = True
    return error

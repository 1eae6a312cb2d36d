"""One process or several, with whole networks or in pieces, in micro-batches of any size: the same run."""

import os
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from companies import ShardedToy, company, noted
from dragontune import parallel
from dragontune.algorithms import dragon
from dragontune.algorithms.ddpo import Ddpo
from dragontune.algorithms.draft import Draft, DraftLv
from dragontune.algorithms.dragon import Dragon
from dragontune.algorithms.vard import Vard
from dragontune.data import Samples
from dragontune.encoders.base import Embeddings
from dragontune.errors import InputError, InterruptedRun, NonFiniteError
from dragontune.generators.base import Generator
from dragontune.losses import Dpo, Kto
from dragontune.parallel import add_up, everyone, from_main, gather_rows, in_company, is_main, level, portions
from dragontune.rewards.alignment import Alignment
from dragontune.rewards.base import DifferentiableReward, InstanceReward
from dragontune.rewards.combine import Parts
from dragontune.rewards.diversity import Vendi
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.testing import Toy, ToyEncoder
from dragontune.training.loop import Loop
from dragontune.training.run_folder import RunFolder
from small_runs import TOY_PROMPTS

LOOP = Loop(rounds=2, pairs=7, updates=2, batch=6, lr=1e-3, max_norm=1.0)
MICRO = {2: (1, 20), 4: (3, 7)}
"""Rows at once, by the number of processes."""
LAST = "the last one"


@dataclass(frozen=True, eq=False)
class Near(InstanceReward[Tensor], DifferentiableReward[Tensor]):
    """How near a point is to an exemplar; `spoilt` items, by prompt, make it fail."""

    spoilt: str = ""
    error: str = ""

    def encode(self, samples: Samples) -> Tensor:
        if self.spoilt in samples.prompts and self.error == "InputError":
            raise InputError(f"expected another prompt, got {self.spoilt}; change it")
        points = samples.media
        assert isinstance(points, Tensor)
        bad = torch.tensor([prompt == self.spoilt for prompt in samples.prompts])
        return torch.where(bad[:, None], torch.nan, points) if self.error == "nan" else points

    def score(self, features: Tensor) -> Tensor:
        return -(features - torch.tensor([1.0, 0.5])).square().sum(1)


ALGORITHMS: dict[str, Any] = {
    "dragon instance": lambda toy, size: Dragon(
        toy, Alignment(ToyEncoder()), preference=Dpo(), beta=2.0, sampler=Sampler(steps=3), micro_batch=size
    ),
    "dragon exemplar": lambda toy, size: Dragon(
        toy, Near(), preference=Kto(), beta=2.0, sampler=Sampler(steps=3, guidance=2.0), micro_batch=size
    ),
    "dragon set": lambda toy, size: Dragon(
        toy, Vendi(ToyEncoder()), beta=2.0, sampler=Sampler(steps=3), reference_share=0.4, micro_batch=size
    ),
    "draft": lambda toy, size: Draft(toy, Near(), sampler=Sampler(steps=3), last=2, micro_batch=size),
    "draft-lv set": lambda toy, size: DraftLv(toy, Vendi(ToyEncoder()), sampler=Sampler(steps=3), micro_batch=size),
    "ddpo": lambda toy, size: Ddpo(
        toy, Near(), sampler=Sampler(steps=3, order=1, eta=1.0), group=3, kl=0.1, micro_batch=size
    ),
    "vard": lambda toy, size: Vard(
        toy, Near(), sampler=Sampler(steps=3), value_rollouts=20, value_steps=5, value_width=8, micro_batch=size
    ),
}


def run(toy: Generator, name: str, size: int, folder: Path | None = None, **changed: Any) -> dict[str, Any]:
    """The adapter, the log and the divisions of a run."""
    divisions: list[list[list[int]]] = []

    def note(found: Any, *_: object) -> None:
        divisions.append([found.positive.tolist(), found.negative.tolist()])

    algorithm = ALGORITHMS[name](toy, size)
    loop = replace(LOOP, micro_batch=size, **changed)
    divide = dragon.divide
    with noted(dragon, "divide", note):  # pyright: ignore[reportArgumentType] - a module has functions, too
        history = loop.run(algorithm, TOY_PROMPTS, RunFolder(folder) if folder else None)
    assert dragon.divide is divide
    adapter = torch.cat([weight.detach().flatten() for weight in algorithm.parameters()])
    numbers = [{**record["metrics"], "reward": record["reward"], "loss": record["loss"]} for record in history]
    return {"adapter": adapter, "divisions": divisions, "numbers": numbers}


def runs(count: int) -> dict[tuple[str, bool, int], dict[str, Any]]:
    """In two sizes of micro-batches, one with whole weights and one in pieces; one of them for all but DRAGON."""
    found = {}
    for number, name in enumerate(ALGORITHMS):
        for turn, size in enumerate(MICRO[count]):
            sharded = (number + turn) % 2 == 0
            if sharded or name.startswith("dragon"):
                found[name, sharded, size] = run(ShardedToy() if sharded else Toy(), name, size)
    return found


@pytest.mark.parametrize("count", [2, 4])
def test_the_same_run_on_any_number_of_processes(tmp_path: Path, count: int):
    alone = {name: run(Toy(), name, 40) for name in ALGORITHMS}
    made = company(count, lambda: runs(count), tmp_path)
    for (name, sharded, size), found in made[0].items():
        expected, what = alone[name], f"{name}, in pieces: {sharded}, micro-batch {size}"
        gap = (found["adapter"] - expected["adapter"]).abs().max().item()
        assert gap <= 1e-5, f"{what}: adapters differ by {gap}"
        assert found["divisions"] == expected["divisions"], what
        loose = 0.02 if name == "vard" else 1e-5  # a network fitted to numbers that are rounded differently
        for numbers, wanted in zip(found["numbers"], expected["numbers"], strict=True):
            assert numbers == pytest.approx(wanted, rel=1e-4, abs=loose), what
        for other in made[1:]:
            assert other[name, sharded, size]["adapter"].equal(found["adapter"])
            assert other[name, sharded, size]["divisions"] == []  # divided once, by the main process
    assert {sharded for _, sharded, _ in made[0]} == {False, True}


def test_the_same_bits_where_micro_batches_are_the_same(tmp_path: Path):
    """Two rows at once: what one process does in four calls, each of two does in two."""
    changed: dict[str, Any] = {"pairs": 12, "batch": 8}
    alone = {name: run(Toy(), name, 2, **changed) for name in ALGORITHMS}
    made = company(2, lambda: {name: run(ShardedToy(), name, 2, **changed) for name in ALGORITHMS}, tmp_path)
    for name, found in made[0].items():
        assert found["adapter"].equal(alone[name]["adapter"]), name
        assert found["numbers"] == alone[name]["numbers"], name


def test_resuming_on_other_numbers_of_processes(tmp_path: Path):
    """Two processes begin, four and then one go on."""
    whole = run(Toy(), "dragon set", 7, rounds=4)
    folder = tmp_path / "run"
    company(
        2, lambda: run(Toy(), "dragon set", 7, folder if is_main() else tmp_path / "other", rounds=2), tmp_path / "2"
    )
    assert not (tmp_path / "other").exists()
    company(4, lambda: run(ShardedToy(), "dragon set", 3, folder, rounds=3), tmp_path / "4")
    last = run(Toy(), "dragon set", 20, folder, rounds=4)
    assert (last["adapter"] - whole["adapter"]).abs().max() <= 1e-5
    assert [record["round"] for record in RunFolder(folder).history()] == [1, 2, 3, 4]


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(("error", "kind"), [("InputError", InputError), ("nan", NonFiniteError)])
def test_what_one_process_finds_wrong_stops_all_with_its_sentence(
    tmp_path: Path, error: str, kind: type, sharded: bool
):
    """With the same sentence; the last prompt of a round is the last process's."""

    def work() -> str:
        reward = Near(LAST, error)
        draft = Draft(ShardedToy() if sharded else Toy(), reward, sampler=Sampler(steps=2), micro_batch=2)
        found = Dragon(draft.generator, reward, sampler=Sampler(steps=2), micro_batch=2) if error != "nan" else draft
        prompts = [*["left"] * 6, LAST]
        with pytest.raises(kind) as caught:
            replace(LOOP, rounds=3, batch=7).run(found, prompts, RunFolder(tmp_path / "run"))
        return str(caught.value)

    said = company(3, work, tmp_path)
    found, *others = sorted(said, key=len)
    assert LAST in found
    assert set(others) == {f"{found} (process {said.index(found)})"}


def test_a_lost_process_interrupts_the_others_and_nothing_is_lost(tmp_path: Path):
    """The second of three processes dies in the third round."""

    def work() -> str:
        class Dying(Near):
            def encode(self, samples: Samples) -> Tensor:
                encoded.append(1)
                if len(encoded) == 5 and dist.get_rank() == 1:
                    os.kill(os.getpid(), 9)
                return super().encode(samples)

        encoded: list[int] = []
        algorithm = Dragon(Toy(), Dying(), beta=2.0, sampler=Sampler(steps=2))
        with pytest.raises(InterruptedRun, match="a process of this run was lost"):
            replace(LOOP, rounds=9, checkpoint_every=5).run(algorithm, TOY_PROMPTS, RunFolder(tmp_path / "run"))
        return "stopped"

    assert company(3, work, tmp_path, failing=True) == ["stopped", None, "stopped"]
    state = RunFolder(tmp_path / "run").checkpoints(2).latest()
    assert state is not None
    assert state.round == 2


def test_every_kind_of_row_travels(tmp_path: Path):
    """Ragged frames are padded to the longest of all processes; a process may have nothing."""

    def rows(rank: int) -> list[Any]:
        number, count = torch.arange(rank + 1), rank + 1
        frames = Embeddings(torch.full((count, 2 + rank, 3), float(rank)), torch.full((count,), 2 + rank))
        return [
            Parts({"a": frames, "b": number.to(torch.complex64) * 1j, "c": number.to(torch.bfloat16)}),
            Samples(tuple(f"{rank} \u00e9 {i}" for i in range(rank)), torch.ones(rank, 2).double(), None),
            number > 0,
            (float("nan"), 1, None, "text", [1.5], {"x": (2,)}),
        ]

    def work() -> list[Any]:
        parts, samples, flags, odd = rows(dist.get_rank())
        joined = gather_rows(parts)
        heard = [str(odd[0]), *odd[1:]]
        told = [[str(each[0]), *each[1:]] for each in everyone(odd)]
        assert told == [heard] * 3
        gathered = gather_rows(samples)
        frames = joined.members["a"]
        return [
            frames.frames, frames.count, joined.members["b"], joined.members["c"], gather_rows(flags),
            gathered.latents, gathered.prompts, gathered.media, from_main(lambda: Key(3).fold("a", 1)).path,
        ]  # fmt: skip

    first, *others = company(3, work, tmp_path)
    frames, count, numbers, halves, flags, latents, prompts, media, path = first
    assert frames.shape == (6, 4, 3)
    assert count.tolist() == [2, 3, 3, 4, 4, 4]
    assert numbers.imag.tolist() == [0, 0, 1, 0, 1, 2]
    assert halves.dtype == torch.bfloat16
    assert flags.tolist() == [False, False, True, False, True, True]
    assert latents.dtype == torch.float64
    assert prompts == ("1 \u00e9 0", "2 \u00e9 0", "2 \u00e9 1")
    assert media is None
    assert path == ("a", 1)
    for other in others:
        assert all(map(torch.equal, other[:6], first[:6]))
        assert other[6:] == first[6:]


def test_portions_in_step_are_equally_many(tmp_path: Path):
    def work() -> list[tuple[list[int], bool]]:
        rows = torch.arange(10, 10 + 3 * dist.get_rank())
        return [(portion.rows.tolist(), portion.real) for portion in portions(rows, 2, in_step=True)]

    first, second, third = company(3, work, tmp_path)
    assert first == [([0], False)] * 3
    assert second == [([10, 11], True), ([12], True), ([10], False)]
    assert third == [([10, 11], True), ([12, 13], True), ([14, 15], True)]


def test_sums_and_copies_of_tensors(tmp_path: Path):
    def work() -> list[Tensor]:
        rank = dist.get_rank()
        tensors = [torch.full((2, 3), rank + 1.0), torch.tensor([rank, 1]), torch.full((), rank + 0.5)]
        copies = [tensor.clone() for tensor in tensors]
        add_up(tensors)
        level(copies)
        return [*tensors, *copies]

    for found in company(3, work, tmp_path):
        expected = [torch.full((2, 3), 6.0), torch.tensor([3, 3]), torch.tensor(4.5)]
        expected += [torch.ones(2, 3), torch.tensor([0, 1]), torch.tensor(0.5)]
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("sharded", [False, True])
def test_an_error_in_the_middle_of_an_update_keeps_its_kind(tmp_path: Path, sharded: bool):
    """Also where it sounds like a lost process, and where the others wait for the pieces of a network."""

    class Failing(Dragon):
        def loss(self, batch: Any) -> Any:
            if dist.get_rank() == 1:
                raise RuntimeError("expected a voice, got connection refused by peer")
            return super().loss(batch)

    def work() -> str:
        algorithm = Failing(ShardedToy() if sharded else Toy(), Near(), sampler=Sampler(steps=2))
        with pytest.raises(RuntimeError) as caught, patch.object(parallel, "PATIENCE", timedelta(seconds=3)):
            LOOP.run(algorithm, TOY_PROMPTS)
        return f"{type(caught.value).__name__}: {caught.value}"

    first, second = company(2, work, tmp_path)
    assert second == "RuntimeError: expected a voice, got connection refused by peer"
    if not sharded:
        assert first == f"InterruptedRun: process 1 failed ({second})"
    else:
        assert first.startswith("InterruptedRun: a process of this run was lost")


def test_what_cannot_travel_is_refused_by_all(tmp_path: Path):
    def work() -> str:
        with pytest.raises(InputError, match="got a object") as caught, in_company():
            everyone(object() if dist.get_rank() == 1 else 1)
        return str(caught.value)

    said = company(2, work, tmp_path)
    assert said[0] == f"{said[1]} (process 1)"

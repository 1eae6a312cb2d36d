import contextlib
import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from dragontune.errors import InputError
from dragontune.training import files
from dragontune.training.checkpoint import Checkpoints, TrainingState


def newest(checkpoints):
    found = checkpoints.latest()
    return found and found.round


def state(number, value=1.0):
    weight = torch.nn.Parameter(torch.full((3, 2), value))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    weight.sum().backward()
    optimizer.step()
    return TrainingState.of([weight], optimizer, [{"round": i + 1, "loss": 0.1 * i} for i in range(number)])


def test_comes_back_with_the_same_bits_and_the_same_next_step(tmp_path):
    weights = [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(2))]

    def steps(count, weights, optimizer):
        for _ in range(count):
            optimizer.zero_grad()
            torch.stack([(weight**3).sum() for weight in weights]).sum().backward()
            optimizer.step()

    optimizer = torch.optim.Adam(weights, lr=0.1)
    steps(3, weights, optimizer)
    Checkpoints(tmp_path).save(TrainingState.of(weights, optimizer, [{"round": 1}]))
    other = [torch.nn.Parameter(torch.zeros_like(weight)) for weight in weights]
    other_optimizer = torch.optim.Adam(other, lr=0.1)
    found = Checkpoints(tmp_path).latest()
    assert found is not None
    found.restore(other, other_optimizer)
    assert found.history == ({"round": 1},)
    steps(2, weights, optimizer)
    steps(2, other, other_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(weights, other, strict=True))


def test_the_memory_of_the_algorithm_comes_back_as_a_copy(tmp_path):
    weight, memory = torch.nn.Parameter(torch.zeros(2)), {"1/0": torch.randn(4).double(), "2": torch.tensor(0.1)}
    optimizer = torch.optim.Adam([weight])
    kept = {name: value.clone() for name, value in memory.items()}
    Checkpoints(tmp_path).save(TrainingState.of([weight], optimizer, [{"round": 1}], memory))
    memory["1/0"] += 1
    memory["new"] = torch.ones(1)
    found = Checkpoints(tmp_path).latest()
    assert found is not None
    found.restore([weight], optimizer, memory)
    assert memory.keys() == kept.keys()
    assert all(torch.equal(memory[name], kept[name]) and memory[name].dtype == kept[name].dtype for name in kept)
    memory["2"] += 1
    found.restore([weight], optimizer, memory)
    assert torch.equal(memory["2"], kept["2"])


def test_the_last_few_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for number in range(5):
        checkpoints.save(state(number))
    assert checkpoints.rounds() == [3, 4]
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
@pytest.mark.parametrize("damage", ["torn", "flipped", "empty", "gone"])
def test_a_damaged_one_is_named_and_the_one_before_is_used(tmp_path, suffix, damage):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    path = tmp_path / f"round-000002.{suffix}"
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"torn": content[:middle], "flipped": flipped, "empty": b""}[damage])
    with pytest.warns(UserWarning, match="round-000002"):
        assert newest(checkpoints) == 1


def test_nothing_usable_is_a_fresh_start(tmp_path):
    assert Checkpoints(tmp_path / "none").latest() is None
    Checkpoints(tmp_path).save(state(1))
    (tmp_path / "round-000001.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"):
        assert Checkpoints(tmp_path).latest() is None


def record(number, reward):
    return {"round": number, "reward": reward}


@pytest.mark.parametrize("keep", [1, 2])
def test_the_best_is_kept(tmp_path, keep):
    """The reward of the weights after a round is measured in the round that follows."""
    checkpoints = Checkpoints(tmp_path, keep)
    rewards = [0.1, 0.2, 0.9, 0.3, None, float("nan"), 0.5]
    for number in range(1, 8):
        history = [record(i + 1, reward) for i, reward in enumerate(rewards[:number])]
        checkpoints.save(TrainingState(number, {}, tuple(history)))
    assert checkpoints.rounds() == ([2, 7] if keep == 1 else [2, 6, 7])
    assert newest(checkpoints) == 7


def test_the_best_of_a_guard_is_kept(tmp_path):
    checkpoints, history = Checkpoints(tmp_path, 1), []
    for number in range(1, 7):
        history.append(record(number, 1.0 / number))
        if number % 2 == 0:
            history[-1]["look"] = {"best": {"round": min(number, 4), "scale": 1.0, "target": 0.5}}
        checkpoints.save(TrainingState(number, {}, tuple(history)))
    assert checkpoints.rounds() == [4, 6]


def test_the_whole_of_another_round_is_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for number in (1, 2, 3):
        checkpoints.save(state(number))
    for suffix in ("safetensors", "json"):
        (tmp_path / f"round-000003.{suffix}").write_bytes((tmp_path / f"round-000002.{suffix}").read_bytes())
    with pytest.warns(UserWarning, match=r"round-000003.json is damaged \(it is of round 2\)"):
        assert newest(checkpoints) == 2


@pytest.mark.parametrize(
    ("suffix", "content"),
    [("json", b"[" * 10**6), ("json", b'{"a": ' * 10**5), ("safetensors", b"\xff" * 8), ("safetensors", b"\xff" * 64)],
)
def test_hostile_content_is_damage(tmp_path, suffix, content):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    (tmp_path / f"round-000002.{suffix}").write_bytes(content)
    with pytest.warns(UserWarning, match="round-000002"):
        assert newest(checkpoints) == 1


def test_one_that_is_there_is_not_written_again(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(state(1))

    def never(path, content):
        raise AssertionError(path)

    monkeypatch.setattr(files, "write", never)
    checkpoints.save(state(1))
    monkeypatch.undo()
    (tmp_path / "round-000001.safetensors").write_bytes(b"torn")
    checkpoints.save(state(1))
    assert newest(checkpoints) == 1


def test_one_of_before_there_was_a_length(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1))
    path = tmp_path / "round-000001.json"
    body = json.loads(path.read_text())
    del body["sha256"], body["tensors_bytes"]
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({"sha256": digest, **body}))
    assert newest(checkpoints) == 1


@pytest.mark.parametrize("kills", range(4))
def test_killed_while_dropping_old_ones(tmp_path, monkeypatch, kills):
    """Whatever was dropped by then, the newest is whole, and the next saving takes the rest away."""
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    for suffix in ("json", "safetensors"):  # as if two were to go
        (tmp_path / f"round-000001.{suffix}").write_bytes((tmp_path / f"round-000002.{suffix}").read_bytes())
    unlink, calls = Path.unlink, []

    def killed(self, missing_ok=False):
        calls.extend([self] if self.name.startswith("round-") else [])
        if len(calls) > kills:
            raise KeyboardInterrupt
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", killed)
    with contextlib.suppress(KeyboardInterrupt):
        checkpoints.save(state(3))
    monkeypatch.undo()
    assert newest(checkpoints) == 3
    checkpoints.save(state(4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000004.json", "round-000004.safetensors"]


@pytest.mark.parametrize("content", [b"", b"7", b"[]"])
@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_ones_do_not_push_out_what_is_saved_after_them(tmp_path, keep, content):
    checkpoints = Checkpoints(tmp_path, keep)
    for number in (5, 6):
        checkpoints.save(state(number))
    for path in tmp_path.glob("*.json"):
        path.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged"):
        assert checkpoints.latest() is None
    checkpoints.save(state(1))
    assert newest(checkpoints) == 1
    assert checkpoints.rounds() == [1]


def test_one_that_may_not_be_read_is_not_passed_over(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    for number in (1, 2):
        checkpoints.save(state(number))
    read = Path.read_bytes

    def denied(path):
        if path.name == "round-000002.safetensors":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(InputError, match=r"round-000002.safetensors \(Permission denied\); change its permissions"):
        checkpoints.latest()


def test_of_another_adapter_is_refused(tmp_path):
    weight = torch.nn.Parameter(torch.zeros(5))
    with pytest.raises(InputError, match="another"):
        state(1).restore([weight], torch.optim.Adam([weight]))


def test_a_full_disk_leaves_the_state_so_far(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1))
    before = sorted(path.name for path in tmp_path.iterdir())

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        checkpoints.save(state(2))
    assert "free some space" in str(files.storage_trouble(caught.value))
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert newest(checkpoints) == 1


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "adapter"
    files.write_folder(target, lambda folder: (folder / "a").write_text("1"))

    def fail(folder):
        (folder / "a").write_text("2")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_folder(target, fail)
    assert (target / "a").read_text() == "1"
    target.rename(tmp_path / ".adapter.old")  # as if killed between the two renames
    files.recover_folder(target)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    files.write_folder(target, lambda folder: (folder / "b").write_text("3"))
    assert [path.name for path in target.iterdir()] == ["b"]


def test_other_errors_are_no_storage_trouble():
    assert files.storage_trouble(ValueError("x")) is None
    assert files.storage_trouble(FileNotFoundError(errno.ENOENT, "x")) is None
    assert "written" in str(files.storage_trouble(PermissionError(errno.EACCES, "denied", "place")))
    assert "written" in str(files.storage_trouble(OSError(errno.EROFS, "read-only", "place")))

"""One process needs no group, and says everything to itself."""

import pytest
import torch

from dragontune import launcher
from dragontune.errors import InputError
from dragontune.parallel import everyone, from_main, gather_rows, is_main, portions, processes, share


def test_one_process_is_main_and_does_everything():
    assert is_main()
    assert processes() == 1
    assert share(4).tolist() == [0, 1, 2, 3]
    rows = torch.arange(3)
    assert gather_rows(rows) is rows
    assert everyone("a") == ["a"]
    assert from_main(lambda: 3) == 3
    for in_step in (False, True):
        found = [(portion.rows.tolist(), portion.real) for portion in portions(torch.arange(5), 2, in_step)]
        assert found == [([0, 1], True), ([2, 3], True), ([4], True)]
    assert list(portions(torch.arange(0), 2)) == []


def launched(monkeypatch: pytest.MonkeyPatch, **told: str) -> None:
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    for name, value in {**address, **told}.items():
        monkeypatch.setenv(name, value)


def test_what_a_launcher_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "1")  # of something else
    assert (launcher.count(), launcher.first(), launcher.sharded(), launcher.ignored()) == (1, True, False, [])
    launcher.check("score")
    launched(monkeypatch)
    assert (launcher.count(), launcher.first()) == (2, False)
    launcher.check("tune")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    assert launcher.ignored() == ["precision bf16", "loop.micro_batch 4"]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    launcher.check("tune")
    assert launcher.sharded()


@pytest.mark.parametrize(
    ("verb", "told", "sentence"),
    [
        ("score", {}, "expected one process for score, got 2"),
        ("tune", {"ACCELERATE_USE_DEEPSPEED": "true"}, "got one with DeepSpeed; use torchrun"),
        ("tune", {"ACCELERATE_USE_MEGATRON_LM": "1"}, "got one with Megatron-LM"),
        ("tune", {"ACCELERATE_USE_FSDP": "true"}, "expected version 2 of FSDP .*, got 1; add --fsdp_version 2"),
    ],
)
def test_launchers_that_are_refused(monkeypatch: pytest.MonkeyPatch, verb: str, told: dict[str, str], sentence: str):
    launched(monkeypatch, **told)
    monkeypatch.setattr(launcher, "HEARD", 0.0)
    with pytest.raises(InputError, match=sentence):
        launcher.check(verb)

"""What is foreseen of a run's memory against what the run takes, and what `doctor` makes of it."""

import re
from pathlib import Path

import pytest
import torch

from dragontune import cli
from dragontune.algorithms.base import Algorithm
from dragontune.algorithms.ddpo import Ddpo
from dragontune.algorithms.draft import Draft, DraftLv
from dragontune.algorithms.dragon import Dragon
from dragontune.algorithms.vard import Vard
from dragontune.alive import Alive, everything, peak, together
from dragontune.commands.memory import Meter, available, forecast
from dragontune.encoders.clap import TinyClap
from dragontune.generators.adapters import Lora
from dragontune.generators.base import Generator
from dragontune.generators.checkpoint import Plan
from dragontune.generators.pretrained import load
from dragontune.rewards.alignment import Alignment
from dragontune.rewards.diversity import Vendi
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.training.loop import Loop
from tiny_models import save_tiny_clap, save_tiny_music

PROMPTS = ["a reel in G major", "a jig for flute", "a violin", "organ in G"]
SAMPLER = Sampler(steps=3, guidance=2.0)
NOISY = Sampler(steps=3, guidance=2.0, order=1, eta=1.0)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("models")
    save_tiny_music(place / "music")
    save_tiny_clap(place / "clap")
    return place


def algorithms(place: Path, generator: Generator) -> dict[str, Algorithm]:
    clap = TinyClap(str(place / "clap"))
    return {
        "dragon": Dragon(generator, Vendi(clap), sampler=SAMPLER, beta=50.0, micro_batch=6),
        "draft": Draft(generator, Alignment(clap), sampler=SAMPLER, last=2, micro_batch=6),
        "draft-lv": DraftLv(generator, Alignment(clap), sampler=SAMPLER, micro_batch=6),
        "ddpo": Ddpo(generator, Alignment(clap), sampler=NOISY, micro_batch=24),
        "vard": Vard(generator, Alignment(clap), sampler=NOISY, micro_batch=40, value_rollouts=30, value_steps=10),
    }


def made(place: Path, name: str, plan: Plan | None = None) -> Algorithm:
    algorithm = algorithms(place, load(str(place / "music"), Lora(rank=2), "cpu", plan=plan))[name]
    algorithm.reward(algorithm.sampler.sample(algorithm.generator, PROMPTS[:2], Key(0)))  # loads the encoder
    return algorithm


@pytest.mark.parametrize(
    ("name", "pairs", "batch", "micro_batch"),
    [
        ("dragon", 12, 12, 12),
        ("dragon", 8, 40, 40),  # a batch is no larger than what was collected
        ("draft", 12, 12, 3),
        ("draft-lv", 4, 4, 12),  # more is prepared than the batch has
        ("ddpo", 2, 16, 16),  # more is generated than there are prompts
        ("ddpo", 12, 12, 3),
        ("vard", 4, 8, 8),  # and more still for its value
    ],
)
def test_what_is_foreseen_is_taken(place, name, pairs, batch, micro_batch):
    loop = Loop(rounds=1, pairs=pairs, batch=batch, updates=1, micro_batch=micro_batch, sample_every=0)
    foreseen = forecast(made(place, name), loop, PROMPTS, []).worst.bytes
    algorithm = made(place, name)
    _, use = Meter(algorithm.generator.device).measure(lambda: loop.run(algorithm, PROMPTS))
    assert foreseen == pytest.approx(use.peak, rel=0.15)


def test_checkpointing_takes_less(place):
    loop = Loop(rounds=1, pairs=8, batch=8, updates=1, micro_batch=8, sample_every=0)
    kept, again = (
        forecast(made(place, "dragon", plan), loop, PROMPTS, []) for plan in (Plan(), Plan(checkpointing=True))
    )
    training = [next(stage.bytes for stage in each.stages if stage.name == "training") for each in (kept, again)]
    assert training[1] - again.resident < 0.8 * (training[0] - kept.resident)


def test_what_was_there_before_is_not_counted_again():
    weight = torch.zeros(1000, 100)
    assert peak(lambda: weight.T.sum()) >= weight.nbytes
    with Alive([weight]) as alive:
        total = weight.T.sum()
    assert alive.peak == total.nbytes
    assert together([weight, weight.T, weight[1:]]) == weight.nbytes
    assert any(each is weight for each in everything())


def test_there_is_some_memory():
    assert 2**20 < available(torch.device("cpu")) < 2**50


RECIPE = """
model: {place}/music
reward: {{class_path: Vendi, init_args: {{encoder: {{class_path: TinyClap, init_args: {{model: {place}/clap}}}}}}}}
algorithm: {{class_path: Dragon, init_args: {{beta: 50, micro_batch: 1, sampler: {{steps: 2}}}}}}
lora: {{rank: 2}}
prompts: prompts.txt
loop: {{rounds: 1, pairs: 16, batch: 16, micro_batch: 16, sample_count: 1}}
evaluation: {{prompts: prompts.txt, count: 4, subset: 2, players: 1, micro_batch: 2}}
"""


@pytest.fixture
def recipe(place, tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "500")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(place=place))
    return "recipe.yaml"


def test_doctor_says_how_much(recipe, capsys):
    assert cli.run(["doctor", recipe]) == 0
    said = " ".join(re.sub(r"[│┃]", " ", capsys.readouterr().out).split())
    assert re.search(r"\d (MiB|GiB) of tensors in main memory", said)  # tests before this one may have left some
    assert "evaluating" in said


def test_doctor_refuses_what_cannot_fit_and_says_what_would_help(recipe, capsys):
    assert cli.run(["doctor", recipe, "--memory", "0.0005"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("dragontune: expected a run that fits into 0.5 MiB, got one that takes about")
    assert "set plan.checkpointing: true" in said
    assert "lower loop.micro_batch from 16" in said
    assert (
        cli.run(["doctor", recipe, "--memory", "0.0005", "--plan.checkpointing", "true", "--loop.micro_batch", "1"])
        == 2
    )
    assert "checkpointing" not in capsys.readouterr().err


@pytest.mark.parametrize("memory", ["0", "-1", "nan"])
def test_a_card_has_some_memory(recipe, capsys, memory):
    assert cli.run(["doctor", recipe, "--memory", memory]) == 2
    assert "expected --memory in GiB above 0" in capsys.readouterr().err

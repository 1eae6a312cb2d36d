import json
from dataclasses import replace

import pytest
import torch

from dragontune.algorithms.dragon import Dragon
from dragontune.errors import InputError, InterruptedRun, NonFiniteError
from dragontune.health import Health
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.training.listening import Listening, file_name
from dragontune.training.loop import Loop
from dragontune.training.progress import Reporter
from dragontune.training.rounds import deal
from dragontune.training.run_folder import RunFolder
from dragontune.training.tracking import Log
from fakes import Pitch, Tones
from small_runs import TOY_PROMPTS, run_toy, toy_dragon

LOOP = Loop(rounds=4, pairs=8, updates=2, batch=8, lr=1e-3, max_norm=1.0, sample_every=2, sample_count=2)


def tones(shift=0.0):
    return Dragon(Tones(shift), Pitch(), beta=1.0, sampler=Sampler(steps=3))


def listening(algorithm):
    return Listening(algorithm.generator, algorithm.sampler, ("one", "three"), 0)


def weights(algorithm):
    return torch.cat([weight.detach().flatten() for weight in algorithm.parameters()])


def test_the_reward_rises():
    algorithm = toy_dragon()
    loop = Loop(rounds=8, pairs=32, updates=4, batch=32, lr=3e-3, max_norm=1.0)
    history = loop.run(algorithm, ["both"] * 32)
    assert history[-1]["reward"] > history[0]["reward"] + 0.2
    assert [record["round"] for record in history] == list(range(1, 9))
    assert set(history[0]) == {"round", "seconds", "peak_memory", "reward", "loss", "metrics"}
    assert history[0]["metrics"]["grad_norm"] > 0


def test_a_rate_that_falls(monkeypatch):
    rates, step = [], torch.optim.Adam.step

    def spy(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    for decay, expected in (("none", [1e-3] * 4), ("linear", [1e-3, 7.5e-4, 5e-4, 2.5e-4])):
        rates.clear()
        replace(LOOP, decay=decay).run(toy_dragon(), TOY_PROMPTS)
        assert rates == pytest.approx([rate for rate in expected for _ in range(2)])


def test_micro_batches_change_nothing():
    found = []
    for size in (4, 10, 40):
        algorithm = toy_dragon(micro_batch=size)
        Loop(rounds=3, pairs=40, updates=2, batch=40, micro_batch=size, lr=1e-3).run(algorithm, TOY_PROMPTS)
        found.append(weights(algorithm))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-5, rtol=0)


def test_nothing_global_is_touched():
    before = torch.get_rng_state(), torch.is_grad_enabled(), torch.get_default_dtype()
    Loop(rounds=1, pairs=4, updates=1, batch=4).run(toy_dragon(), TOY_PROMPTS)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (torch.is_grad_enabled(), torch.get_default_dtype())


def test_every_round_and_every_update_has_noise_and_rows_of_its_own(monkeypatch):
    keys, dealt = [], []

    def note(name):
        original = getattr(Dragon, name)

        def noted(self, given, key):
            keys.append(key)
            if name == "prepare":
                dealt.append(given.positive.latents)
            return original(self, given, key)

        monkeypatch.setattr(Dragon, name, noted)

    note("collect")
    note("prepare")
    Loop(rounds=3, pairs=6, updates=2, batch=3).run(toy_dragon(), TOY_PROMPTS)
    assert len(keys) == len(set(keys)) == 3 * (1 + 2)
    assert len(torch.cat(dealt).unique(dim=0)) == 3 * 6


def test_gradients_do_not_depend_on_the_environment(monkeypatch):
    def norm():
        return Loop(rounds=1, pairs=4, updates=1, batch=4).run(toy_dragon(), TOY_PROMPTS)[0]["metrics"]["grad_norm"]

    expected = norm()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert norm() == expected


def test_deal_uses_every_card_before_any_again():
    key = Key(0)
    cards = [card for start in range(0, 30, 3) for card in deal(key, 10, start, 3)]
    assert all(sorted(cards[i : i + 10]) == list(range(10)) for i in (0, 10, 20))
    assert cards[:10] != cards[10:20]
    assert deal(key, 10, 7, 8) == cards[7:15]
    assert sorted(deal(key, 4, 0, 8)) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_what_is_written(tmp_path):
    algorithm, folder = tones(), RunFolder(tmp_path)
    history = LOOP.run(algorithm, TOY_PROMPTS, folder, listening=listening(algorithm))
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == history
    assert folder.history() == history
    found = sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / "samples").rglob("*.flac"))
    names = [f"{file_name(i, prompt)}.flac" for i, prompt in enumerate(("one", "three"))]
    assert found == [f"samples/round-{number:06d}/{name}" for number in (0, 2, 4) for name in names]


def test_an_adapter_that_does_nothing_is_reported(tmp_path):
    algorithm = tones()
    loop = Loop(rounds=1, pairs=4, updates=1, batch=4, lr=1e-9, sample_every=1)
    with pytest.warns(UserWarning, match="NOTHING AUDIBLE"):
        loop.run(algorithm, TOY_PROMPTS, RunFolder(tmp_path), listening=listening(algorithm))


def test_resuming_finds_the_log_and_the_bits_of_a_whole_run(tmp_path):
    whole = run_toy(RunFolder(tmp_path / "whole"), LOOP)
    parts = RunFolder(tmp_path / "parts")
    run_toy(parts, Loop(**{**vars(LOOP), "rounds": 2}))
    with (parts.path / "log.jsonl").open("a") as file:
        file.write('{"round": 3, "rew')  # torn, and of a round that no checkpoint has
    assert run_toy(parts, LOOP) == whole
    numbers = [record["round"] for record in parts.history()]
    assert numbers == [1, 2, 3, 4]


class Stop(Reporter):
    """Raises what a signal raises, when the n-th round is about to start."""

    def __init__(self, round):
        self.round = round

    def __call__(self, phase, done, total, note=""):
        if done == self.round:
            raise KeyboardInterrupt


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("place", ["start", "collect", "prepare", "loss", "samples", "log", "checkpoint"])
def test_an_interruption_anywhere_saves_and_resumes_exactly(tmp_path, monkeypatch, place, every):
    loop = Loop(**{**vars(LOOP), "checkpoint_every": every})
    whole = tones()
    LOOP.run(whole, TOY_PROMPTS)
    algorithm, folder = tones(), RunFolder(tmp_path)
    owner, name, call = {
        "start": (None, "", 0),
        "collect": (Dragon, "collect", 3),
        "prepare": (Dragon, "prepare", 6),
        "loss": (Dragon, "loss", 6),
        "samples": (Tones, "decode", 4),
        "log": (Log, "append", 3),
        "checkpoint": (RunFolder, "checkpoints", 3),
    }[place]
    with monkeypatch.context() as patch:
        calls = []

        def interrupted(*arguments, **named):
            calls.append(1)
            if len(calls) == call:
                raise KeyboardInterrupt
            return original(*arguments, **named)

        if owner is not None:
            original = getattr(owner, name)
            patch.setattr(owner, name, interrupted)
        with pytest.raises(InterruptedRun, match="rounds"):
            loop.run(
                algorithm,
                TOY_PROMPTS,
                folder,
                listening=listening(algorithm),
                report=Stop(2) if owner is None else None,
            )
    resumed = tones()
    loop.run(resumed, TOY_PROMPTS, folder, listening=listening(resumed))
    assert torch.equal(weights(resumed), weights(whole))
    assert [record["round"] for record in folder.history()] == [1, 2, 3, 4]


@pytest.mark.parametrize("what", ["reward", "loss", "gradient norm"])
def test_a_number_that_is_not_finite_stops_and_saves(tmp_path, monkeypatch, what):
    algorithm, folder, nan = tones(), RunFolder(tmp_path), float("nan")
    collect, loss = Dragon.collect, Dragon.loss
    calls = []

    def broken_collect(self, prompts, key):
        calls.append(1)
        experience, metrics = collect(self, prompts, key)
        return experience, {**metrics, "reward": nan if what == "reward" and len(calls) == 2 else metrics["reward"]}

    def broken_loss(self, batch):
        value, metrics = loss(self, batch)
        if len(calls) < 2 or what == "reward":
            return value, metrics
        return (value * nan if what == "loss" else torch.sqrt(value * 0) * value), metrics

    monkeypatch.setattr(Dragon, "collect", broken_collect)
    monkeypatch.setattr(Dragon, "loss", broken_loss)
    said = "the reward became nan in round 2" if what == "reward" else f"in round 2 since the {what} was nan"
    with pytest.raises(NonFiniteError, match=said):
        LOOP.run(algorithm, TOY_PROMPTS, folder, health=Health(skips=1))
    state = folder.checkpoints(2).latest()
    assert state is not None
    assert state.round == 1
    assert all(value.isfinite().all() for value in state.tensors.values())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("rounds", 0), ("pairs", -1), ("lr", -1e-4), ("lr", float("nan")), ("lr", 10.0), ("max_norm", 0.0)],
        *[("batch", 0), ("micro_batch", 0), ("seed", -1), ("keep", 0), ("sample_every", -1), ("rounds", 10**9)],
    ],
)
def test_absurd_numbers_are_refused(field, value):
    with pytest.raises(InputError, match=f"loop.{field}"):
        Loop(**{field: value})


def test_fewer_rounds_than_are_done_is_refused(tmp_path):
    run_toy(RunFolder(tmp_path), LOOP)
    with pytest.raises(InputError, match=r"loop.rounds of at least 4"):
        run_toy(RunFolder(tmp_path), Loop(**{**vars(LOOP), "rounds": 3}))

"""Gradients of rewards, of single items and of whole sets, carried to latents a micro-batch at a time."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from chains import Along, Chain, Near, Together, first_order, gradient
from dragontune import cli
from dragontune.algorithms.draft import Draft
from dragontune.algorithms.objectives import Capped, Maximise, Objective
from dragontune.algorithms.refl import Refl
from dragontune.algorithms.slopes import Judge, floats, rebuilt
from dragontune.commands import parsing
from dragontune.data import Samples
from dragontune.encoders.base import Embeddings, Encoder
from dragontune.encoders.clap import TinyClap
from dragontune.encoders.latents import Latents
from dragontune.errors import InputError
from dragontune.generators.adapters import Lora
from dragontune.generators.pretrained import load
from dragontune.media.audio import Audio
from dragontune.reference import Reference
from dragontune.rewards.alignment import Alignment
from dragontune.rewards.base import DifferentiableReward, DistributionReward, Reward
from dragontune.rewards.combine import DifferentiableSum, Parts, Sum
from dragontune.rewards.crop import Crop, InstanceCrop, SetCrop
from dragontune.rewards.diversity import Vendi
from dragontune.rewards.frechet import SetFrechet, SongFrechet
from dragontune.rewards.kernel import SetKernel, SongKernel
from dragontune.rewards.signal import Tempo
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.testing import Toy, ToyEncoder, check_reward
from dragontune.training.loop import Loop
from small_runs import PROMPTS, make_workplace
from tiny_models import save_stable_audio, save_tiny_clap, save_tiny_music

COUNT = 7


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_tiny_music(folder / "music")
    save_tiny_clap(folder / "clap")
    save_stable_audio(folder / "stable")
    return folder


def rewards(place: Path) -> dict[str, Reward]:
    clap, latents = TinyClap(str(place / "clap")), Latents(str(place / "music"))
    noise = torch.randn(20, 1, 16384, generator=torch.Generator().manual_seed(0))
    songs, frames = (Reference.build(encoder, [Audio(0.1 * noise, 16000)], "noise") for encoder in (clap, latents))
    return {
        "set frechet": SetFrechet(clap, songs),
        "set frechet of latents": SetFrechet(latents, frames),
        "set kernel": SetKernel(clap, songs),
        "vendi": Vendi(clap),
        "vendi of latents": Vendi(latents),
        "song frechet": SongFrechet(latents, frames),
        "song kernel": SongKernel(clap, songs, bandwidth=1.0),
        "alignment": Alignment(clap),
        "sum": DifferentiableSum(
            {"set": SetFrechet(clap, songs), "latents": SetFrechet(latents, frames), "alignment": Alignment(clap)},
            weights={"alignment": 2.0},
            scales={"set": 0.3},
        ),
    }


NAMES = [
    "set frechet",
    "set frechet of latents",
    "set kernel",
    "vendi",
    "vendi of latents",
    "song frechet",
    "song kernel",
    "alignment",
    "sum",
]


def close(found: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    """Relative to the size of the whole gradient."""
    assert found.shape == expected.shape
    assert (found - expected).norm() <= relative * expected.norm()
    assert expected.norm() > 0


@pytest.mark.parametrize("micro_batch", [1, 3, COUNT])
@pytest.mark.parametrize("name", NAMES)
def test_in_parts_it_is_the_gradient_of_the_whole_set(place: Path, name: str, micro_batch: int):
    generator, reward = load(str(place / "music")), rewards(place)[name]
    latents = 0.5 * Key(0).normal(range(COUNT), generator.latent_shape)
    prompts = tuple(PROMPTS[i % 4] for i in range(COUNT))
    leaf = latents.clone().requires_grad_()
    whole = reward(Samples(prompts, leaf, generator.decode(leaf)))
    (expected,) = torch.autograd.grad(-whole.double().mean(), leaf)
    found = Judge(generator, reward, Maximise(), micro_batch).slopes(prompts, latents, torch.arange(COUNT), Key(1))
    close(found.slope / COUNT, expected)
    assert found.score.mean().item() == pytest.approx(whole.double().mean().item(), rel=1e-5)
    assert found.loss.mean().item() == pytest.approx(-whole.double().mean().item(), rel=1e-5)


@pytest.mark.parametrize("objective", [Maximise(), Capped(5.0, 0.1)], ids=lambda o: type(o).__name__)
def test_the_whole_algorithm_on_a_set_is_plain_backpropagation(place: Path, objective: Objective):
    """Through decoder, sampler and adapter of the real classes, against one graph of everything."""
    reward, sampler = rewards(place)["set frechet"], Sampler(steps=4, guidance=2.0)
    generator = load(str(place / "music"), Lora(rank=2))
    with torch.no_grad():
        for weight in generator.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    algorithm = Draft(generator, reward, sampler, last=2, objective=objective, micro_batch=2)  # pyright: ignore
    slopes, _ = gradient(algorithm, PROMPTS, Key(0), micro_batch=3)
    samples = sampler.sample(generator, PROMPTS, Key(0).fold("update", "noise"), differentiate_last=2)
    plain = torch.autograd.grad(objective.losses(reward(samples)).mean(), list(generator.parameters()))
    close(torch.cat([s.flatten() for s in slopes]), torch.cat([p.flatten() for p in plain]), 1e-4)


def test_stable_audio_through_another_sample_rate(place: Path):
    """800 Hz stereo into an encoder at 16 kHz: gradients pass the mix-down and the resampling."""
    generator = load(str(place / "stable"), Lora(rank=2))
    algorithm = Draft(
        generator, Alignment(TinyClap(str(place / "clap"))), Sampler(steps=3, guidance=3.0), micro_batch=2
    )
    loop = Loop(rounds=2, pairs=3, updates=1, batch=3, micro_batch=2, lr=1e-3, sample_every=0)
    before = [weight.detach().clone() for weight in generator.parameters()]
    history = loop.run(algorithm, PROMPTS)
    assert all(record["metrics"]["grad_norm"] > 0 for record in history)
    assert any(not torch.equal(a, b) for a, b in zip(before, generator.parameters(), strict=True))


@pytest.mark.parametrize("name", ["music", "stable"])
def test_bf16_changes_little_and_leaves_weights_in_float32(place: Path, name: str):
    reward, sampler = Alignment(TinyClap(str(place / "clap"))), Sampler(steps=3, guidance=2.0)
    found = {}
    for precision in ("float32", "bf16"):
        generator = load(str(place / name), Lora(rank=2), precision=precision)
        algorithm = Draft(generator, reward, sampler, last=2)
        slopes, _ = gradient(algorithm, PROMPTS, Key(0), micro_batch=2)
        found[precision] = torch.cat([slope.flatten() for slope in slopes])
        assert all(weight.dtype == torch.float32 for weight in generator.parameters())
        assert sampler.sample(generator, PROMPTS, Key(0)).latents.dtype == torch.float32
    difference = (found["bf16"] - found["float32"]).norm() / found["float32"].norm()
    assert 0 < difference < 0.2


@pytest.mark.parametrize("name", ["set frechet", "vendi"])
def test_a_set_through_another_sample_rate(place: Path, name: str):
    """Both passes resample by the same filter."""
    generator, reward = load(str(place / "stable")), rewards(place)[name]
    latents = 0.5 * Key(0).normal(range(COUNT), generator.latent_shape)
    prompts = tuple(PROMPTS[i % 4] for i in range(COUNT))
    leaf = latents.clone().requires_grad_()
    (expected,) = torch.autograd.grad(-reward(Samples(prompts, leaf, generator.decode(leaf))), leaf)
    found = Judge(generator, reward, Maximise(), 2).slopes(prompts, latents, torch.arange(COUNT), Key(1))
    close(found.slope / COUNT, expected, 5e-5)


def test_only_the_adapter_gets_gradients(place: Path):
    generator = load(str(place / "music"), Lora(rank=2))
    algorithm = Draft(generator, rewards(place)["vendi"], Sampler(steps=3), last=2)  # pyright: ignore
    Loop(rounds=1, pairs=4, updates=1, batch=4, lr=1e-3, sample_every=0).run(algorithm, PROMPTS)
    trained = {id(weight) for weight in generator.parameters()}
    parts = (generator.network, generator.codec.network, generator.pipeline.text_encoder)  # pyright: ignore
    for part in parts:
        for weight in part.parameters():
            assert (weight.grad is not None) == (id(weight) in trained)


# items of different lengths


@dataclass(frozen=True)
class Ragged(Encoder):
    """As many frames as the prompt, which stands in the first latent, says."""

    name: str = "ragged"
    dim: int = 2

    @property
    def digest(self) -> str:
        return "r" * 64

    def embed(self, media: object) -> Embeddings:
        assert isinstance(media, Tensor)
        items = [
            row[None].expand(2 + i % 3, 2) * torch.linspace(1, 2, 2 + i % 3)[:, None] for i, row in enumerate(media)
        ]
        return Embeddings.join([Embeddings.of(item[None]) for item in items])

    def encode(self, samples: Samples) -> Embeddings:
        """The length by the prompt, whatever the batch."""
        assert isinstance(samples.media, Tensor)
        items = []
        for prompt, row in zip(samples.prompts, samples.media, strict=True):
            count = int(prompt)
            items.append(Embeddings.of((row[None] * torch.linspace(1, 2, count)[:, None])[None]))
        return Embeddings.join(items)


@pytest.mark.parametrize("micro_batch", [1, 2, COUNT])
def test_items_of_different_lengths(micro_batch: int):
    points = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    reference = Reference.build(ToyEncoder(), [points], "points")
    reward = SetFrechet(Ragged(), Reference(**{**reference.__dict__, "encoder": "ragged", "encoder_digest": "r" * 64}))
    latents, prompts = Key(0).normal(range(COUNT), (2,)), tuple(str(2 + (5 * i) % 4) for i in range(COUNT))
    leaf = latents.clone().requires_grad_()
    (expected,) = torch.autograd.grad(-reward(Samples(prompts, leaf, leaf)), leaf)
    found = Judge(Toy(), reward, Maximise(), micro_batch).slopes(prompts, latents, torch.arange(COUNT), Key(1))
    close(found.slope / COUNT, expected)


def test_floats_and_rebuilt_are_inverse():
    column = Parts({"a": torch.ones(3), "b": Embeddings.of(torch.zeros(3, 2, 2)), "n": torch.arange(3)})
    found = list(floats(column))
    assert [tuple(each.shape) for each in found] == [(3,), (3, 2, 2)]
    again = rebuilt(column, iter([each + 1 for each in found]))
    assert torch.equal(again.members["b"].frames, torch.ones(3, 2, 2))
    assert again.members["n"] is column.members["n"]
    assert isinstance(again, Parts)


@dataclass(frozen=True)
class Waves(DistributionReward[Tensor], DifferentiableReward[Tensor]):
    """Complex features."""

    def encode(self, samples: Samples) -> Tensor:
        assert isinstance(samples.media, Tensor)
        return torch.fft.fft(samples.media.tanh())

    def score(self, features: Tensor) -> Tensor:
        return features.abs().var(0).sum() + (features.mean(0) * (1 + 2j)).real.sum()


def test_complex_features():
    points = Key(0).normal(range(COUNT), (2,))
    leaf = points.clone().requires_grad_()
    (expected,) = torch.autograd.grad(-Waves()(Samples(("",) * COUNT, leaf, leaf)), leaf)
    found = Judge(Toy(), Waves(), Maximise(), 2).slopes(("",) * COUNT, points, torch.arange(COUNT), Key(1))
    close(found.slope / COUNT, expected)


# processes


TEXTS = tuple("abcde")


def both(rank: int | None) -> Tensor:
    torch.set_num_threads(1)
    loop = Loop(rounds=2, pairs=5, updates=2, batch=5, micro_batch=2, lr=1e-2, sample_every=0)
    chain = Chain(3)
    history = loop.run(Draft(chain, Together(), first_order(3), last=2, renoised=1, micro_batch=2), TEXTS)
    lone = Chain(3)
    loop.run(Draft(lone, Near(), first_order(3), last=3), TEXTS)
    numbers = torch.tensor([history[-1]["reward"], history[-1]["loss"], history[-1]["metrics"]["generations"]])
    weights = [weight.detach().flatten() for weight in (*chain.parameters(), *lone.parameters())]
    return torch.cat([numbers.double(), *weights])


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(both(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path):
    mp.spawn(worker, (str(tmp_path),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    alone = both(None)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt", weights_only=True), alone, atol=1e-5, rtol=1e-5)


# crops


@dataclass
class Lengths:
    decoded: list[int] = field(default_factory=list)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_crop_decodes_its_window_and_nothing_else(place: Path, share: float):
    generator, clap, seen = load(str(place / "music")), TinyClap(str(place / "clap")), Lengths()
    decode = generator.decode

    def spy(latents: Tensor):
        seen.decoded.append(latents.shape[-1])
        return decode(latents)

    object.__setattr__(generator, "decode", spy)
    reward = InstanceCrop(Alignment(clap), share=share)
    latents = 0.5 * Key(0).normal(range(COUNT), generator.latent_shape)
    prompts = tuple(PROMPTS[i % 4] for i in range(COUNT))
    judge = Judge(generator, reward, Maximise(), 3)
    found = judge.slopes(prompts, latents, torch.arange(COUNT), Key(1))
    assert set(seen.decoded) == {round(16 * share)}
    touched = (found.slope.abs().sum(1) > 0).sum(1)
    assert (touched == round(16 * share)).all()
    places = Key(1).fold("crop").uniform(range(COUNT))
    window = reward.window(latents, places).requires_grad_()
    (expected,) = torch.autograd.grad(-Alignment(clap)(Samples(prompts, window, decode(window))).sum(), window)
    close(reward.window(found.slope, places), expected)
    again = judge.slopes(prompts, latents, torch.arange(COUNT), Key(2))
    assert not torch.equal(again.slope > 0, found.slope > 0)


def test_crops_are_rewards(place: Path):
    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    reference = Reference.build(ToyEncoder(), [points], "points")
    draws = torch.Generator().manual_seed(1)
    samples = Samples(
        ("left", "right", "x") * 2, torch.randn(6, 2, 8, generator=draws), torch.randn(6, 2, generator=draws)
    )
    check_reward(InstanceCrop(Alignment(ToyEncoder()), share=1.0), samples)
    check_reward(SetCrop(SetFrechet(ToyEncoder(), reference), share=1.0), samples)
    clap = TinyClap(str(place / "clap"))
    clips = Audio(0.1 * torch.randn(4, 1, 32768, generator=draws), 16000)
    crop = InstanceCrop(Alignment(clap), share=0.5, seed=4)
    asked = Samples(PROMPTS, torch.empty(4, 0), clips)
    check_reward(crop, asked)
    cut = crop.window(clips.waveform, torch.cat([Key(4).fold("crop", p).uniform([0]) for p in PROMPTS]))
    torch.testing.assert_close(crop(asked), Alignment(clap)(Samples(PROMPTS, torch.empty(4, 0), Audio(cut, 16000))))


def test_windows_reach_both_ends():
    crop = InstanceCrop(Along(), share=0.3)
    values = torch.arange(10.0).expand(2, 10)
    assert crop.window(values, torch.tensor([0.0, 0.999])).tolist() == [[0, 1, 2], [7, 8, 9]]


def test_crops_refuse_what_they_cannot_do():
    for make, said in (
        (lambda: InstanceCrop(Along(), share=0.0), "share above 0"),
        (lambda: InstanceCrop(Tempo()), "expected a DifferentiableReward in InstanceCrop, got Tempo"),
        (lambda: InstanceCrop(Together()), "use SetCrop"),
        (lambda: SetCrop(Along()), "use InstanceCrop"),
        (lambda: DifferentiableSum({"some": InstanceCrop(Along())}), "put the sum into a SetCrop"),
    ):
        with pytest.raises(InputError, match=said):
            make()
    assert issubclass(InstanceCrop, Crop)


def test_sums_with_gradients():
    members: dict[str, Reward] = {"near": Near(), "along": Along()}
    points = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    samples = Samples(TEXTS, points, points)
    both = DifferentiableSum(members, weights={"along": 3.0}, means={"near": 0.5})
    check_reward(both, samples)
    torch.testing.assert_close(both(samples), Sum(members, weights={"along": 3.0}, means={"near": 0.5})(samples))
    with pytest.raises(InputError, match=r"DifferentiableRewards in DifferentiableSum, got 'tempo' \(Tempo\)"):
        DifferentiableSum({**members, "tempo": Tempo()})


# a black box is refused, wherever it comes from


RECIPE = """\
model: music
lora: {rank: 2, alpha: 2}
reward: {class_path: REWARD}
algorithm: {class_path: ALGORITHM, init_args: {sampler: {steps: 3}}}
loop: {rounds: 1, pairs: 4, updates: 1, batch: 4, lr: 1.0e-3, sample_every: 0}
prompts: prompts.txt
"""


@pytest.mark.parametrize("algorithm", ["Draft", "DraftLv", "AlignProp", "Refl"])
def test_a_recipe_with_a_black_box_is_refused(tmp_path, monkeypatch, capsys, algorithm: str):
    make_workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = RECIPE.replace("REWARD", "Tempo").replace("ALGORITHM", algorithm)
    (tmp_path / "black-box.yaml").write_text(text)
    capsys.readouterr()
    for command in ("tune", "doctor"):
        assert cli.run([command, "black-box.yaml"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"expected a DifferentiableReward as reward of {algorithm}, got Tempo" in said
        assert "choose another reward, or" in said
    assert not (tmp_path / "runs" / "black-box" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("last: 4", "last from 1 to the sampler's 3 steps"),
        ("last: 0", "last from 1"),
        ("last: some", "last"),
        ("renoised: -1", "renoised of 0 or more"),
        ("objective: {class_path: Capped}", "value"),
        ("kl: -1", "kl finite"),
    ],
)
def test_wrong_numbers_in_a_recipe(tmp_path, monkeypatch, capsys, fields: str, said: str):
    make_workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    reward = "{class_path: Alignment, init_args: {encoder: {class_path: TinyClap, init_args: {model: clap}}}}"
    text = RECIPE.replace("{class_path: REWARD}", reward).replace("ALGORITHM", "Draft")
    (tmp_path / "wrong.yaml").write_text(text.replace("sampler: {steps: 3}", f"sampler: {{steps: 3}}, {fields}"))
    capsys.readouterr()
    assert cli.run(["tune", "wrong.yaml"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert "Traceback" not in error


def test_crops_and_sums_in_a_recipe(tmp_path, monkeypatch, capsys):
    """Also: each member of a sum is in the log."""
    make_workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    clap = "encoder: {class_path: TinyClap, init_args: {model: clap}}"
    frechet = f"{{class_path: SetFrechet, init_args: {{{clap}, exemplars: real}}}}"
    alignment = f"{{class_path: Alignment, init_args: {{{clap}}}}}"
    both = f"{{class_path: DifferentiableSum, init_args: {{rewards: {{set: {frechet}, fit: {alignment}}}}}}}"
    for number, reward in enumerate(
        (
            both,
            f"{{class_path: SetCrop, init_args: {{share: 0.5, reward: {both}}}}}",
            f"{{class_path: InstanceCrop, init_args: {{share: 0.5, reward: {alignment}}}}}",
        )
    ):
        text = RECIPE.replace("{class_path: REWARD}", reward).replace("ALGORITHM", "Draft")
        (tmp_path / f"{number}.yaml").write_text(text)
        assert cli.run(["tune", f"{number}.yaml"]) == 0, capsys.readouterr().err
    (record,) = map(json.loads, (tmp_path / "runs" / "0" / "log.jsonl").read_text().splitlines())
    members = [record["metrics"][f"member_{name}"] for name in ("set", "fit")]
    assert sum(members) == pytest.approx(record["reward"], rel=1e-5)


@pytest.mark.parametrize(
    ("algorithm", "reward", "said"),
    [
        ("Draft", "{class_path: Sum, init_args: {rewards: {a: {class_path: Tempo}}}}", "use DifferentiableSum"),
        ("Draft", "{class_path: Tempo}", "or Dragon, Vard or Ddpo as algorithm"),
        (
            "Vard",
            "{class_path: SetFrechet, init_args: {encoder: {class_path: Latents}, exemplars: real}}",
            "whole sets",
        ),
        ("Ddpo", "{class_path: Vendi, init_args: {encoder: {class_path: Latents}}}", "expected an InstanceReward"),
    ],
)
def test_the_way_out_is_named(tmp_path, monkeypatch, capsys, algorithm: str, reward: str, said: str):
    make_workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = RECIPE.replace("{class_path: REWARD}", reward).replace("ALGORITHM", algorithm)
    (tmp_path / "wrong.yaml").write_text(text.replace("{steps: 3}", "{steps: 3, order: 1, eta: 1.0}"))
    capsys.readouterr()
    assert cli.run(["tune", "wrong.yaml"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def test_an_objective_in_a_recipe_is_the_one_that_is_named(tmp_path, monkeypatch):
    """Nothing of ReFL's default is left in it."""
    make_workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    reward = "{class_path: Alignment, init_args: {encoder: {class_path: TinyClap, init_args: {model: clap}}}}"
    text = RECIPE.replace("{class_path: REWARD}", reward).replace("ALGORITHM", "Refl")
    objective = "sampler: {steps: 3}, objective: {class_path: Capped, init_args: {value: 0.7}}"
    (tmp_path / "refl.yaml").write_text(text.replace("sampler: {steps: 3}", objective))
    recipe, _, _ = parsing.read_recipe(tmp_path / "refl.yaml", [])
    made = recipe.build()
    assert isinstance(made, Refl)
    assert made.objective == Capped(0.7, 1.0)


def test_a_whole_run_from_a_recipe(tmp_path, monkeypatch):
    make_workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = (tmp_path / "recipe.yaml").read_text()
    swapped = "{class_path: DraftLv, init_args: {last: 2, objective: {class_path: Capped, init_args: {value: 0}}, "
    text = text.replace("{class_path: Dragon, init_args: {beta: 50, ", swapped)
    (tmp_path / "draft.yaml").write_text(text)
    assert cli.run(["tune", "draft.yaml"]) == 0
    assert (tmp_path / "runs" / "draft" / "report" / "index.html").is_file()


def test_pyright_refuses_a_black_box(tmp_path: Path):
    """The good line passes, the bad one is named."""
    file = tmp_path / "snippet.py"
    file.write_text(
        "from dragontune.algorithms.draft import Draft\n"
        "from dragontune.algorithms.alignprop import AlignProp\n"
        "from dragontune.rewards.aesthetics import Aesthetics\n"
        "from dragontune.rewards.signal import Tempo\n"
        "from dragontune.testing import Toy\n"
        "good = Draft(Toy(), Aesthetics())\n"
        "bad = Draft(Toy(), Tempo())\n"
        "worse = AlignProp(Toy(), Tempo())\n"
    )
    checked = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(file)], capture_output=True, text=True
    )
    errors = [line for line in checked.stdout.splitlines() if "error:" in line]
    assert [line.split(":")[1] for line in errors] == ["7", "8"], checked.stdout + checked.stderr
    assert all('"Tempo"' in line or "reportArgumentType" in line for line in errors)

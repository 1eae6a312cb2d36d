"""The aesthetics reward: regression against closed forms, heads on disk, correlations, the rule of clean sound."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from dragontune.commands import ratings
from dragontune.data import Samples
from dragontune.embedded import locate
from dragontune.encoders.base import Embeddings
from dragontune.errors import InputError, NonFiniteError
from dragontune.evaluation.correlation import groups, mean_srcc, overall, plcc, ranks, srcc, within_prompts
from dragontune.media import audio
from dragontune.media.audio import Audio
from dragontune.rewards.aesthetics import Aesthetics, Head, Pooling, pool
from dragontune.rewards.clean_sound import CleanSound, irregularity, mistuning
from dragontune.rewards.regression import KernelRidge, NadarayaWatson
from dragontune.seeding import Key
from dragontune.testing import ToyEncoder, check_reward

RATE = 16000


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def head(encoder: ToyEncoder, kind: str = "ridge", pooling: Pooling = "mean") -> Head:
    points, labels = pool(encoder.embed(draw(20, 2, seed=1).float()), pooling), draw(20, seed=2)
    ridge = KernelRidge.fit(points, labels, 0.5, 0.1)
    regression = ridge if kind == "ridge" else NadarayaWatson.fit(points, labels, 0.5)
    return Head(regression, pooling, encoder.name, encoder.digest, "toy.csv", {"files": 20, "plcc": 0.5})


def samples() -> Samples:
    points = draw(6, 2, seed=3).float()
    return Samples(("left", "right", "x") * 2, points, points)


def test_kernel_ridge_is_the_closed_form():
    points, labels, queries = draw(40, 5), draw(40, seed=1), draw(9, 5, seed=2)
    fitted = KernelRidge.fit(points, labels, bandwidth=1.7, ridge=0.3)
    z, y, q = points.numpy(), labels.numpy(), queries.numpy()

    def kernel(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(2) / (2 * 1.7**2))

    expected = kernel(q, z) @ np.linalg.inv(kernel(z, z) + 0.3 * np.eye(40)) @ (y - y.mean()) + y.mean()
    np.testing.assert_allclose(fitted.predict(queries).numpy(), expected, atol=1e-9)


def test_kernel_ridge_is_that_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.kernel_ridge")
    points, labels, queries = draw(60, 8), draw(60, seed=1), draw(15, 8, seed=2)
    other = sklearn.KernelRidge(alpha=0.2, kernel="rbf", gamma=1 / (2 * 2.5**2))
    other.fit(points.numpy(), (labels - labels.mean()).numpy())
    expected = other.predict(queries.numpy()) + labels.mean().item()
    fitted = KernelRidge.fit(points, labels, bandwidth=2.5, ridge=0.2)
    np.testing.assert_allclose(fitted.predict(queries).numpy(), expected, atol=1e-6)


def test_a_small_ridge_interpolates_and_far_away_is_the_mean():
    points, labels = draw(10, 3), draw(10, seed=1)
    fitted = KernelRidge.fit(points, labels, bandwidth=0.5, ridge=1e-9)
    torch.testing.assert_close(fitted.predict(points), labels, atol=1e-5, rtol=0)
    assert fitted.predict(points + 1000).tolist() == pytest.approx([labels.mean().item()] * 10)


def test_nadaraya_watson_is_the_weighted_mean():
    points, labels, queries = draw(10, 3), draw(10, seed=1), draw(4, 3, seed=2)
    weights = np.exp(-((queries[:, None] - points) ** 2).sum(2).numpy() / (2 * 0.8**2))
    expected = (weights * labels.numpy()).sum(1) / weights.sum(1)
    fitted = NadarayaWatson.fit(points, labels, 0.8)
    np.testing.assert_allclose(fitted.predict(queries).numpy(), expected, atol=1e-9)
    far = points[:1] + 1000 * (points[:1] - points.mean(0))
    nearest = labels[torch.cdist(far, points).argmin()]
    assert fitted.predict(far).item() == pytest.approx(nearest.item(), abs=1e-6), "no 0/0 far away"


@pytest.mark.parametrize(("bandwidth", "ridge"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (float("nan"), 1.0)])
def test_regression_refuses_what_makes_no_sense(bandwidth: float, ridge: float):
    with pytest.raises(InputError):
        KernelRidge.fit(draw(4, 2), draw(4), bandwidth, ridge)


@pytest.mark.parametrize("kind", ["ridge", "nadaraya-watson"])
@pytest.mark.parametrize("pooling", ["mean", "mean-std"])
def test_contract_and_disk(tmp_path: Path, kind: str, pooling: Pooling):
    encoder = ToyEncoder(frames=3)
    made = head(encoder, kind, pooling)
    check_reward(Aesthetics(encoder, made), samples())
    made.save(tmp_path / "head.safetensors")
    stored = Aesthetics(encoder, tmp_path / "head.safetensors")
    assert stored.fitted.kind == kind
    assert stored.fitted.digest == made.digest
    assert stored.fitted.about == made.about
    torch.testing.assert_close(stored(samples()), Aesthetics(encoder, made)(samples()), atol=1e-12, rtol=0)
    torch.testing.assert_close(stored(samples()), made.predict(encoder.embed(samples().latents)))


def test_gradients_are_those_of_finite_differences():
    reward = Aesthetics(ToyEncoder(frames=3), head(ToyEncoder(frames=3), pooling="mean-std"))
    points = draw(3, 2, seed=5).requires_grad_()

    def score(media: Tensor) -> Tensor:
        frames = torch.stack([media, media * 1.5, media**2], 1)
        return reward.fitted.regression.predict(pool(Embeddings.of(frames), "mean-std"))

    assert torch.autograd.gradcheck(score, (points,), atol=1e-5)


def test_another_encoder_and_a_damaged_file_are_refused(tmp_path: Path):
    encoder = ToyEncoder(frames=3)
    with pytest.raises(InputError, match="expected the encoder of the head"):
        Aesthetics(ToyEncoder(frames=2), head(encoder))(samples())
    path = tmp_path / "head.safetensors"
    made = head(encoder)
    made.save(path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="digest"):
        Aesthetics(encoder, path)(samples())
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"expected the head.*fit-aesthetics"):
        Aesthetics(encoder, path)(samples())
    with pytest.raises(InputError, match="nowhere"):
        Aesthetics(encoder, "nowhere.safetensors")(samples())
    assert replace(made, source="elsewhere").digest != made.digest


def test_pooling_ignores_padding():
    frames = draw(2, 5, 3)
    padded = Embeddings(torch.cat([frames, 99 * torch.ones(2, 2, 3).double()], 1), torch.tensor([5, 5]))
    torch.testing.assert_close(pool(padded, "mean-std"), pool(Embeddings.of(frames), "mean-std"))
    raw = np.concatenate([frames.numpy().mean(1), frames.numpy().std(1)], 1)
    np.testing.assert_allclose(
        pool(padded, "mean-std").numpy(), raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-9
    )


def test_correlations_are_those_of_scipy():
    a, b = draw(50), draw(50, seed=1).round()
    assert plcc(a, b) == pytest.approx(stats.pearsonr(a, b)[0])
    assert srcc(a, b) == pytest.approx(stats.spearmanr(a, b)[0])
    np.testing.assert_allclose(ranks(b).numpy(), stats.rankdata(b))
    assert plcc(a, torch.ones(50).double()) is None
    assert srcc(a[:1], b[:1]) is None
    for small in (1e-7, 1e-100):
        assert plcc(small * a, small * b) == pytest.approx(plcc(a, b))
    assert plcc(a, torch.full((50,), 0.1).double()) is None
    assert plcc(a, 1e9 + 1e-6 * torch.zeros(50).double()) is None


def test_within_prompts_counts_only_what_can_be_ranked():
    prompts = ["a"] * 3 + ["b"] * 3 + ["c"] * 2 + ["d"] * 3
    truth = torch.tensor([1.0, 2, 3, 1, 2, 3, 1, 2, 5, 5, 5])
    guess = torch.tensor([1.0, 2, 3, 3, 2, 1, 1, 2, 1, 2, 3])
    assert mean_srcc(guess, truth, prompts) == pytest.approx(0.0), "a: 1, b: -1, c: too few, d: constant"
    guess[3:6] = 0.0
    assert mean_srcc(guess, truth, prompts) == pytest.approx(0.5), "constant predictions count as 0"
    assert mean_srcc(guess[6:], truth[6:], prompts[6:]) is None
    assert [rows.tolist() for rows in groups(["x", "y", "x"])] == [[0, 2], [1]]


def test_intervals_cover_the_truth_and_a_single_prompt_knows_nothing():
    hits = 0
    for seed in range(40):
        truth = draw(40, 4, seed=seed)
        guess = 0.8 * truth + 0.6 * draw(40, 4, seed=1000 + seed)
        prompts = [str(i // 4) for i in range(160)]
        found = overall(guess.flatten(), truth.flatten(), prompts, Key(seed), times=200)
        hits += found.low <= 0.8 <= found.high
        ranked = within_prompts(guess.flatten(), truth.flatten(), prompts, Key(seed), times=200)
        assert ranked.value is not None
        assert ranked.low < ranked.value < ranked.high
    assert hits >= 34
    one = overall(draw(5), draw(5, seed=1), ["x"] * 5, Key(0))
    assert (one.low, one.high) == (-1.0, 1.0)


def notes(seconds: float = 4.0, cents: float = 0.0, late: float = 0.0, seed: int = 0) -> Tensor:
    """A scale in quavers at 120 beats a minute; `late` is the standard deviation of the onsets in seconds."""
    rng, sound = np.random.default_rng(seed), np.zeros(round(seconds * RATE) + RATE)
    for place in range(round(seconds * 4)):
        start = max(0, round((place / 4 + late * rng.standard_normal()) * RATE))
        hertz = 440 * 2 ** (([0, 2, 4, 5, 7, 9, 11, 12][place % 8] + cents / 100) / 12)
        t = np.arange(RATE // 4) / RATE
        tone = sum(np.sin(2 * np.pi * k * hertz * t) / k**2 for k in (1, 2, 3, 4)) * np.exp(-6 * t)
        sound[start : start + len(t)] += 0.3 * tone
    return torch.from_numpy(sound[: round(seconds * RATE)])


def worse(kind: str, amount: float, seed: int) -> Tensor:
    match kind:
        case "tuning":
            return notes(cents=amount)
        case "timing":
            return notes(late=amount, seed=seed)
        case "noise":
            clip = notes()
            return clip + amount * clip.square().mean().sqrt() * draw(len(clip), seed=seed)
        case _:
            clip = notes()
            limit = clip.abs().quantile(1 - amount) if amount else clip.abs().max()
            return clip.clamp(-limit, limit)


@pytest.mark.parametrize(
    ("kind", "column", "amounts"),
    [
        ("tuning", 0, (0.0, 10.0, 20.0, 30.0, 45.0)),
        ("clipping", 1, (0.0, 0.02, 0.05, 0.1, 0.25)),
        ("noise", 2, (0.003, 0.01, 0.03, 0.1, 0.3)),
        ("timing", 3, (0.0, 0.02, 0.04, 0.07)),
    ],
)
def test_each_defect_lowers_the_quality_the_more_the_worse(kind: str, column: int, amounts: tuple[float, ...]):
    seeds = range(8) if kind == "timing" else range(2)
    rule = CleanSound(**{name: 1.0 * (name == kind) for name in ("tuning", "clipping", "noise", "timing")})
    found = []
    for amount in amounts:
        clips = torch.stack([worse(kind, amount, seed) for seed in seeds])[:, None].float()
        features = rule.encode(Samples(("",) * len(clips), torch.empty(len(clips), 0), Audio(clips, RATE)))
        found.append((features[:, column].mean().item(), rule.score(features).mean().item()))
    sizes, qualities = zip(*found, strict=True)
    assert all(b > a for a, b in pairwise(sizes)), sizes
    pairs = list(pairwise(qualities))
    assert all(b < a or a == b == 5 for a, b in pairs), qualities  # 5 as long as it is what clean clips have
    assert qualities[-1] < qualities[0] - 1


def test_the_measurements_have_the_values_they_should():
    t = torch.arange(4 * RATE).double() / RATE
    sine, white = (2 * torch.pi * 440 * t).sin(), draw(4 * RATE)

    def measured(clip: Tensor) -> list[float]:
        return CleanSound().encode(Samples(("",), torch.empty(1, 0), Audio(clip[None, None].float(), RATE)))[0].tolist()

    assert measured(sine)[0] == pytest.approx(0, abs=0.5)
    assert measured((2 * torch.pi * 440 * 2 ** (30 / 1200) * t).sin())[0] == pytest.approx(30, abs=0.5)
    assert measured(sine)[1] == pytest.approx(0.287, abs=0.01)
    assert measured(white)[2] == pytest.approx(-10, abs=1.5)
    assert measured(white)[0] == pytest.approx(25, abs=3)
    assert measured(0.001 * sine + 0.0)[0] == pytest.approx(0, abs=0.5), "the level does not matter"


def pulse(hertz: float, seconds: float) -> Tensor:
    """Clicks of 20 ms."""
    clip, click = torch.zeros(round(seconds * RATE)).double(), 0.5 * draw(RATE // 50) * torch.linspace(1, 0, RATE // 50)
    for start in range(0, len(clip) - len(click), round(RATE / hertz)):
        clip[start : start + len(click)] = click
    return clip


@pytest.mark.parametrize(("hertz", "seconds"), [(2.0, 10), (2.0, 60), (2.0, 120), (5.0, 10)])
def test_a_perfect_pulse_is_regular_at_any_length(hertz: float, seconds: float):
    assert irregularity(pulse(hertz, seconds)) < 0.05


def test_partials_down_to_thirty_decibels_count_for_tuning():
    t = torch.arange(2 * RATE).double() / RATE

    def off(decibels: float) -> float:
        wrong = 880 * 2 ** (40 / 1200)
        clip = (2 * torch.pi * 440 * t).sin() + 10 ** (decibels / 20) * (2 * torch.pi * wrong * t).sin()
        return mistuning(clip).item()

    alone = off(-200.0)
    for decibels in (-5.0, -20.0, -28.0):
        power = 10 ** (decibels / 10)
        expected = 40 * power / (1 + power)
        assert off(decibels) - alone == pytest.approx(expected, rel=0.2), "the mean, weighted by power"
    assert off(-40.0) - alone < 0.001, "too weak to count"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_clean_sound_refuses_what_is_not_finite(value: float):
    clips = torch.rand(2, 1, 4000)
    clips[1, 0, 7] = value
    with pytest.raises(NonFiniteError, match=r"item 2 of the 2 .*'second'"):
        CleanSound()(Samples(("first", "second"), torch.empty(2, 0), Audio(clips, RATE)))


@pytest.mark.parametrize("length", [1, 100, 4000, 16000])
def test_silence_and_short_clips_have_a_quality(length: int):
    for clip in (torch.zeros(1, 1, length), torch.rand(1, 1, length)):
        quality = CleanSound()(Samples(("",), torch.empty(1, 0), Audio(clip, RATE))).item()
        assert 1 <= quality <= 5
    assert CleanSound()(Samples(("",), torch.empty(1, 0), Audio(torch.zeros(1, 2, length), RATE))).item() < 1.1


def test_clean_sound_keeps_the_contract_at_any_rate():
    clips = torch.stack([worse("noise", 0.1 * i, i)[:RATE] for i in range(3)]).float()
    check_reward(CleanSound(), Samples(("x", "y", "z"), torch.empty(3, 0), Audio(clips[:, None], RATE)))
    stereo = Audio(clips[:, None].repeat(1, 2, 1), RATE).resample(44100)
    assert CleanSound()(Samples(("x", "y", "z"), torch.empty(3, 0), stereo)).isfinite().all()
    with pytest.raises(InputError, match="coefficient of noise"):
        CleanSound(noise=-1.0)


def test_the_shipped_head_hears_noise_and_lets_gradients_through():
    clips = torch.stack([notes(), notes() + 0.05 * draw(4 * RATE)]).float()[:, None].requires_grad_()
    scores = Aesthetics()(Samples(("", ""), torch.empty(2, 0), Audio(clips, RATE)))
    assert scores[0] > scores[1] + 0.5
    (slope,) = torch.autograd.grad(scores.sum(), clips)
    assert slope.isfinite().all()
    assert slope.abs().sum() > 0


def shipped(clips: Tensor) -> Tensor:
    return Aesthetics()(Samples(("",) * len(clips), torch.empty(len(clips), 0), Audio(clips, RATE)))


def test_the_shipped_head_puts_silence_and_noise_below_half_of_the_rated_clips():
    table = locate("tiny-music/ratings/ratings.csv")
    names = sorted({row.file for row in ratings.read(table)})
    scores = torch.cat([shipped(audio.read(table.parent / name).waveform) for name in names])
    noise = torch.randn(1, 1, 44000, generator=torch.Generator().manual_seed(7))
    levels = (0.0, 1e-5, 5e-5, 2e-4, 1e-3, 1e-2, 0.3)
    assert (shipped(torch.cat([level * noise for level in levels])) < scores.median() - 0.5).all()


def test_turning_it_down_does_not_pay():
    folder = locate("tiny-music/ratings")
    for name in ("05-clean.ogg", "05-noisy.ogg", "06-made-5.ogg"):
        clip = audio.read(folder / name).waveform
        scores = shipped(torch.cat([clip * 10 ** (-decibels / 20) for decibels in (0, 20, 40)]))
        assert (scores - scores[0]).abs().max() < 0.05
        faint = shipped(torch.cat([clip * level / clip.square().mean().sqrt() for level in (9e-5, 5e-5, 1e-5, 0.0)]))
        assert (faint < scores[0]).all()

"""Rewards: what they compute, beside the contracts in test_contracts."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dragontune.data import Samples
from dragontune.distances import frechet_distance, vendi_score
from dragontune.errors import InputError
from dragontune.reference import Reference
from dragontune.rewards.alignment import Alignment
from dragontune.rewards.combine import InstanceSum, Sum
from dragontune.rewards.diversity import Vendi
from dragontune.rewards.frechet import SetFrechet, SongFrechet
from dragontune.testing import ToyEncoder


def draw(count: int, seed: int) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))


def samples(count: int = 6, prompt: str = "left") -> Samples:
    return Samples((prompt,) * count, draw(count, 1), draw(count, 1))


def reference(encoder: ToyEncoder) -> Reference:
    return Reference.build(encoder, [draw(100, 0)], "songs")


def test_set_frechet_is_the_distance_of_the_pooled_frames():
    encoder = ToyEncoder(frames=3)
    target = reference(encoder)
    pooled = encoder.embed(draw(6, 1)).pooled().double()
    expected = frechet_distance((pooled.mean(0), torch.cov(pooled.mT)), target.gaussian)
    assert SetFrechet(encoder, target)(samples()).item() == pytest.approx(-expected.item(), rel=1e-6)


def test_set_frechet_of_the_exemplars_themselves_is_zero():
    encoder = ToyEncoder(frames=2)
    same = Samples(("x",) * 100, draw(100, 0), draw(100, 0))
    assert SetFrechet(encoder, reference(encoder))(same).item() == pytest.approx(0, abs=1e-6)


def test_song_frechet_is_the_distance_of_each_items_frames():
    encoder = ToyEncoder(frames=3)
    target = reference(encoder)
    scores = SongFrechet(encoder, target)(samples())
    for score, frames in zip(scores, encoder.embed(draw(6, 1)).frames.double(), strict=True):
        expected = frechet_distance((frames.mean(0), torch.cov(frames.mT)), target.gaussian)
        assert score.item() == pytest.approx(-expected.item(), rel=1e-6)


def test_song_frechet_needs_frames():
    with pytest.raises(InputError, match="2 frames"):
        SongFrechet(ToyEncoder(frames=1), reference(ToyEncoder(frames=1)))(samples())


def test_captions_judge_media(tmp_path: Path):
    """Exemplars of another modality: points near what the captions embed to score higher."""
    (tmp_path / "captions.txt").write_text("left\nleft\nleft\n")
    reward = SetFrechet(ToyEncoder(), str(tmp_path / "captions.txt"))
    near, far = (Samples(("",) * 4, x, x) for x in (0.1 * draw(4, 2) - torch.tensor([1.0, 0.0]), draw(4, 2) + 2))
    assert reward(near) > reward(far)
    assert reward.target is reward.target


def test_alignment_is_the_cosine_with_the_prompt():
    media = torch.tensor([[-3.0, 0.0], [0.5, 0.0], [0.0, 2.0]])
    scores = Alignment(ToyEncoder())(Samples(("left", "left", "left"), media, media))
    torch.testing.assert_close(scores, torch.tensor([1.0, -1.0, 0.0]))


def test_vendi_of_unit_mean_frames():
    assert Vendi(ToyEncoder(), 2.0)(samples()).item() == pytest.approx(vendi_score(draw(6, 1), 2.0).item(), rel=1e-6)
    with pytest.raises(InputError):
        Vendi(ToyEncoder(), -1.0)


def test_sum_weighs_and_scales():
    encoder = ToyEncoder(frames=2)
    align, spread, song = Alignment(encoder), Vendi(encoder), SongFrechet(encoder, reference(encoder))
    total = Sum({"align": align, "spread": spread, "song": song}, {"align": 3.0}, {"spread": 2.0})
    expected = 3 * align(samples()).mean() + spread(samples()) / 2 + song(samples()).mean()
    assert total(samples()).item() == pytest.approx(expected.item(), rel=1e-6)
    assert total.minimum == 2
    one_by_one = InstanceSum({"align": align, "song": song}, {"song": 0.5})
    torch.testing.assert_close(one_by_one(samples()), align(samples()).double() + song(samples()) / 2)


@pytest.mark.parametrize(
    ("weights", "scales"), [({"other": 1.0}, {}), ({}, {"other": 1.0}), ({}, {"align": 0.0}), ({}, {"align": -1.0})]
)
def test_sums_refuse_what_makes_no_sense(weights: dict[str, float], scales: dict[str, float]):
    for kind in (Sum, InstanceSum):
        with pytest.raises(InputError):
            kind({"align": Alignment(ToyEncoder())}, weights, scales)
    with pytest.raises(InputError, match="at least one"):
        Sum({})

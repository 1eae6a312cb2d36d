"""Kernel, similarity, coverage and recall rewards: what they compute and what they refuse."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dragontune.data import Samples
from dragontune.demonstrations import contrast
from dragontune.distances import coverage, kernel_distance, recall
from dragontune.embedded import locate
from dragontune.encoders.clap import TinyClap
from dragontune.encoders.latents import Latents
from dragontune.encoders.log_mel import LogMel
from dragontune.errors import InputError
from dragontune.media import audio
from dragontune.reference import Reference, open_reference
from dragontune.rewards.frechet import SetFrechet, SongFrechet
from dragontune.rewards.kernel import SetKernel, SongKernel
from dragontune.rewards.neighbours import Coverage, Recall
from dragontune.rewards.similarity import Similarity
from dragontune.seeding import Key
from dragontune.testing import ToyEncoder, check_reward

ENCODER = ToyEncoder(frames=3)


def draw(count: int, seed: int) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))


def samples(points: Tensor) -> Samples:
    return Samples(("",) * len(points), points, points)


EXEMPLARS = draw(30, 0)
REFERENCE = Reference.build(ENCODER, [EXEMPLARS], "points")


def means(points: Tensor) -> Tensor:
    return ENCODER.embed(points).mean().double()


@pytest.mark.parametrize(
    "reward",
    [
        SetKernel(ENCODER, REFERENCE),
        SetKernel(ENCODER, REFERENCE, "imq", 0.5),
        SetKernel(ENCODER, REFERENCE, "polynomial"),
        SongKernel(ENCODER, REFERENCE),
        Similarity(ENCODER, REFERENCE),
        Similarity(ENCODER, REFERENCE, 3),
        Coverage(ENCODER, REFERENCE),
        Recall(ENCODER, REFERENCE, 2),
    ],
    ids=lambda reward: f"{type(reward).__name__}",
)
def test_contracts(reward):
    check_reward(reward, Samples(("left", "right", "x") * 2, draw(6, 1), draw(6, 1)))


def test_set_kernel_is_minus_the_mmd_of_mean_frames():
    found = SetKernel(ENCODER, REFERENCE)(samples(draw(12, 1)))
    assert found.item() == pytest.approx(-kernel_distance(means(draw(12, 1)), means(EXEMPLARS)).item(), abs=1e-6)


def test_song_kernel_is_the_biased_mmd_of_one_item():
    scores = SongKernel(ENCODER, REFERENCE)(samples(draw(5, 1)))
    for score, item in zip(scores, means(draw(5, 1)), strict=True):
        twice = torch.stack(
            [item, item]
        )  # the same distribution as the item once; the biased distance sees no difference
        expected = kernel_distance(twice, means(EXEMPLARS), unbiased=False)
        assert score.item() == pytest.approx(-expected.item(), abs=1e-6)


def test_similarity_is_the_mean_cosine_with_the_nearest():
    unit = torch.nn.functional.normalize
    cosines = unit(means(draw(5, 1)), dim=1) @ unit(means(EXEMPLARS), dim=1).mT
    torch.testing.assert_close(
        Similarity(ENCODER, REFERENCE)(samples(draw(5, 1))), cosines.mean(1), atol=1e-6, rtol=1e-6
    )
    best = cosines.sort(descending=True).values[:, :4].mean(1)
    torch.testing.assert_close(Similarity(ENCODER, REFERENCE, 4)(samples(draw(5, 1))), best, atol=1e-6, rtol=1e-6)


def test_coverage_and_recall_are_those_of_mean_frames():
    x, y = means(draw(12, 1)), means(EXEMPLARS).float().double()
    assert Coverage(ENCODER, REFERENCE, 3)(samples(draw(12, 1))).item() == coverage(x, y, 3).item()
    assert Recall(ENCODER, REFERENCE, 3)(samples(draw(12, 1))).item() == recall(x, y, 3).item()


@pytest.mark.parametrize("reward", [SetKernel(ENCODER, REFERENCE), Coverage(ENCODER, REFERENCE, 2)])
def test_exchanges_raise_the_score_of_the_positive_set(reward):
    first, second = samples(draw(12, 1)), samples(draw(12, 2) + 1)
    found = contrast(reward, first, second, Key(0), passes=5)
    assert reward(found.positive) > max(reward(first), reward(second))


def test_exchanges_of_the_kernel_are_those_from_scratch():
    reward = SetKernel(ENCODER, REFERENCE)
    one, other = reward.encode(samples(draw(6, 1))), reward.encode(samples(draw(5, 2)))
    table = reward.swaps(one, other).table()
    for i in range(6):
        for j in range(5):
            changed = one.clone()
            changed[i] = other[j]
            assert table[i, j].item() == pytest.approx(reward.score(changed).item(), abs=1e-12)


@pytest.mark.parametrize("kind", [SetKernel, SongKernel, Similarity, Coverage, Recall])
def test_a_reference_without_single_vectors_is_refused(kind):
    bare = Reference(*(getattr(REFERENCE, name) for name in REFERENCE.__dataclass_fields__ if name != "vectors"))
    with pytest.raises(InputError, match="one vector an exemplar"):
        kind(ENCODER, bare)(samples(draw(8, 1)))


def test_too_few_exemplars_are_named():
    few = Reference.build(ENCODER, [draw(3, 0)], "three points")
    with pytest.raises(InputError, match=r"at least 6 exemplars, got 3 in three points"):
        Coverage(ENCODER, few)(samples(draw(8, 1)))
    with pytest.raises(InputError, match="at least 4 exemplars"):
        Similarity(ENCODER, few, 4)(samples(draw(8, 1)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Similarity(ENCODER, REFERENCE, 0),
        lambda: Coverage(ENCODER, REFERENCE, 0),
        lambda: SetKernel(ENCODER, REFERENCE, bandwidth=-1.0)(samples(draw(4, 1))),
    ],
)
def test_settings_that_make_no_sense(make):
    with pytest.raises(InputError):
        make()


def test_vectors_are_stored_and_part_of_the_digest(tmp_path: Path):
    REFERENCE.save(tmp_path / "points.safetensors")
    again = Reference.load(tmp_path / "points.safetensors")
    assert again.vectors is not None
    torch.testing.assert_close(again.vectors, means(EXEMPLARS).float())
    assert again.digest == REFERENCE.digest
    assert again.digest != Reference.build(ENCODER, [EXEMPLARS.flip(0)], "points").digest


def test_a_playlist_names_exemplars(tmp_path: Path):
    files = audio.folder(locate("tiny-music/exemplars/test"))[:3]
    for i, path in enumerate(files):
        (tmp_path / f"{i}.ogg").write_bytes(path.read_bytes())
    (tmp_path / "songs.m3u").write_text("#EXTM3U\n0.ogg\n\n# not this one: 1.ogg\n2.ogg\n")
    found = open_reference(LogMel(), tmp_path / "songs.m3u")
    expected = Reference.build(LogMel(), [audio.read(files[0]), audio.read(files[2])], "x")
    assert found.items == 2
    torch.testing.assert_close(found.mean, expected.mean)
    (tmp_path / "empty.m3u").write_text("# nothing\n")
    with pytest.raises(InputError, match="one audio file a line"):
        open_reference(LogMel(), tmp_path / "empty.m3u")
    (tmp_path / "gone.m3u").write_text("gone.ogg\n0.ogg\n")
    with pytest.warns(UserWarning, match=r"gone\.ogg"):
        assert open_reference(LogMel(), tmp_path / "gone.m3u").items == 1


def test_the_shipped_playlist_is_the_music_in_parts():
    files = audio.playlist(locate("tiny-music/exemplars/part-music.m3u"))
    captions = locate("tiny-music/exemplars/part-music-captions.txt").read_text().splitlines()
    assert len(files) == len(captions) == 114
    assert all(path.is_file() for path in files)


@pytest.mark.parametrize("encoder", [TinyClap(), Latents(), LogMel()], ids=lambda encoder: encoder.name)
@pytest.mark.parametrize("kind", [SetFrechet, SongFrechet, SetKernel, SongKernel, Similarity])
def test_every_form_on_every_encoder_prefers_music_to_noise(encoder, kind):
    files = audio.folder(locate("tiny-music/exemplars/test"))
    clips = audio.Audio.join([audio.read(path) for path in files[::5]][:8])
    reward = kind(encoder, str(locate("tiny-music/exemplars/test")))
    noise = audio.Audio(0.1 * torch.randn(clips.waveform.shape, generator=torch.Generator().manual_seed(0)), 16000)
    music, noisy = (Samples(("",) * 8, torch.empty(8, 0), media) for media in (clips, noise))
    assert reward(music).mean() > reward(noisy).mean()


@pytest.mark.parametrize("kind", [SetFrechet, SongFrechet, SetKernel, SongKernel, Similarity])
def test_captions_judge_music(kind):
    """Clips of the instrument that the captions name are nearer than clips of another."""
    folder = locate("tiny-music/exemplars/test")
    reward = kind(TinyClap(), Reference.build(TinyClap(), ["solo piano", "a piano piece", "piano music", "piano"], "x"))
    scores = []
    for instrument in ("piano", "choir"):
        clips = audio.Audio.join([audio.read(path) for path in audio.folder(folder / instrument)])
        scores.append(reward(Samples(("",) * len(clips), torch.empty(len(clips), 0), clips)).mean())
    assert scores[0] > scores[1]

"""Folders as streams: the same statistics however they are read, interrupted or remembered, and little memory."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from dragontune.commands.reference import reference
from dragontune.commands.score import measure, score
from dragontune.data import Media, Rows, Samples
from dragontune.distances.frechet import frechet_distance
from dragontune.embedding_cache import EmbeddingCache
from dragontune.encoders.base import Embeddings
from dragontune.encoders.log_mel import LogMel
from dragontune.errors import InputError
from dragontune.media import audio, decoding
from dragontune.reference import Reference, open_reference
from dragontune.rewards import frechet
from dragontune.rewards.base import InstanceReward
from dragontune.rewards.combine import Sum
from dragontune.rewards.frechet import FrechetTally, SetFrechet, SongFrechet
from dragontune.rewards.similarity import Similarity
from dragontune.streaming import NAMED, Pace, Reading
from dragontune.testing import ToyEncoder


@dataclass(frozen=True)
class Counted(LogMel):
    """Counts what it embeds; a clip of `deadly` samples kills the process."""

    seen: tuple[list[int], ...] = ([],)
    deadly: int = 0

    def embed(self, media: Media) -> Embeddings:
        assert isinstance(media, audio.Audio)
        if media.waveform.shape[-1] == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen[0].append(len(media))
        return super().embed(media)


def clips(folder: Path, count: int, lengths: tuple[int, ...] = (3000, 4000, 5000)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        noise = np.random.default_rng(number).standard_normal(lengths[number % len(lengths)])
        soundfile.write(folder / f"{number:04}.wav", 0.1 * noise, 16000)
    return folder


def built(folder: Path, encoder: LogMel, reading: Reading | None = None) -> Reference:
    return open_reference(encoder, folder, reading)


def test_any_number_of_threads_and_any_cache_give_the_same_bits(tmp_path: Path):
    folder = clips(tmp_path / "in", 40)
    plain = Reference.build(LogMel(), [audio.read(path) for path in sorted(folder.iterdir())], str(folder))
    for workers in (1, 4):
        assert built(folder, LogMel(), Reading(workers)).digest == plain.digest
    encoder = Counted(seen=([],))
    with EmbeddingCache(tmp_path / "cache") as cache:
        assert built(folder, encoder, Reading(cache=cache)).digest == plain.digest
        assert (cache.found, cache.added) == (0, 40)
    for name in ("0003.wav", "0017.wav", "0039.wav"):  # moved and renamed, and so in another order
        (folder / "deep").mkdir(exist_ok=True)
        (folder / name).rename(folder / "deep" / f"x{name}")
    clips(folder, 41)
    encoder.seen[0].clear()
    with EmbeddingCache(tmp_path / "cache") as cache:
        moved = built(folder, encoder, Reading(cache=cache))
    assert len(encoder.seen[0]) == 1
    assert moved.digest == built(folder, LogMel()).digest
    assert moved.items == 44


def test_files_that_change_are_embedded_again(tmp_path: Path):
    folder = clips(tmp_path / "in", 5)
    encoder = Counted(seen=([],))
    for expected in (5, 1, 0):
        encoder.seen[0].clear()
        with EmbeddingCache(tmp_path / "cache") as cache:
            found = built(folder, encoder, Reading(cache=cache))
        assert len(encoder.seen[0]) == expected
        assert found.digest == built(folder, LogMel()).digest
        soundfile.write(folder / "0002.wav", np.full(4000, 0.25), 16000)


def test_batches_hold_clips_of_one_shape_and_change_nothing_much(tmp_path: Path):
    folder = clips(tmp_path / "in", 20, (4000, 4000, 4000, 4000, 5000))
    encoder = Counted(seen=([],))
    whole = built(folder, LogMel())
    with EmbeddingCache(tmp_path / "cache") as cache:
        found = built(folder, encoder, Reading(batch=3, cache=cache))
    assert encoder.seen[0] == [3, 1, 1] * 4
    torch.testing.assert_close(found.covariance, whole.covariance, rtol=1e-5, atol=1e-9)
    assert torch.equal(found.item_vectors.argsort(0), whole.item_vectors.argsort(0))  # in the order of the files
    with EmbeddingCache(tmp_path / "cache") as cache:
        again = built(folder, encoder, Reading(batch=3, cache=cache))
        assert cache.found == 20
        built(folder, encoder, Reading(cache=cache))
        assert cache.found == 20  # what was embedded together is not taken for what was embedded alone
    assert again.digest == found.digest


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from dragontune.commands.reference import reference
from dragontune.embedding_cache import EmbeddingCache
from test_streaming import Counted
with EmbeddingCache(Path(sys.argv[3]), pause=0.0) as cache:
    reference(sys.argv[2], Counted(seen=([],), deadly=6000), Path(sys.argv[4]), cache)
"""


def test_killed_and_resumed_is_the_same_file(tmp_path: Path):
    folder = clips(tmp_path / "in", 30)
    place = folder / "0020.wav"
    soundfile.write(place, 0.1 * np.random.default_rng(9).standard_normal(6000), 16000)
    whole, resumed, cached = tmp_path / "whole.safetensors", tmp_path / "resumed.safetensors", tmp_path / "cache"
    reference(str(folder), Counted(), whole)
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", KILLED, here, str(folder), str(cached), str(resumed)]
    died = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not resumed.exists()
    encoder = Counted(seen=([],))
    with EmbeddingCache(cached) as cache:
        reference(str(folder), encoder, resumed, cache)
        assert cache.found == 20
    assert len(encoder.seen[0]) == 10
    assert resumed.read_bytes() == whole.read_bytes()


def test_ctrl_c_keeps_what_was_done(tmp_path: Path):
    folder = clips(tmp_path / "in", 12)

    @dataclass(frozen=True)
    class Stopped(LogMel):
        def embed(self, media: Media) -> Embeddings:
            assert isinstance(media, audio.Audio)
            if media.waveform.shape[-1] == 6000:
                raise KeyboardInterrupt
            return super().embed(media)

    soundfile.write(folder / "0007.wav", np.full(6000, 0.1), 16000)
    with pytest.raises(KeyboardInterrupt), EmbeddingCache(tmp_path / "cache") as cache:
        built(folder, Stopped(), Reading(cache=cache))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dragontune-read")]
    soundfile.write(folder / "0007.wav", np.full(5000, 0.1), 16000)
    with EmbeddingCache(tmp_path / "cache") as cache:
        built(folder, Stopped(), Reading(cache=cache))
        assert (cache.found, cache.added) == (7, 5)


def test_captions_are_remembered_too(tmp_path: Path):
    (tmp_path / "captions.txt").write_text("left\nright\nanything\n")
    with EmbeddingCache(tmp_path / "cache") as cache:
        first = open_reference(ToyEncoder(), tmp_path / "captions.txt", Reading(cache=cache))
    with EmbeddingCache(tmp_path / "cache") as cache:
        again = open_reference(ToyEncoder(), tmp_path / "captions.txt", Reading(cache=cache))
        assert cache.found == 3
    assert again.digest == first.digest == open_reference(ToyEncoder(), tmp_path / "captions.txt").digest


def test_unreadable_files_are_listed_all_and_named_a_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = clips(tmp_path / "in", 6)
    for number in range(9):
        (folder / f"torn-{number}.flac").write_bytes(b"fLaC but no more")
    (folder / "line\nbreak.wav").write_bytes(b"RIFF")
    out, listed = tmp_path / "r.safetensors", tmp_path / "r.safetensors.unreadable.txt"
    with pytest.warns(UserWarning, match="left out of the exemplars") as caught:
        reference(str(folder), LogMel(), out)
    ours = [str(warning.message) for warning in caught if "left out" in str(warning.message)]
    assert len(ours) == NAMED + 1
    assert "5 more files" in ours[-1]
    lines = listed.read_text().splitlines()
    assert [Path(line.split("\t")[0]).name for line in lines] == [
        "line\\nbreak.wav",
        *(f"torn-{number}.flac" for number in range(9)),
    ]
    assert "10 files could not be read" in capsys.readouterr().out
    assert Reference.load(out).items == 6
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        found = measure(folder, Similarity(LogMel(), Reference.load(out)), None)
    assert [row["file"] for row in found["unreadable"]][1:] == [f"torn-{number}.flac" for number in range(9)]
    assert len(found["files"]) == 6
    for path in folder.glob("torn*"):
        path.unlink()
    (folder / "line\nbreak.wav").unlink()
    reference(str(folder), LogMel(), out)
    assert not listed.exists()


def test_an_embedding_that_is_not_finite_names_its_file(tmp_path: Path):
    @dataclass(frozen=True)
    class Broken(LogMel):
        def embed(self, media: Media) -> Embeddings:
            assert isinstance(media, audio.Audio)
            found = super().embed(media)
            return Embeddings.of(found.frames / (media.waveform.shape[-1] != 5000))

    with pytest.raises(InputError, match=r"0002\.wav"):
        built(clips(tmp_path / "in", 4), Broken())


@dataclass(frozen=True, eq=False)
class Large(Rows):
    """What one file was read to."""

    data: Tensor


def test_reading_ahead_keeps_order_and_is_bounded():
    most, now, lock = [0], [0], threading.Lock()

    def work(job: int) -> int:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.002 * (job % 3))
        return job

    taken = 0
    with decoding.pool(4) as threads:
        for job in decoding.ahead(threads, work, iter(range(200))):
            assert job == taken
            taken += 1
            with lock:
                now[0] -= 1
    assert taken == 200
    assert most[0] <= decoding.AHEAD + 1

    for many in (1, 2, 5):
        alive, peak, large = [0], [0], torch.zeros(1).expand(decoding.BYTES_AHEAD // 8)  # half of what may wait

        def begin(
            job: int, alive: list[int] = alive, peak: list[int] = peak, large: Tensor = large
        ) -> tuple[int, Large]:
            with lock:
                alive[0] += 1
                peak[0] = max(peak[0], alive[0])
            return job, Large(large[None])

        with decoding.pool(many) as threads:
            for taken, (job, row) in enumerate(decoding.ahead(threads, begin, iter(range(40)))):
                assert job == taken
                assert decoding.weight(row) == decoding.BYTES_AHEAD // 2
                time.sleep(0.002)
                with lock:
                    alive[0] -= 1
        assert 3 <= peak[0] <= 3 + many + 1  # what may wait, the one that is used, and what is under way
    with decoding.pool(2) as threads, pytest.raises(ZeroDivisionError):
        list(decoding.ahead(threads, lambda job: 1 // job, [1, 0, 1]))


def test_the_speed_and_what_is_left_are_told(monkeypatch: pytest.MonkeyPatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    told = list[tuple[int, int, str]]()
    pace = Pace(1000, lambda *words: told.append(words))
    for _ in range(500):
        clock[0] += 0.5
        pace.step()
    assert told[0] == (6, 1000, "2 a second, 8 min 17 s left")  # what takes no time is not worth a word
    assert told[-1] == (500, 1000, "2 a second, 4 min 10 s left")
    clock[0] += 0.01
    pace.step()
    assert len(told) == 495  # not more often than can be read


REFERENCE = Reference.build(LogMel(), [audio.Audio(0.1 * torch.randn(8, 1, 16000), 16000)], "noise")


@pytest.mark.parametrize("reward", [Similarity, SongFrechet, SetFrechet])
def test_scores_of_a_stream_are_those_of_all_together(tmp_path: Path, reward: type):
    folder = clips(tmp_path / "in", 150)
    judge = reward(LogMel(), REFERENCE)
    files = sorted(folder.iterdir())
    features = [judge.encode(Samples(("",), torch.empty(1, 0), audio.read(path))) for path in files]
    joined = torch.cat(features) if isinstance(features[0], torch.Tensor) else type(features[0]).join(features)
    expected = judge.score(joined).double()
    found = measure(folder, judge, None)
    if isinstance(judge, InstanceReward):
        torch.testing.assert_close(torch.tensor([row["score"] for row in found["files"]]).double(), expected)
    assert found["score"] == pytest.approx(expected.mean().item(), rel=1e-12)
    assert found["count"] == 150


def test_a_set_larger_than_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = clips(tmp_path / "in", 60)
    judge = SetFrechet(LogMel(), REFERENCE)
    kept = measure(folder, judge, None)["score"]
    monkeypatch.setattr(frechet, "KEPT", 5000)
    assert measure(folder, judge, None)["score"] == pytest.approx(kept, rel=1e-9)
    tally = FrechetTally(judge, 1000)
    with pytest.raises(InputError, match="at least 2 items"):
        tally.score()
    frames = torch.randn(3, 500, 64, dtype=torch.float64)
    tally.add(Embeddings.of(frames))
    expected = -frechet_distance(frames.flatten(0, 1), judge.target)
    torch.testing.assert_close(tally.score(), expected, rtol=1e-9, atol=1e-12)


def test_a_sum_streams_its_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = clips(tmp_path / "in", 30)
    judge = Sum({"set": SetFrechet(LogMel(), REFERENCE), "single": Similarity(LogMel(), REFERENCE)}, {"single": 2.0})
    whole = judge(join(folder))
    assert measure(folder, judge, None)["score"] == pytest.approx(whole.item(), rel=1e-9)


def join(folder: Path) -> Samples:
    waves = torch.cat([audio.read(path).waveform[..., :3000] for path in sorted(folder.iterdir())])
    for path, wave in zip(sorted(folder.iterdir()), waves, strict=True):
        soundfile.write(path, wave[0].numpy(), 16000, subtype="FLOAT")
    return Samples(("",) * len(waves), torch.empty(len(waves), 0), audio.Audio(waves, 16000))


def test_scores_come_from_the_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = clips(tmp_path / "in", 10)
    encoder = Counted(seen=([],))
    for judge in (Similarity(encoder, REFERENCE), SetFrechet(encoder, REFERENCE)):
        capsys.readouterr()
        with EmbeddingCache(tmp_path / "cache") as cache:
            score(folder, judge, None, True, cache)
        found = json.loads(capsys.readouterr().out)
        assert found == measure(folder, type(judge)(LogMel(), REFERENCE), None)
    assert len(encoder.seen[0]) == 10


def test_a_long_table_shows_the_best_and_the_worst(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = clips(tmp_path / "in", 203, (600,))
    encoder = LogMel(fft=512, mels=32)
    first = Reference.build(encoder, [audio.read(folder / "0000.wav")] * 2, "one")
    score(folder, Similarity(encoder, first), None, False)
    shown = capsys.readouterr().out
    assert "3 between these" in shown
    assert shown.count(".wav") == 200
    assert shown.index("0000.wav") < shown.index("between these")


def test_bad_numbers():
    with pytest.raises(InputError, match="workers of 1 or more"):
        Reading(workers=0)
    with pytest.raises(InputError, match="batch of 1 or more"):
        Reading(batch=0)

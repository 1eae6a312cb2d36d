"""Embeddings that are kept: found again bit for bit, not where anything differs, and never believed if damaged."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from dragontune import embedding_cache
from dragontune.data import Media
from dragontune.embedding_cache import EmbeddingCache, identity, key, media_content, text_content
from dragontune.encoders.base import Embeddings
from dragontune.encoders.log_mel import LogMel
from dragontune.errors import InputError
from dragontune.media.audio import Audio
from dragontune.remembered import Remembered, remembering
from dragontune.rewards.combine import Sum
from dragontune.rewards.diversity import Vendi
from dragontune.rewards.function import Function


def some(seed: int, frames: int = 3) -> Embeddings:
    return Embeddings.of(torch.randn(1, frames, 4, generator=torch.Generator().manual_seed(seed)))


def equal(one: Embeddings | None, other: Embeddings) -> bool:
    return one is not None and torch.equal(one.frames, other.frames)


def keys(count: int) -> list[bytes]:
    return [key(b"encoder", text_content(str(number))) for number in range(count)]


def test_what_is_put_is_found_bit_for_bit(tmp_path: Path):
    with EmbeddingCache(tmp_path) as cache:
        for number, name in enumerate(keys(5)):
            cache.put([(name, some(number))])
        assert equal(cache.get(keys(5)[2]), some(2))  # before it is written
    with EmbeddingCache(tmp_path) as cache:
        assert [equal(cache.get(name), some(number)) for number, name in enumerate(keys(5))] == [True] * 5
        assert cache.get(keys(6)[5]) is None
        assert (cache.found, cache.added) == (5, 0)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_any_precision(tmp_path: Path, dtype: torch.dtype):
    kept = Embeddings.of(some(0).frames.to(dtype))
    with EmbeddingCache(tmp_path) as cache:
        cache.put([(b"k" * 32, kept)])
        cache.flush()
        found = cache.get(b"k" * 32)
    assert found is not None
    assert found.frames.dtype == dtype
    assert equal(found, kept)


def test_damaged_entries_are_not_there(tmp_path: Path):
    names = keys(6)
    with EmbeddingCache(tmp_path) as cache:
        cache.put([(name, some(number)) for number, name in enumerate(names)])
    store = sqlite3.connect(tmp_path / embedding_cache.FILE)
    values = [store.execute("SELECT value FROM embeddings WHERE key = ?", (name,)).fetchone()[0] for name in names]
    nan = embedding_cache._packed(names[5], Embeddings.of(some(5).frames * float("nan")))
    wrong = [values[1], values[1][:-1], values[2][:-1] + bytes([values[2][-1] ^ 1]), b"", "text", nan]
    for name, value in zip(names, wrong, strict=True):
        store.execute("UPDATE embeddings SET value = ? WHERE key = ?", (value, name))
    store.commit()
    store.close()
    with EmbeddingCache(tmp_path) as cache:
        assert [cache.get(name) for name in names] == [None] * 6
        cache.put([(names[0], some(0))])
    with EmbeddingCache(tmp_path) as cache:
        assert equal(cache.get(names[0]), some(0))


def test_a_file_that_is_no_store_is_put_aside(tmp_path: Path):
    (tmp_path / embedding_cache.FILE).write_bytes(b"not a database at all, but long enough to be taken for one" * 50)
    with pytest.warns(UserWarning, match="was damaged"):
        cache = EmbeddingCache(tmp_path)
    with cache:
        cache.put([(b"k" * 32, some(0))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with EmbeddingCache(tmp_path) as cache:
            assert cache.get(b"k" * 32) is not None


def test_a_store_with_anything_more_in_it_is_put_aside(tmp_path: Path):
    with EmbeddingCache(tmp_path):
        pass
    store = sqlite3.connect(tmp_path / embedding_cache.FILE)
    store.execute("CREATE TRIGGER t AFTER INSERT ON embeddings BEGIN DELETE FROM embeddings; END")
    store.commit()
    store.close()
    with pytest.warns(UserWarning, match="something else"):
        cache = EmbeddingCache(tmp_path)
    with cache:
        cache.put([(b"k" * 32, some(0))])
        cache.flush()
        assert cache.get(b"k" * 32) is not None


def test_torn_pages_never_give_wrong_numbers(tmp_path: Path):
    names = keys(300)
    with EmbeddingCache(tmp_path) as cache:
        cache.put([(name, some(number, 40)) for number, name in enumerate(names)])
    whole = (tmp_path / embedding_cache.FILE).read_bytes()
    assert len(whole) > 100_000
    lost = 0
    for trial in range(12):
        rng = torch.Generator().manual_seed(trial)
        torn = bytearray(whole)
        for place in torch.randint(200, len(whole), (400,), generator=rng).tolist():
            torn[place] ^= 0x55
        folder = tmp_path / str(trial)
        folder.mkdir()
        (folder / embedding_cache.FILE).write_bytes(torn[: len(torn) - 5000 * (trial % 2)])
        with warnings.catch_warnings(), EmbeddingCache(folder) as cache:
            warnings.simplefilter("ignore")
            for number, name in enumerate(names):
                found = cache.get(name)
                lost += found is None
                assert found is None or torch.equal(found.frames, some(number, 40).frames)
    assert lost > 300


def test_a_store_that_turns_out_damaged_is_replaced(tmp_path: Path):
    names = keys(300)
    with EmbeddingCache(tmp_path) as cache:
        cache.put([(name, some(number, 40)) for number, name in enumerate(names)])
    whole = bytearray((tmp_path / embedding_cache.FILE).read_bytes())
    whole[20_000:-4096] = bytes(len(whole) - 24_096)
    (tmp_path / embedding_cache.FILE).write_bytes(whole)
    with warnings.catch_warnings(), EmbeddingCache(tmp_path) as cache:
        warnings.simplefilter("ignore")
        for number, name in enumerate(names):
            if cache.get(name) is None:
                cache.put([(name, some(number, 40))])
    with warnings.catch_warnings(), EmbeddingCache(tmp_path) as cache:
        warnings.simplefilter("error")
        found = [cache.get(name) for name in names]
    there = [torch.equal(each.frames, some(n, 40).frames) for n, each in enumerate(found) if each is not None]
    assert all(there)
    assert len(there) > 200


def test_places_that_cannot_be_used(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a folder for the cache"):
        EmbeddingCache(tmp_path / "file")
    with pytest.warns(UserWarning, match="going on without"):
        cache = EmbeddingCache(tmp_path / "file" / "deeper")
    with cache:
        cache.put([(b"k" * 32, some(0))])
        assert cache.get(b"k" * 32) is None


def test_the_oldest_make_room(tmp_path: Path):
    with EmbeddingCache(tmp_path, limit=400_000, pause=0) as cache:
        for number, name in enumerate(keys(400)):
            cache.put([(name, some(number, 200))])
        kept = [cache.get(name) is not None for name in keys(400)]
    assert 60 < sum(kept) < 200
    assert kept == sorted(kept)
    assert (tmp_path / embedding_cache.FILE).stat().st_size < 600_000


WRITER = """
import sys, torch
from pathlib import Path
from dragontune.embedding_cache import EmbeddingCache, key, text_content
from dragontune.encoders.base import Embeddings
first, folder = int(sys.argv[1]), Path(sys.argv[2])
with EmbeddingCache(folder, pause=0.0) as cache:
    for n in range(first, first + int(sys.argv[3])):
        frames = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(n))
        cache.put([(key(b"encoder", text_content(str(n))), Embeddings.of(frames))])
        print(n, flush=True)
"""


def test_two_processes_write_at_once_and_one_is_killed(tmp_path: Path):
    def start(first: int, count: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITER, str(first), str(tmp_path), str(count)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    one, other = start(0, 100), start(100, 10**9)
    assert other.stdout is not None
    reached = 100
    deadline = time.monotonic() + 120
    while reached < 160:
        assert time.monotonic() < deadline
        reached = int(other.stdout.readline())
    os.kill(other.pid, signal.SIGKILL)
    other.communicate()
    one.communicate(timeout=120)
    assert one.returncode == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with EmbeddingCache(tmp_path) as cache:
            found = [cache.get(name) for name in keys(reached)]
    assert all(each is not None and torch.equal(each.frames, some(n).frames) for n, each in enumerate(found))


def test_keys_differ_where_anything_does():
    wave = torch.zeros(1, 1, 100)
    media = [Audio(wave, 8000), Audio(wave, 16000), Audio(wave + 1e-7, 8000), Audio(wave[..., :99], 8000), wave]
    media += [Audio(wave.reshape(1, 2, 50), 8000)]
    assert len({media_content(each) for each in media}) == len(media)
    assert len({identity(encoder) for encoder in (LogMel(), LogMel(mels=32), LogMel(level=-20.0))}) == 3
    assert identity(LogMel()) == identity(LogMel())


def test_the_key_is_also_of_what_an_own_encoder_imports(tmp_path: Path):
    own = "from helper import SCALE\nfrom dragontune.testing import ToyEncoder\nclass Own(ToyEncoder):\n    pass\n"
    code = "from own import Own\nfrom dragontune.embedding_cache import identity\nprint(identity(Own()).hex())"
    found = list[str]()
    for scale in (1, 2):
        (tmp_path / "own.py").write_text(own)
        (tmp_path / "helper.py").write_text(f"SCALE = {scale}\n")
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        found.append(done.stdout)
    assert found[0] != found[1]


def level(media, prompts):
    return media.waveform.abs().mean((1, 2))


@dataclass(frozen=True)
class Counted(LogMel):
    """Counts in a list how many items it embeds."""

    seen: tuple[list[int], ...] = ([],)

    def embed(self, media: Media) -> Embeddings:
        self.seen[0].append(len(media))
        return super().embed(media)


def test_rewards_with_a_cache_give_the_same_and_embed_once(tmp_path: Path):
    encoder = Counted(seen=([],))
    wave = 0.1 * torch.randn(3, 1, 4000, generator=torch.Generator().manual_seed(0))
    media = Audio(wave, 16000)
    own = Function(level)
    with EmbeddingCache(tmp_path) as cache:
        reward = Sum({"variety": Vendi(encoder), "own": own})
        wrapped = remembering(reward, cache)
        variety = wrapped.rewards["variety"]
        assert isinstance(variety, Vendi)
        assert isinstance(variety.encoder, Remembered)
        assert wrapped.rewards["own"] is own
        assert remembering(own, cache) is own
        first = variety.encoder.embed(media)
        again = variety.encoder.embed(media[torch.tensor([2, 0])])
    assert encoder.seen[0] == [1, 1, 1]
    assert torch.equal(again.frames, first.frames[[2, 0]])
    assert torch.equal(first.frames, torch.cat([LogMel().embed(media[torch.tensor([i])]).frames for i in range(3)]))

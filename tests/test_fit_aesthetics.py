"""`dragontune fit-aesthetics`, through the real command line: what it learns, what it writes, what it refuses."""

import csv
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from dragontune import cli
from dragontune.commands import ratings
from dragontune.commands.fit_aesthetics import Fit, fit
from dragontune.commands.ratings import Rating
from dragontune.embedded import locate
from dragontune.encoders.log_mel import LogMel
from dragontune.media import audio
from dragontune.rewards.aesthetics import Aesthetics, Head, pool
from dragontune.seeding import Key

RATE = 8000
HEADER = ("file", "rating", "rater", "prompt")


def table(path: Path, rows: Sequence[Sequence[object]], header: tuple[str, ...] = HEADER) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 prompts of 4 clips, a tone with more and more noise; two raters with other scales who dislike noise."""
    folder = tmp_path_factory.mktemp("rated")
    rng, rows = np.random.default_rng(0), []
    for prompt in range(8):
        for noise in range(4):
            t = np.arange(RATE // 2) / RATE
            clip = 0.3 * np.sin(2 * np.pi * (220 + 60 * prompt) * t) + 0.03 * noise * rng.standard_normal(len(t))
            name = f"{prompt}-{noise}.wav"
            soundfile.write(folder / name, clip, RATE)
            rows.append((name, 5 - noise, "kind", f"tone {prompt}"))
            rows.append((name, 60 - 15 * noise + rng.normal(0, 2), "strict", f"tone {prompt}"))
    table(folder / "ratings.csv", rows)
    return folder


@pytest.fixture
def rated(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(built, tmp_path / "rated")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "rated"


def lines(folder: Path) -> list[list[str]]:
    with (folder / "ratings.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


def command(source: str = "rated/ratings.csv", *more: str) -> int:
    return cli.run(["fit-aesthetics", source, "--encoder", "log-mel", "--out", "out/head.safetensors", *more])


@pytest.mark.parametrize("kind", ["ridge", "nadaraya-watson"])
def test_it_learns_to_dislike_noise(rated: Path, capsys: pytest.CaptureFixture[str], kind: str):
    assert command("rated/ratings.csv", "--head", kind, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["plcc"]["value"] > 0.9
    assert report["srcc"]["value"] > 0.9
    assert (report["files"], report["prompts"], report["ratings"], report["raters"]) == (32, 8, 64, 2)
    assert report["held_out"] == {"files": 4, "prompts": 1}
    head = Head.load("out/head.safetensors")
    assert head.kind == kind
    assert head.digest == report["digest"]
    assert len(head.regression.points) == 28, "held-out files are not in the head"
    assert [path.name for path in Path("out").iterdir()] == ["head.safetensors"]
    assert Aesthetics(LogMel(), "out/head.safetensors").fitted.about["plcc"] == report["plcc"]


def test_the_same_seed_gives_the_same_head(rated: Path):
    first, again, other = (fit(rated / "ratings.csv", LogMel(), seed=seed) for seed in (3, 3, 4))
    assert first.head.digest == again.head.digest != other.head.digest


def test_it_prints_sentences(rated: Path, capsys: pytest.CaptureFixture[str]):
    assert command() == 0
    text = capsys.readouterr().out
    assert "ridge on log-mel" in text
    assert "PLCC over all of them: 0.9" in text


def test_the_shipped_ratings_reach_their_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "head.safetensors"
    encoder = "tiny-music/ratings/encoder.yaml"
    given = ["fit-aesthetics", "tiny-music/ratings/ratings.csv", "--encoder", encoder, "--out", str(out), "--json"]
    assert cli.run(given) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["plcc"]["value"] >= 0.8
    assert report["srcc"]["value"] >= 0.7
    shipped = Head.load(locate("tiny-music/aesthetics.safetensors"))
    made = Head.load(out)
    assert Aesthetics().fitted.digest == shipped.digest, "the encoder by default is that of the head that ships"
    torch.testing.assert_close(made.regression.points, shipped.regression.points, atol=1e-4, rtol=0)
    assert shipped.about["plcc"]["value"] == pytest.approx(report["plcc"]["value"], abs=1e-3)


def test_no_prompt_is_on_both_sides():
    prompts = [f"prompt {i // 3}" for i in range(60)]
    known, held = ratings.split(prompts, Key(1))
    assert sorted([*known.tolist(), *held.tolist()]) == list(range(60))
    assert len(held) == 9, "15 % of 20 prompts are 3, of 3 files each"
    assert not {prompts[i] for i in known.tolist()} & {prompts[i] for i in held.tolist()}
    assert not torch.equal(held, ratings.split(prompts, Key(2))[1])


def test_raters_are_brought_to_one_scale():
    rows = [Rating(str(i), value, "a", "p") for i, value in enumerate([1.0, 2, 3, 4] * 10)]
    rows += [Rating(str(i), 50 + 10 * value, "b", "p") for i, value in enumerate([1.0, 2, 3, 4] * 10)]
    labels = ratings.standardise(rows)
    assert labels.values.mean().item() == pytest.approx(0, abs=1e-12)
    assert labels.values.std(correction=0).item() == pytest.approx(1)
    torch.testing.assert_close(labels.values[:4] * 5**0.5, torch.tensor([-3.0, -1, 1, 3]).double())


def test_few_or_constant_ratings_decide_little():
    rows = [Rating(str(i), float(i % 5), "busy", "p") for i in range(50)]
    flat = [Rating(str(i), 4.0, "flat", "p") for i in range(50)]
    plain, mixed = ratings.standardise(rows), ratings.standardise(rows + flat)
    torch.testing.assert_close(plain.values, mixed.values)
    single = ratings.standardise([*rows, Rating("0", 4.0, "passing", "p")])
    assert single.values.isfinite().all()
    assert single.values[0] > plain.values[0]
    assert single.values[0] < plain.values[4]


def test_one_odd_rating_of_a_constant_rater_is_no_outlier():
    varied = [Rating(str(i), 1.0 + i % 5, "busy", "p") for i in range(400)]
    nearly = [Rating(str(i), 5.0 if i == 7 else 3.0, "flat", "p") for i in range(400)]
    assert ratings.standardise(nearly + varied).values.abs().max() < 4, "11.5 without a floor"
    both = torch.tensor([2.0, 4.0])
    rows = [Rating(str(i), float(both[i % 2]), "a", "p") for i in range(400)]
    rows += [Rating(str(i), 3.0 + 3 * (float(both[i % 2]) - 3), "b", "p") for i in range(400)]
    torch.testing.assert_close(ratings.standardise(rows).values[:2], torch.tensor([-1.0, 1.0]).double())


def test_held_out_ratings_move_no_known_label():
    rows = [Rating(f"{i:02}", float(i % 5) + (i % 3 if i >= 30 else 0), f"r{i % 2}", f"p{i // 10}") for i in range(40)]
    other = [Rating(row.file, 9.0 - row.rating, row.rater, row.prompt) if row.prompt == "p3" else row for row in rows]
    known = {"p0", "p1", "p2"}
    one, two = ratings.standardise(rows, known), ratings.standardise(other, known)
    torch.testing.assert_close(one.values[:30], two.values[:30], atol=0, rtol=0)
    assert (one.values[30:] != two.values[30:]).any()
    assert one.values[:30].mean().item() == pytest.approx(0, abs=1e-12)
    assert one.values[:30].std(correction=0).item() == pytest.approx(1)
    stranger = [*rows, Rating("00", 2.0, "new", "p0"), Rating("35", 2.0, "unknown", "p3")]
    assert ratings.standardise(stranger, known).values.isfinite().all()


def test_held_out_ratings_move_no_number_of_the_head(rated: Path):
    before = fit(rated / "ratings.csv", LogMel())
    rows = lines(rated)
    learned = {str(prompt) for prompt in range(8)} - {_held(before, rated)}
    changed = [[file, value if file[0] in learned else "3", *more] for file, value, *more in rows]
    table(rated / "ratings.csv", changed)
    after = fit(rated / "ratings.csv", LogMel())
    torch.testing.assert_close(after.head.regression.values, before.head.regression.values, atol=0, rtol=0)


def _held(found: Fit, folder: Path) -> str:
    """The prompt whose clips are not among the points."""
    for prompt in range(8):
        point = found.head.pooling, LogMel().embed(audio.read(folder / f"{prompt}-0.wav"))
        if torch.cdist(pool(point[1], point[0]), found.head.regression.points).min() > 1e-6:
            return str(prompt)
    raise AssertionError("all are among the points")


def test_the_order_of_the_lines_makes_no_difference(rated: Path):
    first = fit(rated / "ratings.csv", LogMel()).head.digest
    rows = lines(rated)
    random.Random(1).shuffle(rows)
    table(rated / "ratings.csv", rows)
    assert fit(rated / "ratings.csv", LogMel()).head.digest == first


def test_raters_who_share_no_prompt_are_a_warning(rated: Path, capsys: pytest.CaptureFixture[str]):
    rows = [row for row in lines(rated) if row[2] == ("kind" if row[0] < "4" else "strict")]
    table(rated / "ratings.csv", rows)
    assert command() == 0
    assert capsys.readouterr().err.count("no prompt was rated by two raters") == 1


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    err = capsys.readouterr().err.strip().splitlines()
    assert code == 2, err
    assert not Path("out").exists(), "nothing is written"
    assert sum("warning" not in line for line in err) == 1, err
    assert err[-1].startswith("dragontune: expected ")
    return err[-1]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("0-0.wav", "good", "a", "p")], ["number", "line 2", "good"]),
        ([("0-0.wav", "nan", "a", "p")], ["number", "line 2", "nan"]),
        ([("0-0.wav", "inf", "a", "p")], ["number", "line 2", "inf"]),
        ([("0-0.wav", "1e300", "a", "p")], ["number", "line 2", "1e300"]),
        ([("0-0.wav", "3", "a", "p"), ("0-1.wav", "", "a", "p")], ["rating", "line 3", "empty"]),
        ([("0-0.wav", "3", " ", "p")], ["rater", "line 2", "empty"]),
        ([("0-0.wav", "3", "a")], ["prompt", "line 2", "empty"]),
        ([("0-0.wav", "3", "a", "p"), ("0-0.wav", "4", "a", "p")], ["one rating of 0-0.wav by a", "two"]),
        ([("0-0.wav", "3", "a", "p"), ("0-0.wav", "4", "b", "q")], ["one prompt for 0-0.wav"]),
        ([], ["without lines"]),
        ([(f"0-{i}.wav", i, "a", "p") for i in range(4)], ["10 readable files", "4"]),
        ([(f"{i // 4}-{i % 4}.wav", i, "a", "p") for i in range(12)], ["2 prompts", "1"]),
        ([(f"{i // 4}-{i % 4}.wav", 3, "a", f"{i // 4}") for i in range(12)], ["differ", "3 for every file"]),
        ([(f"gone-{i}.wav", i, "a", f"{i // 4}") for i in range(12)], ["10 readable files", "0"]),
    ],
)
def test_bad_tables(rated: Path, capsys: pytest.CaptureFixture[str], rows: list[tuple], words: list[str]):
    table(rated / "ratings.csv", rows)
    sentence = refused(capsys, command())
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["columns", "file, rating, rater, prompt"]),
        (b"\n\n", ["columns"]),
        (b"file;rating;rater;prompt\n1.wav;3;a;p\n", ["columns", "commas"]),
        (b"file,rating,prompt\n1.wav,3,p\n", ["columns", "none named rater"]),
        ("file,rating,rater,prompt\n1.wav,3,Jürgen,p\n".encode("latin-1"), ["UTF-8"]),
        (b"file,rating,rater,prompt\n1.wav,3,\x00,p\n" + b"x" * 200000, ["ratings.csv"]),
    ],
)
def test_files_that_are_no_tables(rated: Path, capsys: pytest.CaptureFixture[str], content: bytes, words: list[str]):
    (rated / "ratings.csv").write_bytes(content)
    sentence = refused(capsys, command())
    assert all(word in sentence for word in words), sentence


def test_paths_that_are_wrong(rated: Path, capsys: pytest.CaptureFixture[str]):
    assert "nowhere.csv" in refused(capsys, command("nowhere.csv"))
    assert "rated" in refused(capsys, command("rated"))
    given = ["fit-aesthetics", "rated/ratings.csv", "--encoder", "log-mel", "--out"]
    assert ".safetensors" in refused(capsys, cli.run([*given, "out/head.pt"]))
    assert "choice" in refused(capsys, command("rated/ratings.csv", "--head", "forest"))
    assert "Nobody" in refused(capsys, cli.run([*given, "out/x.safetensors", "--encoder", "Nobody"]))


def test_files_that_cannot_be_read_are_named_and_left_out(rated: Path, capsys: pytest.CaptureFixture[str]):
    (rated / "0-0.wav").unlink()
    (rated / "1-1.wav").write_bytes(b"no audio")
    assert command("rated/ratings.csv", "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["files"] == 30
    assert captured.err.count("warning") == 2
    assert "0-0.wav" in captured.err
    assert "1-1.wav" in captured.err


def test_one_rater_is_a_warning(rated: Path, capsys: pytest.CaptureFixture[str]):
    table(rated / "ratings.csv", [row for row in lines(rated) if row[2] == "kind"])
    assert command() == 0
    assert "one rater (kind)" in capsys.readouterr().err


def test_two_prompts_are_enough(rated: Path, capsys: pytest.CaptureFixture[str]):
    rows = [(file, value, rater, "low" if file < "4" else "high") for file, value, rater, _ in lines(rated)]
    table(rated / "ratings.csv", rows)
    assert command("rated/ratings.csv", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["held_out"] == {"files": 16, "prompts": 1}
    assert (report["plcc"]["low"], report["plcc"]["high"]) == (-1.0, 1.0), "one prompt says nothing about others"


def test_order_extra_columns_and_a_byte_order_mark_do_not_matter(rated: Path, capsys: pytest.CaptureFixture[str]):
    rows = [(prompt, "x", rater, value, file) for file, value, rater, prompt in lines(rated)]
    path = table(rated / "ratings.csv", rows, ("prompt", "comment", "rater", "rating", "file"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert command("rated/ratings.csv", "--json") == 0
    assert json.loads(capsys.readouterr().out)["plcc"]["value"] > 0.9

"""What a recipe names and does not contain must be the same in every part of a run."""

import json

import pytest

from dragontune.errors import InputError
from dragontune.training import outside
from dragontune.training.run_folder import RunFolder


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a reel\na jig\n")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "one.wav").write_bytes(b"1")
    (tmp_path / "own.py").write_text("import mine_beside\nf = 1\n")
    (tmp_path / "mine_beside.py").write_text("g = 1\n")
    return tmp_path


FIXED = {
    "model": "tiny-music",
    "prompts": "prompts.txt",
    "start": "prompts.txt",
    "reward": {
        "class_path": "dragontune.rewards.frechet.SetFrechet",
        "init_args": {"exemplars": "real", "cache": "real", "name": "", "other": "."},
    },
    "guard": {"rewards": {"own": {"class_path": "own.py:Own", "init_args": {"writes": "scores.csv"}}}},
}


def claimed(place, fixed=FIXED):
    folder = RunFolder(place / "run")
    folder.path.mkdir(exist_ok=True)
    folder.check(json.dumps(fixed), False)
    folder.claim("text", json.dumps(fixed))
    return folder


def test_what_is_known(place):
    (place / "scores.csv").write_text("1")
    folder = claimed(place)
    known = json.loads((folder.path / "checkpoints" / "outside.json").read_text())
    assert set(known) == {"tiny-music", "prompts.txt", "real", "own.py:Own"}
    assert all(len(digest) == 64 for digest in known.values())
    folder.check(json.dumps(FIXED), True)


@pytest.mark.parametrize(
    ("name", "said"),
    [("prompts.txt", "prompts.txt has other content"), ("real/one.wav", "real has"), ("own.py", "own.py:Own has")],
)
def test_other_content_is_refused(place, name, said):
    folder = claimed(place)
    (place / name).write_bytes(b"other")
    with pytest.raises(InputError, match=f"files that .* was started with, got others .{said}") as caught:
        folder.check(json.dumps(FIXED), True)
    assert "\n" not in str(caught.value)
    (folder.path / "checkpoints" / "outside.json").unlink()  # as of a run that was started before there was one
    folder.check(json.dumps(FIXED), True)
    folder.claim("text", json.dumps(FIXED))
    (place / name).write_bytes(b"another")
    with pytest.raises(InputError, match=said):
        folder.check(json.dumps(FIXED), True)


def test_added_renamed_and_gone(place):
    folder = claimed(place)
    (place / "real" / ".hidden").write_bytes(b"2")
    folder.check(json.dumps(FIXED), True)
    (place / "real" / "two.wav").write_bytes(b"2")
    (place / "prompts.txt").unlink()
    with pytest.raises(InputError, match=r"prompts.txt is no longer there; real has other content"):
        folder.check(json.dumps(FIXED), True)


def test_a_module_beside_the_users_file(place, monkeypatch):
    monkeypatch.syspath_prepend(str(place))
    __import__("mine_beside")
    folder = claimed(place)
    folder.check(json.dumps(FIXED), True)
    (place / "mine_beside.py").write_text("g = 2\n")
    with pytest.raises(InputError, match=r"mine_beside.py has other content"):
        folder.check(json.dumps(FIXED), True)


def test_the_lora_that_a_run_keeps(place):
    folder = claimed(place)
    (folder.path / outside.START).mkdir()
    (folder.path / outside.START / "adapter_model.safetensors").write_bytes(b"1")
    folder.note(json.dumps(FIXED))
    moved = RunFolder(place / "elsewhere")
    folder.path.rename(moved.path)
    moved.check(json.dumps(FIXED), True)
    (moved.path / outside.START / "adapter_model.safetensors").write_bytes(b"2")
    with pytest.raises(InputError, match="RUN/start has other content"):
        moved.check(json.dumps(FIXED), True)


def test_a_large_file_is_known_by_pieces(place, monkeypatch):
    monkeypatch.setattr(outside, "WHOLE", 1000)
    monkeypatch.setattr(outside, "PIECE", 10)
    content = bytearray(b"0" * 5000)
    (place / "prompts.txt").write_bytes(content)
    folder = claimed(place)
    folder.check(json.dumps(FIXED), True)
    for position in (0, 4999):
        (place / "prompts.txt").write_bytes(content[:position] + b"1" + content[position + 1 :])
        with pytest.raises(InputError, match=r"prompts.txt has"):
            folder.check(json.dumps(FIXED), True)


def test_a_start_that_was_killed_before_it_had_the_folder_is_forgotten(place):
    folder = claimed(place)
    (folder.path / "checkpoints" / "recipe.json").unlink()  # written last
    (place / "prompts.txt").write_text("a hornpipe\n")
    claimed(place)
    folder.check(json.dumps(FIXED), True)


def test_a_damaged_file_of_ours_is_no_traceback(place):
    folder = claimed(place)
    (folder.path / "checkpoints" / "recipe.json").write_bytes(b"\xff[[")
    with pytest.warns(UserWarning, match=r"recipe.json is damaged"):
        folder.check(json.dumps(FIXED), True)
    (folder.path / "checkpoints" / "finished.json").write_bytes(b"{")
    assert not folder.finished("text")

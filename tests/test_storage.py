"""A full or broken disk at every kind of write: one sentence, exit code 2, and `--resume` ends with the same bytes."""

import builtins
import errno
import io
import os
import resource
import sys
import warnings

import pytest

from dragontune import cli
from dragontune.commands import parsing
from dragontune.training import files
from small_runs import make_workplace
from test_signals import ended, in_child

TUNE = ["tune", "recipe.yaml", "--resume", "--loop.rounds", "3", "--loop.checkpoint_every", "2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder, before = make_workplace(tmp_path_factory.mktemp("disk")), os.getcwd()
    os.chdir(folder)
    parsing.import_parts()
    assert cli.run([*TUNE, "--out", "whole"]) == 0
    yield folder
    os.chdir(before)


def contents(run):
    parts = [path for part in ("adapter", "samples") for path in sorted((run / part).rglob("*")) if path.is_file()]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in parts}


def failing(monkeypatch, name, times, code):
    """Opening a file for writing whose path holds `name`, the `times`-th time and from then on, is such an error."""
    count, opened = [0], io.open

    def open(file, mode="r", *arguments, **named):
        if set(mode) & set("wax+") and name in str(file):
            count[0] += 1
            if count[0] >= times:
                raise OSError(code, os.strerror(code), str(file))
        return opened(file, mode, *arguments, **named)

    monkeypatch.setattr(io, "open", open)
    monkeypatch.setattr(builtins, "open", open)
    return count


@pytest.mark.parametrize(
    ("name", "times"),
    [
        *[("recipe.partial.yaml", 1), ("recipe.partial.json", 1), ("outside.partial", 1), ("log.partial", 1)],
        *[("round-000002.partial.safetensors", 1), ("round-000002.partial.json", 1), ("round-000003.partial.json", 1)],
        *[(".flac", 1), (".flac", 4), ("log.jsonl", 1), ("log.jsonl", 3), ("adapter", 1), ("README", 1), ("README", 2)],
        *[("index", 1), ("metrics", 1), ("finished", 1)],
    ],
)
def test_every_kind_of_write(place, monkeypatch, capsys, name, times):
    code = (errno.ENOSPC, errno.EROFS)[len(name) % 2]
    run = place / f"{name}-{times}-{code}"
    with monkeypatch.context() as patch:
        count = failing(patch, name, times, code)
        assert cli.run([*TUNE, "--out", run.name]) == 2
    said = capsys.readouterr().err
    assert count[0] >= times
    assert "Traceback" not in said
    assert [line for line in said.splitlines() if line.startswith("dragontune: expected ")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing that was whole is damaged
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*(health|NOTHING|killed while saving).*")
        assert cli.run([*TUNE, "--out", run.name]) == 0
    assert contents(run) == contents(place / "whole")
    assert (run / "report" / "index.html").exists()
    assert not [path for path in run.rglob(".*")]


@pytest.mark.parametrize("limit", [200, 3_000, 20_000, 100_000])
def test_a_limit_on_the_size_of_files(place, limit):
    """A real refusal of the system, wherever in the run it comes."""
    run = place / f"limit-{limit}"

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        code = cli.run([*TUNE, "--out", run.name])
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return code

    said = io.StringIO()
    read, write = os.pipe()  # what is said goes through no file
    child = in_child(lambda: _through(write, limited))
    os.close(write)
    with os.fdopen(read) as pipe:
        said.write(pipe.read())
    assert ended(child) == 2, said.getvalue()
    assert "dragontune: expected room on the disk, got none left" in said.getvalue()
    assert "Traceback" not in said.getvalue()
    assert cli.run([*TUNE, "--out", run.name]) == 0
    assert contents(run) == contents(place / "whole")


def _through(handle, work):
    sys.stdout = sys.stderr = os.fdopen(handle, "w", buffering=1)
    return work()


@pytest.mark.parametrize("out", ["/proc/x", "/proc/self/x/y", "/dev/null", "/dev/null/x"])
def test_where_no_folder_can_be_made(place, capsys, out):
    assert cli.run([*TUNE, "--out", out]) == 2
    assert f"got {out}" in capsys.readouterr().err


def test_what_a_killed_process_had_begun_is_swept_away(tmp_path):
    (tmp_path / ".adapter.partial").mkdir()
    (tmp_path / ".adapter.partial" / "a").write_text("1")
    (tmp_path / ".recipe.partial.yaml").write_text("1")
    (tmp_path / "recipe.yaml").write_text("1")
    files.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_disk_that_fails_is_said():
    assert "a disk that works" in str(files.storage_trouble(OSError(errno.EIO, "Input/output error", "place")))

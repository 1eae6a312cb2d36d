"""No text becomes a path, and no link leads a file out of the folder that is written to."""

from pathlib import Path

import pytest

from dragontune import cli
from dragontune.commands.generate import Request
from dragontune.commands.opening import Opening
from dragontune.errors import InputError
from dragontune.evaluation import report
from dragontune.media import audio
from dragontune.sampling import Sampler
from dragontune.training import files, links
from dragontune.training.listening import file_name
from dragontune.training.run_folder import RunFolder

NAMES = [
    "../../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "~",
    "~root/x",
    "a/b\\c",
    "C:\\Windows\\x",
    "con",
    "nul.txt",
    "aux",
    "a\x00b",
    "a\nb",
    "\x1b[2J",
    "x" * 5000,
    "🎵" * 3000,
    "",
    " ",
    "-rf",
    "$(id)",
    "`id`",
    ".hidden",
    "a:b",
    "%2e%2e%2f",
    "\u2025/\u2215",
    "\uff0e\uff0e\uff0f",
    "file:///etc/passwd",
    "\\\\server\\share",
    "LPT1",
    "a" * 254 + "/",
]


@pytest.mark.parametrize("prompt", NAMES)
def test_prompts_make_harmless_names(tmp_path: Path, prompt: str):
    name = file_name(7, prompt)
    assert name.startswith("0007")
    assert len(name) <= 70
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert (tmp_path / f"{name}.flac").resolve().parent == tmp_path.resolve()


def test_requests_refuse_what_no_model_reads():
    for prompt in ("a\x00b", "\udcff", "x" * 200_000):
        with pytest.raises(InputError, match="expected a prompt"):
            Request(Opening("tiny-music"), (prompt,), (), 1.0, 0, Sampler())


def test_links_that_lead_out_are_refused(tmp_path: Path):
    home, run = tmp_path / "home", tmp_path / "run"
    for folder in (home, run, run / "checkpoints"):
        folder.mkdir()
    (run / "log.jsonl").symlink_to("checkpoints")  # inside
    links.refuse(run)
    for place in (run / "samples", run / "checkpoints" / "recipe.json", run / ".adapter.partial"):
        place.symlink_to(home)
        with pytest.raises(InputError, match="a link to"):
            links.refuse(run)
        with pytest.raises(InputError, match="a link to"):
            RunFolder(run).check("{}", resume=True)
        place.unlink()
    (run / "circle").symlink_to("circle")
    links.refuse(run)


def test_a_run_may_be_a_link_itself(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk")
    links.refuse(tmp_path / "run")
    links.refuse(tmp_path / "new")


def test_generate_writes_through_no_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, other = tmp_path / "out", tmp_path / "other"
    out.mkdir()
    other.mkdir()
    (out / ".batches").symlink_to(other)
    assert cli.run(["generate", "--model", "tiny-music", "--prompt", "a", "--out", str(out), "--steps", "1"]) == 2
    assert "a link to" in capsys.readouterr().err
    assert not list(other.iterdir())


def test_half_written_files_are_not_written_through_links(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("mine")
    (tmp_path / ".clip.partial.flac").symlink_to(secret)
    files.write(tmp_path / "clip.flac", b"clip")
    (tmp_path / ".index.html.part").symlink_to(secret)
    report.write(tmp_path / "index.html", "page")
    assert secret.read_text() == "mine"
    assert (tmp_path / "clip.flac").read_bytes() == b"clip"
    assert (tmp_path / "index.html").read_text() == "page"
    assert not (tmp_path / "index.html").is_symlink()


@pytest.mark.parametrize(
    "entry", ["/etc/passwd", "../../../../etc/passwd", "x" * 5000, "a\x00b", "\x1b[2J.wav", "~/.ssh/id"]
)
def test_playlists_read_media_or_nothing(tmp_path: Path, entry: str):
    (tmp_path / "songs.m3u").write_text(entry)
    if len(entry) > 4096:
        with pytest.raises(InputError, match="more than 4096 bytes"):
            audio.playlist(tmp_path / "songs.m3u")
        return
    (named,) = audio.playlist(tmp_path / "songs.m3u")
    with pytest.raises(InputError) as refused:
        audio.read(named)
    assert "root:" not in str(refused.value)

"""Texts of others on terminals, in tables and in model cards."""

import csv
import warnings
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dragontune import cli
from dragontune.commands import doctor, media
from dragontune.commands.media import Item
from dragontune.commands.options import speak_plainly
from dragontune.commands.recipe import Recipe
from dragontune.errors import InputError
from dragontune.plain_text import LONGEST, cell, line, markdown, uncell
from dragontune.training.card import Card

FORMULAS = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "'=1", "''=1"]
EVIL = [
    "x\nlicense: mit\nevil: yes",
    "!!python/object/apply:os.system [id]",
    "&a [*a]",
    "# heading\n# another",
    "a: b",
    "yes",
    "null",
    "1.5",
    "<script>alert(1)</script>",
    "[click](javascript:alert(1))",
    "![x](https://example.org/x.png)",
    "`code`",
    "| a | b |",
    "---",
    "*bold*",
    "```\nend",
    "\x1b[2J",
    "\u202eevil",
    "'; rm -rf ~; '",
    '"quoted"',
    "{a: b}",
    "- item",
    "%tag",
    "@at",
    "~",
    "a\x00b",
    "x" * 3000,
]


@given(st.text(max_size=50))
def test_a_line_is_printable(text: str):
    assert line(text).isprintable()
    assert line(line(text)) == line(text)
    assert len(line(text * 9999)) < 12 * LONGEST
    assert line(text) == text or not text.isprintable()


@given(st.text())
def test_a_cell_is_no_formula_and_comes_back(text: str):
    assert not cell(text).startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert uncell(cell(text)) == text


@pytest.mark.parametrize("text", FORMULAS)
def test_tables_hold_no_formulas(tmp_path: Path, text: str):
    (tmp_path / "a.flac").write_bytes(b"")
    media.write_table(tmp_path, [Item(tmp_path / "a.flac", text)])
    with (tmp_path / media.TABLE).open(newline="") as file:
        assert list(csv.reader(file))[1][1].startswith("'")
    assert media.items(tmp_path, None)[0].prompt == text


def test_a_plain_prompt_stays_plain(tmp_path: Path):
    (tmp_path / "a.flac").write_bytes(b"")
    media.write_table(tmp_path, [Item(tmp_path / "a.flac", 'a reel, "for" flute')])
    assert 'a.flac,"a reel, ""for"" flute"' in (tmp_path / media.TABLE).read_text()


@pytest.mark.parametrize("content", [b"file\na.flac", b"\xff\xfe", b"file,prompt\n" + b"x" * 200_000])
def test_tables_that_are_none(tmp_path: Path, content: bytes):
    (tmp_path / "a.flac").write_bytes(b"")
    (tmp_path / media.TABLE).write_bytes(content)
    with pytest.raises(InputError, match="expected a table"):
        media.items(tmp_path, None)


@pytest.mark.parametrize("content", [b"file,prompt\na.flac", b"", b"file,prompt\n,x\na.flac,,,y"])
def test_cells_that_are_missing_are_empty(tmp_path: Path, content: bytes):
    (tmp_path / "a.flac").write_bytes(b"")
    (tmp_path / media.TABLE).write_bytes(content)
    assert media.items(tmp_path, None)[0].prompt == ""


def test_a_prompt_beside_a_clip_that_is_no_text(tmp_path: Path):
    (tmp_path / "a.flac").write_bytes(b"")
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"expected a prompt in UTF-8, got .*a\.txt"):
        media.items(tmp_path, None)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J\x07", "a\rb", "\u2028x"])
def test_what_is_said_is_one_line(capsys: pytest.CaptureFixture[str], name: str):
    assert cli.run([name]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.removesuffix("\n").isprintable()
    with warnings.catch_warnings():
        speak_plainly()
        warnings.showwarning(name, UserWarning, "", 0)
    assert capsys.readouterr().err.removesuffix("\n").isprintable()


@pytest.mark.parametrize("text", EVIL)
def test_a_card_says_what_it_is_told_and_no_more(text: str):
    metrics = {
        "prompts": 4,
        "rewards": {
            text: {
                "scope": "set",
                "target": True,
                "before": 0.0,
                "after": 1.0,
                "win_rate": 1.0,
                "win_rate_ci95": [0.5, 1.0],
            }
        },
    }
    card = Card(text, "Dragon", text, text, [], metrics).text()
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head) == {"base_model": text, "library_name": "peft", "tags": ["lora", "dragontune"]}
    plain = Card("m", "Dragon", "r", "f", [], {**metrics, "rewards": {"n": metrics["rewards"][text]}}).text()
    assert len(body.splitlines()) == len(plain.split("---\n", 2)[2].splitlines())
    assert body.count("```") == 2
    outside = body.split("```")[0]
    assert "<script" not in outside.replace("\\<", "")
    assert "](" not in outside.replace("\\]", "")
    row = next(each for each in body.splitlines() if each.endswith("50.0% to 100.0% |"))
    assert row.replace("\\\\", "").replace("\\|", "").count("|") == 8


def test_a_plain_card_is_plain():
    card = Card("stabilityai/stable-audio-open-1.0", "Dragon", "SetFrechet", "runs/x", [], None).text()
    assert "base_model: stabilityai/stable-audio-open-1.0\n" in card
    assert "# stabilityai/stable-audio-open-1.0, tuned with Dragon towards SetFrechet" in card
    assert "dragontune generate --model stabilityai/stable-audio-open-1.0 --adapter runs/x --prompt" in card


@given(st.text(max_size=30))
def test_markdown_is_one_line(text: str):
    assert "\n" not in markdown(text)


def test_tables_take_names_for_no_markup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    finding = doctor.Finding("[/bold]what", "in [red]a[/nothing]\x1b[2J/prompts.txt")
    monkeypatch.setattr(doctor, "examine", lambda *given: iter([finding]))
    doctor.doctor(object.__new__(Recipe), tmp_path)
    said = capsys.readouterr().out
    assert "[/bold]what" in said
    assert "[red]a[/nothing]\\x1b[2J" in said

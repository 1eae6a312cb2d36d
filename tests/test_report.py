import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from dragontune.evaluation import plots
from dragontune.evaluation.comparison import Verdict
from dragontune.evaluation.evaluate import Evaluation, evaluate
from dragontune.evaluation.plots import Clip
from dragontune.evaluation.report import MINUS, change, duration, numbers, percent, size, verb, write
from dragontune.evaluation.statistics import Change, WinRate
from dragontune.rewards.base import Reward
from dragontune.sampling import Sampler
from fakes import Centre, Loudness, Pitch, Tones

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>\" & 'quoted'"
HISTORY = [{"round": i, "seconds": 30.0, "reward": -3.0 + i, "loss": 0.5, "metrics": {}} for i in range(3)]


def tone(hertz=440.0, rate=16000, seconds=1.0, channels=1):
    time = np.arange(int(seconds * rate)) / rate
    return Clip(np.repeat(0.5 * np.sin(2 * np.pi * hertz * time)[None], channels, 0).astype(np.float32), rate)


class Tags(HTMLParser):
    """Collects start tags, and checks that tags are closed in order."""

    void = frozenset({"meta", "link", "br", "img", "path", "line", "use"})

    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    prompts = folder / "p.txt"
    prompts.write_text("\n".join(f"{EVIL} {'x' * i}" for i in range(12)))
    rewards = {EVIL: Pitch(), "fallen": Pitch(-1.0), "loud": Loudness()}
    evaluation = Evaluation(str(prompts), 12, 4, 10, (0.0, 0.5, 1.0), rewards, 6, 2)
    generator = Tones(shift=0.4)
    generator.name = "<b>model</b>"
    sampler, target = Sampler(steps=4), Centre(1.0)
    evaluate(generator, evaluation, target, sampler, 0, folder, HISTORY, recipe=f"model: x # {EVIL}\n")
    return (folder / "index.html").read_text()


def test_page_is_well_formed_and_asks_for_nothing(page):
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    for tag, attributes in tags.found:
        for name in ("src", "href", "xlink:href", "srcset", "poster", "action"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), (tag, attributes[name])
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert "default-src 'none'" in page


def test_everything_from_outside_is_escaped(page):
    tags = Tags()
    tags.feed(page)
    assert sum(tag == "script" for tag, _ in tags.found) == 1
    assert not any("onerror" in attributes for _, attributes in tags.found)
    assert "<b>model</b>" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page


def test_identifiers_are_unique_and_labels_lead_somewhere(page):
    tags = Tags()
    tags.feed(page)
    found = [attributes["id"] for _, attributes in tags.found if "id" in attributes]
    assert len(found) == len(set(found))
    for _, attributes in tags.found:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in found
        if attributes.get("xlink:href", "").startswith("#"):
            assert attributes["xlink:href"][1:] in found


def test_page_has_players_plots_and_warning(page):
    tags = Tags()
    tags.feed(page)
    assert sum(tag == "audio" for tag, _ in tags.found) == 4
    assert sum(tag == "img" and bool(attributes.get("alt")) for tag, attributes in tags.found) == 4
    assert "Over-optimisation?" in page
    assert "Guard" not in page
    assert "Peak memory" not in page
    assert "While tuning" in page
    assert "1 min 30 s" in page
    assert "lower is better" in page
    assert re.search(r"The target distance\s+fell\s+from", page)
    for colour in plots.COLOURS:
        assert colour not in page


def test_audio_is_the_clip_itself():
    clip = tone(channels=2)
    kind, content = plots.audio_uri(clip).split(",")
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
    assert kind == "data:audio/flac;base64"
    assert rate == clip.rate
    np.testing.assert_allclose(samples.T, clip.waveform, atol=2**-14)


def test_long_audio_is_compressed_and_loud_audio_clipped():
    kind, content = plots.audio_uri(tone(rate=44100, seconds=2), largest=1_000).split(",")
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
    assert (kind, rate) == ("data:audio/mpeg;base64", 44100)
    assert abs(len(samples) / rate - 2) < 0.1
    loud = Clip(4 * tone().waveform, 16000)
    _, content = plots.audio_uri(loud).split(",")
    assert np.abs(soundfile.read(io.BytesIO(base64.b64decode(content)))[0]).max() <= 1


def test_mel_filters_cover_every_band():
    for window, rate in ((1024, 16000), (512, 48000), (2048, 44100)):
        filters = plots.mel_filters(96, window, rate)
        np.testing.assert_allclose(filters.sum(0), 1)
        assert (filters >= 0).all()


def test_log_mel_peaks_at_the_tone():
    edges = 2595 * np.log10(1 + 8000 / 700) * np.arange(1, 97) / 97
    for hertz in (300, 1000, 4000):
        band = plots.log_mel(tone(hertz)).mean(1).argmax()
        assert 700 * (10 ** (edges[band] / 2595) - 1) == pytest.approx(hertz, rel=0.06)
    levels = plots.log_mel(tone(1000))
    assert levels.shape[1] <= 401
    assert levels.max() == pytest.approx(-6, abs=6)


def test_short_and_silent_clips_can_be_drawn():
    for clip in (Clip(np.zeros((1, 16000), np.float32), 16000), Clip(np.zeros((2, 3), np.float32), 16000)):
        levels = plots.log_mel(clip)
        assert np.isfinite(levels).all()
        assert plots.spectrogram(levels, -60).startswith("data:image/png;base64,")
        assert plots.outline(clip).startswith("M0.0 ")


def test_plots_are_the_same_every_time():
    drawn = [plots.line_plot([0, 1, 2], [1.0, 1.0, 1.0], "a", "round", rounds=True) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0].startswith('<svg viewBox="')


VERDICT = Verdict("d", "D", "set", True, True, -10.2, -7.04, WinRate(0.93, 0.88, 0.97), Change(2.8, 3.5))


def test_distances_are_told_without_their_sign():
    assert verb(VERDICT) == "fell"
    assert change(VERDICT) == f"{MINUS}31\N{NO-BREAK SPACE}%"
    assert VERDICT.result == 1
    assert verb(replace(VERDICT, distance=False)) == "rose"
    assert verb(replace(VERDICT, after=-10.2)) == "stayed"


def test_numbers_share_their_decimals():
    assert numbers(10.2, 7.04) == ("10.2", "7.0")
    assert numbers(-0.3121, 0.0) == (f"{MINUS}0.312", "0.000")
    assert numbers(12345.6, 1.0) == ("12,346", "1")
    assert numbers(0.0) == ("0.00",)


def test_percent_does_not_round_to_certainty():
    assert [percent(share) for share in (0.0, 0.001, 0.5, 0.9962, 1.0)] == ["0", "0.1", "50", "99.6", "100"]


def test_size():
    assert [size(count) for count in (5 * 2**20, 3 * 2**29)] == ["5 MiB", "1.50 GiB"]


def test_duration():
    assert [duration(seconds) for seconds in (4.26, 60, 125)] == ["4.3 s", "1 min 0 s", "2 min 5 s"]


def test_write_is_all_or_nothing(tmp_path):
    path = tmp_path / "page.html"
    write(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_stand_in_for_the_target_is_declared(tmp_path):
    prompts = tmp_path / "p.txt"
    prompts.write_text("one\ntwo\nthree\nfour\n")
    cases: list[tuple[dict[str, Reward], bool]] = [({}, False), ({"target": Pitch()}, True)]
    for rewards, declared in cases:
        evaluation = Evaluation(str(prompts), 4, 2, 4, (), rewards, 6, 0)
        evaluate(Tones(), evaluation, Centre(), Sampler(steps=2), 0, tmp_path, HISTORY)
        page = (tmp_path / "index.html").read_text()
        assert ("puts in its place" in page) == declared
        assert ('class="badge"' in page) != declared
        assert 'Centre, <span class="arrow">↓' in page
        assert "Listen</h2>" not in page

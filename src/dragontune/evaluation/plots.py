"""Pictures for the report: log-mel spectrograms (PNG), waveforms and line plots (SVG that takes the page's colours).

The mel scale is O'Shaughnessy's (1987), 2595 log10(1 + f / 700), with triangular filters of equal height.
"""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

COLOURS = {"#010101": "var(--ink)", "#020202": "var(--soft)", "#030303": "var(--line)", "#040404": "var(--accent)"}
"""Placeholders drawn by matplotlib, and the page's variables that take their place."""
INK, SOFT, LINE, ACCENT = COLOURS


@dataclass(frozen=True, eq=False)
class Clip:
    """One item's audio: samples in [-1, 1] by channel, and hertz."""

    waveform: Float[np.ndarray, " channels samples"]
    rate: int

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.waveform.shape[1] / self.rate

    def mono(self) -> Float[np.ndarray, " samples"]:
        """The mean of the channels."""
        return self.waveform.mean(0)


def log_mel(clip: Clip, bands: int = 96, columns: int = 400) -> Float[np.ndarray, " bands columns"]:
    """Decibels relative to full scale, low frequencies first; short clips get fewer columns."""
    window = 2 ** round(np.log2(0.064 * clip.rate))
    hop = max(window // 8, clip.waveform.shape[1] // columns)
    padded = np.pad(clip.mono(), (window // 2, window))
    starts = np.arange(0, clip.waveform.shape[1], hop)
    frames = padded[starts[:, None] + np.arange(window)] * np.hanning(window)
    power = np.abs(np.fft.rfft(frames, axis=1) / (window / 4)) ** 2
    return 10 * np.log10(power @ mel_filters(bands, window, clip.rate) + 1e-10).T


def mel_filters(bands: int, window: int, rate: int) -> Float[np.ndarray, " bins bands"]:
    """Triangles that overlap by half, from 0 Hz to half the sample rate; each column sums to 1."""
    bins = np.fft.rfftfreq(window, 1 / rate)
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + rate / 1400), bands + 2) / 2595) - 1)
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    filters = np.clip(np.minimum(rising, falling), 0, None)
    # A low band can fall between two bins: it then takes the nearest bin.
    nearest = np.abs(bins[:, None] - edges[1:-1]).argmin(0)
    empty = filters.sum(0) == 0
    filters[nearest[empty], np.flatnonzero(empty)] = 1
    return filters / filters.sum(0)


def spectrogram(levels: Float[np.ndarray, " bands columns"], top: float, floor: float = 70) -> str:
    """A picture (PNG data URI) of `log_mel` levels, black at `floor` dB below `top` and bright at `top`."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, levels, vmin=top - floor, vmax=top, cmap="magma", origin="lower", format="png")
    return data_uri(file.getvalue(), "image/png")


def outline(clip: Clip, columns: int = 240) -> str:
    """The waveform's envelope as an SVG path in a box of `columns` by 2 units, centred on 0."""
    parts = np.array_split(clip.mono(), min(columns, clip.waveform.shape[1]))
    scale = columns / len(parts)
    upper = [f"{i * scale:.1f} {-max(part.max(), 0.005):.3f}" for i, part in enumerate(parts)]
    lower = [f"{i * scale:.1f} {-min(part.min(), -0.005):.3f}" for i, part in enumerate(parts)]
    return "M" + " L".join(upper + lower[::-1]) + "Z"


def audio_uri(clip: Clip, largest: int = 400_000) -> str:
    """The clip as a data URI: lossless FLAC, or MP3 when that would take more than `largest` bytes.

    Both play in every current browser, phones included; Ogg does not.
    """
    import soundfile

    samples = np.clip(clip.waveform.T, -1, 1)
    file = io.BytesIO()
    soundfile.write(file, samples, clip.rate, format="FLAC")
    if len(file.getvalue()) <= largest:
        return data_uri(file.getvalue(), "audio/flac")
    file = io.BytesIO()
    soundfile.write(file, samples, clip.rate, format="MP3")
    return data_uri(file.getvalue(), "audio/mpeg")


def data_uri(content: bytes, mime: str) -> str:
    """Bytes inside an address, so that the page needs no other file."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def line_plot(
    x: Sequence[float],
    y: Sequence[float],
    name: str,
    across: str,
    *,
    size: tuple[float, float] = (4.6, 2.7),
    emphasis: Sequence[float] = (),
    rounds: bool = False,
    floor: float | None = None,
) -> str:
    """A line with a point at every value, as SVG to put inside the page; `emphasis` marks places on the x axis.

    `floor` is a value to compare with, drawn as a dashed line.
    `name` must be unique on the page and safe as an identifier. The x axis is labelled at every point, or, where the
    points are `rounds`, at some whole numbers.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, MaxNLocator

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for place in emphasis:
            axes.axvline(place, color=LINE, linewidth=1, zorder=0)
        if floor is not None:
            axes.axhline(floor, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        axes.plot(x, y, color=ACCENT, linewidth=2, marker="o", markersize=4.5 if len(x) <= 40 else 0, clip_on=False)
        axes.set_xlabel(across, color=SOFT)
        axes.set_ylim(*_limits([*y, *([] if floor is None else [floor])]))
        axes.margins(x=0.04)
        axes.tick_params(colors=SOFT, length=0, pad=5)
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True) if rounds else FixedLocator(x))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.ticklabel_format(axis="y", useOffset=False)
        for side in ("top", "left", "right"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(LINE)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _inline(file.getvalue(), name)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Room around the values; at least 2 % of their size, so that rounding errors do not look like mountains."""
    low, high = min(values), max(values)
    room = max(0.12 * (high - low), 0.01 * max(abs(low), abs(high)), 1e-9)
    return low - room, high + room


def _inline(svg: str, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true" focusable="false">', svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for placeholder, variable in COLOURS.items():
        svg = svg.replace(placeholder, variable)
    return svg

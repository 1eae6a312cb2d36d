"""Public-domain scores to plain notes: music21's corpus, by an allow-list of folders (see NOTICE).

Each movement or tune becomes one `Piece`, cached as a line of JSON, because parsing takes seconds and rendering needs
only the notes. Anything that music21 cannot read is left out and counted.
"""

import contextlib
import json
import multiprocessing
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.progress import track

# Folder -> (name in captions, kind). Tunes are one melody each; the rest have several parts.
COLLECTIONS = {
    "ryansMammoth": ("Ryan's Mammoth Collection", "tune"),
    "airdsAirs": ("Aird's Airs", "tune"),
    "monteverdi": ("Claudio Monteverdi", "parts"),
    "trecento": ("the Italian Trecento", "parts"),
    "corelli": ("Arcangelo Corelli", "parts"),
    "handel": ("George Frideric Handel", "parts"),
    "haydn": ("Joseph Haydn", "parts"),
    "mozart": ("Wolfgang Amadeus Mozart", "parts"),
    "beethoven": ("Ludwig van Beethoven", "parts"),
    "weber": ("Carl Maria von Weber", "parts"),
    "schumann_robert": ("Robert Schumann", "parts"),
    "chopin": ("Frédéric Chopin", "parts"),
    "joplin": ("Scott Joplin", "parts"),
}
SCORES = {".abc", ".mxl", ".xml", ".musicxml", ".krn"}
SHARE_ALIKE = ("ciconia",)  # files of other terms inside an allowed folder
KINDS = ("reel", "jig", "hornpipe", "strathspey", "clog", "march", "waltz", "polka", "fling", "air")


@dataclass(frozen=True)
class Piece:
    """One tune or movement: for every part a list of (onset, duration, pitch) in quarter notes and MIDI numbers."""

    name: str
    work: str  # pieces of one work go to one split
    collection: str
    kind: str  # "reel", "jig", ... for tunes; "parts" otherwise
    key: str
    metre: str
    bar: float  # quarter notes in a bar
    pickup: float
    parts: list[list[tuple[float, float, int]]]


def pieces(cache: Path) -> list[Piece]:
    """All pieces of the allow-listed folders, parsed once and kept in `cache`."""
    if not cache.exists():
        files = sorted(_files())
        found: list[Piece] = []
        with multiprocessing.get_context("spawn").Pool() as pool:
            for some in track(pool.imap(_read, files, chunksize=4), "reading scores", total=len(files)):
                found += some
        scratch = cache.with_suffix(".tmp")
        scratch.write_text("".join(json.dumps(asdict(piece)) + "\n" for piece in found))
        scratch.rename(cache)
    return [Piece(**json.loads(line)) for line in cache.read_text().splitlines()]


def _files() -> Iterator[Path]:
    from music21 import common

    root = Path(common.getCorpusFilePath())
    for folder in COLLECTIONS:
        for path in (root / folder).rglob("*"):
            if path.suffix in SCORES and not any(word in path.name.lower() for word in SHARE_ALIKE):
                yield path


def _read(path: Path) -> list[Piece]:
    from music21 import converter, environment, stream

    settings = environment.UserSettings()
    try:  # a scratch folder of our own: music21's default one is shared and holds pickles
        settings["directoryScratch"] = tempfile.mkdtemp()
    except environment.UserSettingsException:
        environment.Environment()["directoryScratch"] = tempfile.mkdtemp()
    try:
        parsed = converter.parse(path, forceSource=True, storePickle=False)
    except Exception:  # a foreign parser raises anything: leave the file out
        return []
    scores = list(parsed.scores) if isinstance(parsed, stream.Opus) else [parsed]
    found = []
    for number, score in enumerate(scores):
        try:
            piece = _piece(path, number if len(scores) > 1 else None, score)
        except Exception:
            continue
        if piece is not None:
            found.append(piece)
    return found


def _piece(path: Path, number, score) -> Piece | None:
    folder = next(part for part in path.parts if part in COLLECTIONS)
    collection, kind = COLLECTIONS[folder]
    if kind == "tune" and any(len(part.recurse().getElementsByClass("RepeatMark")) for part in score.parts):
        with contextlib.suppress(Exception):  # marks that do not add up: the tune as it is written
            score = score.expandRepeats()
    parts = []
    for part in score.parts or [score]:
        notes = []
        for element in part.flatten().notes:
            if element.duration.isGrace or type(element).__name__ == "ChordSymbol":
                continue
            onset, length = round(float(element.offset), 4), round(float(element.quarterLength), 4)
            notes.extend((onset, length, int(pitch.midi)) for pitch in element.pitches)
        notes = _join_ties(part, notes)
        if notes:
            parts.append(notes)
    if not parts or sum(map(len, parts)) < 16:
        return None
    metre = next(iter(score.recurse().getElementsByClass("TimeSignature")), None)
    if metre is None:
        return None
    key = score.analyze("key")
    first = next(iter(score.recurse().getElementsByClass("Measure")), None)
    pickup = float(first.duration.quarterLength) if first is not None else 0.0
    bar = float(metre.barDuration.quarterLength)
    if kind == "tune":
        title = " ".join(filter(None, [path.stem, score.metadata.title if score.metadata else ""])).lower()
        kind = next((k for k in KINDS if k in title), "air" if folder == "airdsAirs" else "tune")
    tag = "" if number is None else f"#{number}"
    return Piece(
        name=f"{folder}/{path.stem}{tag}",
        work=f"{folder}/{path.parent.name if path.parent.name != folder else path.stem}{tag}",
        collection=collection,
        kind=kind,
        key=f"{key.tonic.name.replace('-', ' flat').replace('#', ' sharp')} {key.mode}",
        metre=metre.ratioString,
        bar=bar,
        pickup=pickup if pickup < bar else 0.0,
        parts=parts,
    )


def _join_ties(part, notes):
    """Merge tied notes: a note that starts where a tied one of the same pitch ends lengthens it."""
    tied = {
        (round(float(e.offset), 4), int(p.midi))
        for e in part.flatten().notes
        if e.tie is not None and e.tie.type in ("stop", "continue")
        for p in e.pitches
    }
    merged: list[tuple[float, float, int]] = []
    last: dict[int, int] = {}
    for onset, duration, pitch in sorted(notes):
        if (onset, pitch) in tied and pitch in last:
            start, length, _ = merged[last[pitch]]
            if abs(start + length - onset) < 1e-3:
                merged[last[pitch]] = (start, round(length + duration, 4), pitch)
                continue
        last[pitch] = len(merged)
        merged.append((onset, duration, pitch))
    return merged

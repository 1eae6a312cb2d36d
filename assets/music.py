"""What a clip is made of: the facts a caption can tell, the arrangements, and the phrasings.

Facts are what is known for certain because the score or we ourselves decided it: instrument, tempo, metre, key, kind of
tune, collection, texture. A caption tells a random few of them in one of several ways.
"""

import random
from dataclasses import dataclass

# Name in captions -> (General MIDI programs from high part to low, octave shift, ways to say it).
INSTRUMENTS: dict[str, tuple[tuple[int, ...], int, tuple[str, ...]]] = {
    "piano": ((0,), 0, ("piano", "grand piano", "solo piano")),
    "harpsichord": ((6,), 0, ("harpsichord", "solo harpsichord")),
    "marimba": ((12,), 0, ("marimba", "wooden marimba")),
    "organ": ((19,), 0, ("organ", "church organ", "pipe organ")),
    "accordion": ((21,), 0, ("accordion", "solo accordion")),
    "guitar": ((24,), -12, ("guitar", "acoustic guitar", "classical guitar")),
    "banjo": ((105,), -12, ("banjo", "solo banjo")),
    "violin": ((40,), 0, ("violin", "fiddle", "solo violin")),
    "trumpet": ((56,), 0, ("trumpet", "solo trumpet")),
    "clarinet": ((71,), 0, ("clarinet", "solo clarinet")),
    "flute": ((73,), 12, ("flute", "solo flute")),
    "string quartet": ((40, 40, 41, 42), 0, ("string quartet", "two violins, viola and cello")),
    "choir": ((52,), 0, ("choir", "vocal choir", "choir of voices")),
    "brass": ((56, 60, 57, 58), 0, ("brass ensemble", "brass quartet", "brass section")),
}
FOR_TUNES = tuple(INSTRUMENTS)[:11]
FOR_PARTS = (*["string quartet"] * 2, *["choir"] * 2, *["brass"] * 2, "piano", "organ", "harpsichord", "guitar")
TEMPI = {"slow": (70, 75, 80, 85), "moderate": (100, 105, 110, 115), "fast": (135, 140, 145, 150)}
SPEEDS = {
    "slow": ("slow", "calm", "unhurried"),
    "moderate": ("moderate", "medium-tempo", "walking-pace"),
    "fast": ("fast", "lively", "quick"),
}
TEXTURES = {
    "melody": ("a single melody line", "an unaccompanied melody", "one voice"),
    "chords": ("chordal texture", "voices moving together", "block chords"),
    "counterpoint": ("several independent voices", "counterpoint", "a polyphonic texture"),
}


@dataclass(frozen=True)
class Facts:
    """What is true of a clip."""

    piece: str
    split: str
    instrument: str
    collection: str
    kind: str
    key: str
    metre: str
    bpm: int
    speed: str
    texture: str


def caption(facts: Facts, rng: random.Random, name_instrument: bool = True) -> str:
    """A sentence or a list of tags that tells some of the facts; `name_instrument=False` leaves the sound open."""
    instrument = rng.choice(INSTRUMENTS[facts.instrument][2])
    solo = len(INSTRUMENTS[facts.instrument][0]) == 1 and facts.instrument != "choir"
    speed = rng.choice(SPEEDS[facts.speed])
    texture = rng.choice(TEXTURES[facts.texture])
    kind = "piece" if facts.kind in ("parts", "tune") else facts.kind
    bpm, key, metre, source = f"{facts.bpm} BPM", facts.key, facts.metre, facts.collection
    a_speed = f"{'An' if speed[0] in 'aeiou' else 'A'} {speed}"
    a_kind = f"{'An' if kind[0] in 'aeiou' else 'A'} {kind}"
    if not name_instrument:
        forms = (
            f"{a_speed} {kind} in {key}",
            f"{a_kind} in {metre} from {source}",
            f"{speed} {kind}, {key}, {bpm}",
            f"{source}: {kind} in {key}, {metre} time",
            f"{a_speed} {kind} with {texture}",
            f"{kind}, {metre}, {bpm}, {texture}",
        )
        return rng.choice(forms)
    article = "an" if instrument[0] in "aeiou" else "a"
    alone = " alone" if solo and not instrument.startswith("solo") else ""
    forms = (
        f"{a_speed} {kind} in {key} played on {article} {instrument}",
        f"{instrument}, {kind}, {key}, {metre}, {bpm}",
        f"{instrument.capitalize()} playing {a_kind.lower()} from {source}, {speed}, in {metre}",
        f"{a_kind} for {instrument} in {key} at {bpm}",
        f"{speed} {instrument} music with {texture}",
        f"{source}, {instrument}, {speed} tempo",
        f"Music for {instrument}: {texture} in {key}, {metre} time, {bpm}",
        f"{article.capitalize()} {instrument}{alone}, {speed} {kind}",
        f"The sound of {article} {instrument}",
        f"A recording of {instrument}, {kind} in {metre}",
    )
    return rng.choice(forms)


def texture_of(notes: list[tuple[float, float, int]]) -> str:
    """One voice, voices together or voices apart, by mean polyphony and shared onsets of (onset, duration, pitch)."""
    length = max(o + d for o, d, _ in notes) - min(o for o, _, _ in notes)
    if sum(d for _, d, _ in notes) < 1.2 * length:
        return "melody"
    onsets = [o for o, _, _ in notes]
    shared = sum(onsets.count(o) > 1 for o in onsets) / len(onsets)
    return "chords" if shared > 0.6 else "counterpoint"

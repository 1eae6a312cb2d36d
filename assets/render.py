"""Notes to clips: windows of the pieces, arranged, played by FluidSynth with FluidR3 at 16 kHz, mono, 4.096 s.

Every clip is rendered by a fresh synthesizer, because one that has played before leaves its state in the next clip
and the result would depend on the order.
"""

import json
import multiprocessing
import random
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import numpy as np
from rich.progress import track

from corpus import Piece, pieces
from music import FOR_PARTS, FOR_TUNES, INSTRUMENTS, TEMPI, Facts, texture_of

RATE, SAMPLES = 16000, 65536
FONTS = ("/usr/share/sounds/sf2/FluidR3_GM.sf2", "/usr/share/sounds/sf3/FluidR3Mono_GM.sf3")
CLIPS_PER_TUNE, CLIPS_PER_PARTS = 3, 16
Note = tuple[float, float, int, int]  # seconds, seconds, MIDI pitch, channel


def clips(build: Path) -> tuple[np.ndarray, list[Facts]]:
    """All clips as int16 (clips, samples) and what is true of each; rendered once, kept in `build`."""
    audio, table = build / "clips.npy", build / "clips.jsonl"
    if not table.exists():
        jobs = list(_jobs(pieces(build / "notes.jsonl")))
        sound = np.lib.format.open_memmap(audio, mode="w+", dtype=np.int16, shape=(len(jobs), SAMPLES))
        with multiprocessing.get_context("spawn").Pool() as pool:
            for row, wave in enumerate(track(pool.imap(_render, jobs, chunksize=16), "rendering", total=len(jobs))):
                sound[row] = wave
        sound.flush()
        scratch = table.with_suffix(".tmp")
        scratch.write_text("".join(json.dumps(asdict(facts)) + "\n" for facts, *_ in jobs))
        scratch.rename(table)
    return np.load(audio, mmap_mode="r"), [Facts(**json.loads(line)) for line in table.read_text().splitlines()]


def split_of(work: str) -> str:
    """train, validation or test, by the work: all clips of a piece, and all movements of a work, are on one side."""
    place = int(sha256(work.encode()).hexdigest(), 16) % 100
    return "test" if place < 12 else "validation" if place < 20 else "train"


def _jobs(found: list[Piece]) -> Iterator[tuple[Facts, list[Note], tuple[int, ...], int]]:
    for piece in found:
        rng = random.Random(f"dragontune {piece.name} {piece.work}")
        tune = len(piece.parts) == 1
        instruments = rng.sample(FOR_TUNES, CLIPS_PER_TUNE) if tune else rng.choices(FOR_PARTS, k=CLIPS_PER_PARTS)
        starts = _bars(piece)
        rng.shuffle(starts)
        for number, instrument in enumerate(instruments):
            speed = rng.choice(list(TEMPI))
            bpm = rng.choice(TEMPI[speed])
            beat = 1.5 if piece.metre.endswith("/8") else 1.0
            second = bpm / 60 * beat  # quarter notes a second
            for start in starts[number:] if not tune else starts:
                notes = _window(piece, start, SAMPLES / RATE * second)
                if len(notes) >= 5 and min(o for o, *_ in notes) < 0.35 * second and _covered(notes, second):
                    break
            else:
                continue
            facts = Facts(
                piece=piece.name,
                split=split_of(piece.work),
                instrument=instrument,
                collection=piece.collection,
                kind=piece.kind,
                key=piece.key,
                metre=piece.metre,
                bpm=bpm,
                speed=speed,
                texture=texture_of([(o, d, p) for o, d, p, _ in notes]),
            )
            programs, octave, _ = INSTRUMENTS[instrument]
            if not tune and octave > 0:
                octave = 0
            seconds = [(o / second, d / second, p + octave, min(v, len(programs) - 1)) for o, d, p, v in notes]
            yield facts, seconds, programs, rng.randrange(2**31)


def _bars(piece: Piece) -> list[float]:
    end = max(onset + duration for part in piece.parts for onset, duration, _ in part)
    return list(np.arange(piece.pickup, max(end - 2 * piece.bar, piece.pickup + 1e-6), piece.bar))


def _window(piece: Piece, start: float, length: float) -> list[Note]:
    order = sorted(range(len(piece.parts)), key=lambda i: -np.mean([p for _, _, p in piece.parts[i]]))
    return sorted(
        (onset - start, min(duration, start + length - onset), pitch, voice)
        for voice, part in enumerate(order)
        for onset, duration, pitch in piece.parts[part]
        if start - 1e-6 <= onset < start + length - 0.05
    )


def _covered(notes: list[Note], second: float) -> bool:
    """No silence of more than a second, so that a clip is music all along."""
    reach = 0.0
    for onset, duration, *_ in notes:
        if onset - reach > second:
            return False
        reach = max(reach, onset + duration)
    return reach > (SAMPLES / RATE - 1.0) * second


def _render(job: tuple[Facts, list[Note], tuple[int, ...], int]) -> np.ndarray:
    import fluidsynth

    _, notes, programs, seed = job
    rng = random.Random(seed)
    synth = fluidsynth.Synth(gain=0.4, samplerate=float(RATE))
    synth.setting("synth.dynamic-sample-loading", 1)
    font = synth.sfload(next(path for path in FONTS if Path(path).exists()))
    for channel, program in enumerate(programs):
        synth.program_select(channel, font, 0, program)
    events = []
    for onset, duration, pitch, channel in notes:
        velocity = rng.randint(78, 108)
        events.append((int(onset * RATE), 1, channel, pitch, velocity))
        events.append((int((onset + max(duration * 0.95, 0.05)) * RATE), 0, channel, pitch, 0))
    wave, now = [], 0
    for when, on, channel, pitch, velocity in [*sorted(e for e in events if e[0] < SAMPLES), (SAMPLES, 0, 0, 0, 0)]:
        if when > now:
            wave.append(synth.get_samples(when - now).reshape(-1, 2).astype(np.float32).mean(1))
            now = when
        synth.noteon(channel, pitch, velocity) if on else synth.noteoff(channel, pitch)
    synth.delete()
    mono = np.concatenate(wave) / 32768
    mono -= mono.mean()
    mono *= 0.1 / max(float(np.sqrt(np.mean(mono**2))), 1e-4)  # -20 dBFS
    mono /= max(1.0, float(np.abs(mono).max()) / 0.95)
    return np.round(mono * 32767).astype(np.int16)

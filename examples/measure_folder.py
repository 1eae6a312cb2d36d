"""Loudness, brightness, tempo and key of every file in a folder: what the signal says, without any model.

python examples/measure_folder.py "my songs"
"""

import sys

import torch

from dragontune import Samples
from dragontune.media import audio
from dragontune.media.descriptors import key_correlations
from dragontune.rewards.signal import KeyStrength, Loudness, SpectralCentroid, Tempo

NOTES = ("C", "C sharp", "D", "E flat", "E", "F", "F sharp", "G", "A flat", "A", "B flat", "B")


def main(folder: str) -> None:
    print("   LUFS      Hz   beats/min  key")
    for path in audio.folder(folder):
        clip = audio.read(path)
        samples = Samples(("",), torch.empty(1, 0), clip)
        loudness, centroid, tempo, strength = (
            reward(samples).item() for reward in (Loudness(), SpectralCentroid(), Tempo(), KeyStrength())
        )
        best = int(key_correlations(clip)[0].argmax())
        key = f"{NOTES[best % 12]} {'minor' if best >= 12 else 'major'} ({strength:.2f})"
        print(f"{loudness:7.1f} {centroid:7.0f} {tempo:11.1f}  {key:18s} {path.name}")


if __name__ == "__main__":
    main(sys.argv[1])

"""How far is one folder of music from another? The same distance that tuning lowers, without any generator.

    python examples/compare_folders.py "my songs" "their songs"

Small folders are far from everything, themselves included: compare folders of similar size.
"""

import sys

from dragontune import TinyClap
from dragontune.distances import frechet_distance
from dragontune.reference import open_reference


def main(first: str, second: str) -> None:
    encoder = TinyClap()
    one, other = (open_reference(encoder, folder) for folder in (first, second))
    distance = frechet_distance(one.gaussian, other.gaussian)
    print(f"{one.items} and {other.items} items, Fréchet distance in {encoder.name}: {float(distance):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:3])

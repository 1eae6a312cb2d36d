"""Distances and diversities of sets of embeddings, and what every exchange of two items would make of them.

Usable by themselves: tensors or NumPy arrays in, float64 out, no global setting touched. docs/distances.md has the
derivations.
"""

from dragontune.distances.bias import Null, frechet_infinity, null_distance
from dragontune.distances.frechet import Gaussian, frechet_distance, frechet_distance_per_item
from dragontune.distances.frechet_swaps import FrechetSwaps
from dragontune.distances.kernel import KernelReference, kernel_distance
from dragontune.distances.kernel_swaps import KernelSwaps
from dragontune.distances.moments import Moments
from dragontune.distances.neighbours import coverage, density, precision, recall
from dragontune.distances.swaps import Swaps
from dragontune.distances.vendi import vendi_score
from dragontune.distances.vendi_swaps import VendiSwaps

__all__ = [
    "FrechetSwaps",
    "Gaussian",
    "KernelReference",
    "KernelSwaps",
    "Moments",
    "Null",
    "Swaps",
    "VendiSwaps",
    "coverage",
    "density",
    "frechet_distance",
    "frechet_distance_per_item",
    "frechet_infinity",
    "kernel_distance",
    "null_distance",
    "precision",
    "recall",
    "vendi_score",
]

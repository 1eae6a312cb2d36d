"""How well a sequence holds given motifs: the best match of each, anywhere, as log-odds (Stormo 2000).

A stand-in for a measured activity: a black box with a known best score. Left out: the reverse strand, gaps, order.
"""

from dataclasses import dataclass
from functools import cached_property
from math import log

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv1d, one_hot

from dragontune.data import Samples
from dragontune.errors import InputError
from dragontune.media.sequences import Sequences
from dragontune.rewards.base import InstanceReward

IUPAC = {
    **{letter: letter for letter in "ACGT"},
    **{"R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC"},
    **{"B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT"},
}
"""Letters that stand for several (IUPAC nucleotide codes)."""


@dataclass(frozen=True, eq=False)
class Motifs(InstanceReward[Tensor]):
    """The sum over motifs of the best log-odds (nats) of each against uniform letters.

    A motif is a consensus in IUPAC letters (`TATAWAW`), for DNA. At each place the letters it allows share probability
    1 - `slip`, the others share `slip`. The strand is the one given. Prompts are not looked at.

    >>> Motifs(("TATAWAW", "CCAAT"))(samples)
    tensor([6.1, 11.4])

    Raises:
        InputError: no motif, a letter that is no IUPAC code, or a slip outside of (0, 1).
    """

    motifs: tuple[str, ...]
    slip: float = 0.05

    def __post_init__(self) -> None:
        if not self.motifs or not all(self.motifs):
            raise InputError("expected at least one motif and none empty, got one that is; name some, such as TATAWAW")
        odd = sorted({letter for motif in self.motifs for letter in motif} - set(IUPAC))
        if odd:
            raise InputError(f"expected motifs in the letters {''.join(IUPAC)}, got {odd[0]!r}; correct the motif")
        if not 0 < self.slip < 1:
            raise InputError(f"expected a slip between 0 and 1, got {self.slip}; 0.05 is usual")

    @cached_property
    def weights(self) -> list[Float[Tensor, " 4 width"]]:
        """Log-odds of A, C, G and T at each place of each motif."""
        return [torch.stack([self._column(letter) for letter in motif], 1) for motif in self.motifs]

    @property
    def best(self) -> float:
        """The highest score there is, if all motifs find room."""
        return sum(weights.amax(0).sum().item() for weights in self.weights)

    @torch.no_grad()
    def encode(self, samples: Samples) -> Float[Tensor, " n motifs"]:
        """The best match of each motif."""
        if not isinstance(samples.media, Sequences) or samples.media.alphabet != "ACGT":
            raise TypeError("motifs are looked for in Sequences over ACGT")
        letters = one_hot(samples.media.tokens.cpu(), 4).double().transpose(1, 2)
        longest = max(map(len, self.motifs))
        if letters.shape[2] < longest:
            raise InputError(
                f"expected sequences of at least {longest} letters, got {letters.shape[2]}; see the motifs"
            )
        return torch.cat([conv1d(letters, weights[None]).amax(2) for weights in self.weights], 1)

    def score(self, features: Float[Tensor, " n motifs"]) -> Float[Tensor, " n"]:
        """Their sum."""
        return features.sum(1)

    def _column(self, letter: str) -> Float[Tensor, " 4"]:
        allowed = IUPAC[letter]
        fits = log((1 - self.slip) / len(allowed) * 4) if len(allowed) < 4 else 0.0
        fails = log(self.slip / (4 - len(allowed)) * 4) if len(allowed) < 4 else 0.0
        return torch.tensor([fits if base in allowed else fails for base in "ACGT"], dtype=torch.float64)

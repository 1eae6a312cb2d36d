"""Sequences of letters: DNA, RNA, proteins, or any other text over a small alphabet."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from dragontune.data import Rows
from dragontune.errors import InputError


@dataclass(frozen=True, eq=False)
class Sequences(Rows):
    """Equally long sequences; token i is the i-th letter of `alphabet`.

    >>> Sequences(torch.tensor([[0, 3, 2]]), "ACGT").text()
    ['ATG']
    """

    tokens: Int[Tensor, " n length"]
    alphabet: str

    @classmethod
    def of(cls, texts: Sequence[str], alphabet: str = "ACGT") -> "Sequences":
        """From text.

        Raises:
            InputError: there are none, they differ in length, or one has a letter that the alphabet has not.
        """
        if len({len(text) for text in texts}) != 1:
            raise InputError(
                f"expected sequences of one length, got {sorted({len(text) for text in texts})[:3]}; cut or pad them"
            )
        odd = sorted({letter for text in texts for letter in text} - set(alphabet))
        if odd:
            raise InputError(f"expected letters of {alphabet}, got {odd[0]!r}; correct the sequences")
        return cls(torch.tensor([[alphabet.index(letter) for letter in text] for text in texts]), alphabet)

    def text(self) -> list[str]:
        """As text, one string a sequence."""
        return ["".join(self.alphabet[token] for token in row) for row in self.tokens.tolist()]

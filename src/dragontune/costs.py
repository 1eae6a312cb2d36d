"""What making items costs, in the units by which methods are compared."""

from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Costs:
    """Calls counted by item: 40 items decoded in one batch are 40 decodes.

    Guidance makes two denoiser calls a step. `gradient_calls` are the denoiser's that are differentiated, `calls` all
    others; `encodes` are items that a reward looked at, for each reward.
    """

    items: int = 0
    calls: int = 0
    decodes: int = 0
    encodes: int = 0
    gradient_calls: int = 0

    def __add__(self, other: "Costs") -> "Costs":
        """Both together."""
        return Costs(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: int) -> "Costs":
        """The same so many times."""
        return Costs(*(value * times for value in astuple(self)))

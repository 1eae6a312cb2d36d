"""Sets of embeddings like those of audio encoders, and the odd ones, for tests of distances."""

import torch
from hypothesis import strategies as st
from torch import Tensor


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def embeddings(*shape: int, seed: int = 0, decay: float = 1.0, shift: float = 0.3) -> Tensor:
    """Unit vectors about a common mean, with variances that fall like k^-decay."""
    dim = shape[-1]
    spread = torch.arange(1, dim + 1, dtype=torch.float64) ** (-decay / 2)
    points = rand(*shape, seed=seed) * spread + shift * rand(dim, seed=12345)
    return points / points.norm(dim=-1, keepdim=True)


def exchanged(x: Tensor, candidates: Tensor, i: int, j: int) -> Tensor:
    """The set with candidate j in the place of member i."""
    after = x.clone()
    after[i] = candidates[j]
    return after


@st.composite
def sets(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """A set, candidates and a reference: any shape, spectrum, scale; duplicates, collapse, deficient rank."""
    dim, m, c = draw(st.integers(1, 12)), draw(st.integers(2, 12)), draw(st.integers(1, 5))
    seed, decay = draw(st.integers(0, 10**6)), draw(st.sampled_from([0.5, 1.0, 2.0, 3.0]))
    scale = draw(st.sampled_from([1e-4, 1.0, 1e4]))
    x, candidates, other = (
        scale * rand(count, dim, seed=seed + k) * torch.arange(1, dim + 1).double() ** (-decay / 2)
        for k, count in enumerate((m, c, draw(st.integers(2, 20))))
    )
    match draw(st.sampled_from(["plain", "plain", "duplicates", "collapse", "members", "dead", "far", "near"])):
        case "duplicates":
            x[m // 2 :] = x[: m - m // 2].clone()
        case "collapse":
            x[:] = x[0].clone()
        case "members":
            candidates = x[torch.arange(c) % m].clone()
        case "dead":
            for part in (x, candidates):
                part[:, dim // 2 :] = 0
        case "far":
            candidates = candidates * 100
        case "near":
            candidates = x[torch.arange(c) % m] + 1e-9 * candidates
        case _:
            pass
    return x, candidates, other

"""Vendi score: how many different items a set has in effect (Friedman & Dieng 2023; orders: Pasarkar & Dieng 2024).

exp of the Rényi entropy of order q of the eigenvalues of K / n, K a similarity kernel with unit diagonal. Between 1
(all alike) and n (all different). Float64 on the CPU. Left out: sparse and approximate kernels.
"""

from math import inf

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize


def vendi(embeddings: Float[Tensor, " n dim"], order: float = 1.0) -> Float[Tensor, ""]:
    """The score under cosine similarity; rows are brought to unit length."""
    unit = normalize(embeddings.to("cpu", torch.float64), dim=1)
    # K and its dual have the same non-zero eigenvalues: take the smaller one
    gram = unit @ unit.mT if len(unit) <= unit.shape[1] else unit.mT @ unit
    return _effective_number(gram / len(unit), order)


def vendi_of_kernel(kernel: Float[Tensor, " n n"], order: float = 1.0) -> Float[Tensor, ""]:
    """The score of any positive semi-definite kernel with unit diagonal."""
    return _effective_number(kernel.to("cpu", torch.float64) / len(kernel), order)


def _effective_number(density: Float[Tensor, " m m"], order: float) -> Float[Tensor, ""]:
    """The exponential of the eigenvalues' Rényi entropy, rounding noise left out."""
    values = torch.linalg.eigvalsh(density)
    p = values[values > values[-1].detach() * len(values) * torch.finfo(values.dtype).eps]
    if order == 1:
        return (-(p * p.log()).sum()).exp()
    if order == inf:
        return 1 / p[-1]
    return p.pow(order).sum() ** (1 / (1 - order))

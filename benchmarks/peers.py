"""Other packages' distances, called as pure functions: no weights, no constructors, none of their heavy imports.

Several of these packages import audio and vision libraries, and models, at the top of the modules that hold a few
lines of linear algebra. While they are imported, whatever of that is not installed is replaced by an empty stand-in.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

Array = np.ndarray
REPLACED = {
    "PIL", "encodec", "huggingface_hub", "hypy_utils", "laion_clap", "librosa", "pandas", "requests", "resampy",
    "soundfile", "torchaudio", "torchlibrosa", "torchvision", "tqdm", "transformers", "yaml",
}  # fmt: skip


class _Blank(type):
    """A class of which every attribute is another such class, and every call gives one."""

    def __getattr__(cls, name: str) -> "_Blank":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Blank(name, (), {})

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        own = any("__init__" in vars(base) for base in cls.__mro__[:-1])
        return super().__call__(*args, **kwargs) if own else cls


class _Module(ModuleType):
    __path__: list[str] = []  # noqa: RUF012 - the import system asks the module, not the class
    __version__ = "0.0"

    def __getattr__(self, name: str) -> _Blank:
        return getattr(_Blank(self.__name__, (), {}), name)


class _Replacer(MetaPathFinder, Loader):
    """Asked last: what is really installed is found before."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in REPLACED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def _replaced() -> Iterator[None]:
    """Stand-ins for the time of an import; afterwards nobody else finds them."""
    finder = _Replacer()
    sys.meta_path.append(finder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _Module)]:
            del sys.modules[name]


class MissingError(Exception):
    """A peer that cannot be measured, and why."""


@cache
def module(package: str, name: str) -> ModuleType:
    """A module of an installed package; MissingError says what is in the way."""
    try:
        version(package)
    except PackageNotFoundError:
        raise MissingError("not installed") from None
    try:
        with _replaced():
            return import_module(name)
    except Exception as error:
        raise MissingError(f"does not import: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Peer:
    """A package's Fréchet distance of samples to a mean and a covariance, statistics of the samples included."""

    package: str
    module: str
    distance: Callable[[ModuleType, Array, Array, Array, type], float]

    def load(self) -> Callable[..., float]:
        """(x, mean, covariance, dtype of the statistics) -> value."""
        found = module(self.package, self.module)

        def call(x: Array, mean: Array, covariance: Array, dtype: type = np.float64) -> float:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return float(self.distance(found, x, mean.astype(dtype), covariance.astype(dtype), dtype))

        return call


def moments(x: Array, dtype: type) -> tuple[Array, Array]:
    """What every one of these packages takes of the samples."""
    return x.mean(0).astype(dtype), np.cov(x, rowvar=False).astype(dtype)


def _fadtk(fad: Any, x: Array, mean: Array, covariance: Array, dtype: type) -> float:
    own = (values.astype(dtype) for values in fad.calc_embd_statistics(x))
    return fad.calc_frechet_distance(*own, mean, covariance)


def _audio(fad: Any, x: Array, mean: Array, covariance: Array, dtype: type) -> float:
    # the method never touches self, and the constructor would download a model
    return fad.FrechetAudioDistance.calculate_frechet_distance(None, *moments(x, dtype), mean, covariance)


def _pytorch_fid(score: Any, x: Array, mean: Array, covariance: Array, dtype: type) -> float:
    return score.calculate_frechet_distance(*moments(x, dtype), mean, covariance)


def _fidelity(metric: Any, x: Array, mean: Array, covariance: Array, dtype: type) -> float:
    own = dict(zip(("mu", "sigma"), moments(x, dtype), strict=True))
    result = metric.fid_statistics_to_metric(own, {"mu": mean, "sigma": covariance}, False)
    return next(iter(result.values()))


def _torchmetrics(fid: Any, x: Array, mean: Array, covariance: Array, dtype: type) -> float:
    z = torch.from_numpy(x)
    own = (values.to(torch.from_numpy(mean).dtype) for values in (z.mean(0), z.T.cov()))
    return fid._compute_fid(*own, torch.from_numpy(mean), torch.from_numpy(covariance))


FRECHET = (
    Peer("fadtk", "fadtk.fad", _fadtk),
    Peer("frechet-audio-distance", "frechet_audio_distance.fad", _audio),
    Peer("pytorch-fid", "pytorch_fid.fid_score", _pytorch_fid),
    Peer("torch-fidelity", "torch_fidelity.metric_fid", _fidelity),
    Peer("torchmetrics", "torchmetrics.image.fid", _torchmetrics),
)


def kadtk_frechet(x: Array, reference: Array) -> Callable[[], float]:
    """The distance kadtk computes, in float32 and from samples on both sides, as is its way."""
    fad = module("kadtk", "kadtk.fad")
    pair = torch.from_numpy(x), torch.from_numpy(reference)

    def call() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return float(fad.calc_frechet_distance(*pair, (None, None), "cpu"))

    return call


def kadtk_kernel(x: Array, reference: Array, bandwidth: float, cache_folder: Path | None = None) -> Callable[[], float]:
    """Squared MMD, in float32; with a folder, the reference's distances come from the disk from the second call on."""
    kad = module("kadtk", "kadtk.kad")
    pair = torch.from_numpy(x), torch.from_numpy(reference)
    folders = (None, cache_folder)
    return lambda: float(kad.calc_kernel_audio_distance(*pair, folders, "cpu", bandwidth=bandwidth)) / kad.SCALE_FACTOR


def vendi_calls(x: Array, order: float) -> dict[str, Callable[[], float]]:
    """Every call of vendi-score that honours this order. `score_K` is given the finished kernel."""
    vendi = module("vendi-score", "vendi_score.vendi")
    kernel = x @ x.T
    calls = {
        "score_K": lambda: float(vendi.score_K(kernel, q=order)),
        "score_dual": lambda: float(vendi.score_dual(x, q=order)),
    }
    if order == 1:  # it ignores any other
        calls["score_X"] = lambda: float(vendi.score_X(x))
    return calls


def shipped_statistics(name: str) -> tuple[Array, Array]:
    """Mean and covariance of real music under one of fadtk's embeddings, from its package."""
    folder = Path(str(module("fadtk", "fadtk.fad").__file__)).parent
    with np.load(folder / "stats" / "fma_pop.npz") as data:
        return data[f"{name}.mu"].astype(np.float64), data[f"{name}.cov"].astype(np.float64)


class PoolGram:
    """Fréchet distances of subsets of a pool, as one would write them without any of this library.

    Products of all items under the reference's covariance and under none, once; then one eigvalsh a subset.
    """

    def __init__(self, pool: Array, mean: Array, covariance: Array) -> None:
        z, spread = torch.from_numpy(pool - mean), torch.from_numpy(covariance)
        self._dim = len(mean)
        self._under, self._plain, self._trace = z @ spread @ z.T, z @ z.T, spread.trace()

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """The distance of each set of rows (k x m)."""
        m = rows.shape[1]
        under, plain = (gram[rows[:, :, None], rows[:, None, :]] for gram in (self._under, self._plain))
        under = under - under.mean(-1, keepdim=True)
        under = under - under.mean(-2, keepdim=True)
        rank = min(m - 1, self._dim)  # the other eigenvalues are rounding noise
        cross = torch.linalg.eigvalsh(under)[:, -rank:].clamp(min=0).sqrt().sum(-1) / (m - 1) ** 0.5
        apart = plain.mean((1, 2))
        spread = (plain.diagonal(dim1=1, dim2=2).sum(-1) - m * apart) / (m - 1)
        return apart + spread + self._trace - 2 * cross


class PoolVendi:
    """Vendi scores likewise: the kernel of all items once, then one eigvalsh a subset."""

    def __init__(self, pool: Array) -> None:
        self._kernel = torch.from_numpy(pool @ pool.T)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """The score of order 1 of each set of rows (k x m)."""
        p = torch.linalg.eigvalsh(self._kernel[rows[:, :, None], rows[:, None, :]] / rows.shape[1])
        return torch.special.entr(p.clamp(min=0)).sum(-1).exp()

"""VGGish (Hershey et al. 2017, arXiv 1609.09430): the network behind the first Fréchet audio distance (Kilgour 2019).

The front end follows the published constants of AudioSet's release; the network is written here and takes the weights
of the common PyTorch port (`vggish-10086976.pth`, or the same in safetensors). Licences: this code Apache-2.0;
AudioSet's code, its weights and that port Apache-2.0, as far as known here: check where you get them. The ReLU that the
port puts after the last layer is left out, as in AudioSet's release and in the usual Fréchet distances.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dragontune.data import Media
from dragontune.encoders import checkpoint, waves
from dragontune.encoders.base import Embeddings, Encoder
from dragontune.encoders.fingerprint import fingerprint
from dragontune.errors import InputError

RATE = 16000
WINDOW, HOP, FFT = 400, 160, 512
"""25 ms, 10 ms, and the length of the transform, in samples."""
STEPS, BANDS = 96, 64
LOWEST, HIGHEST = 125.0, 7500.0
OFFSET = 0.01
"""Added to a band's magnitude before the logarithm."""
SHORTEST = (STEPS - 1) * HOP + WINDOW
DIM = 128
LIMIT = 2.0
"""Where principal components are cut off."""


class VggishNetwork(nn.Module):
    """Four blocks of 3 x 3 convolutions, each halving time and frequency, and three full layers."""

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256, 512), hidden: int = 4096, dim: int = DIM) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for block, width in enumerate(widths):
            for _ in range(1 if block < 2 else 2):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        flat = widths[-1] * (STEPS // 16) * (BANDS // 16)
        self.embeddings = nn.Sequential(
            nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, dim)
        )

    def forward(self, patches: Float[Tensor, " n 96 64"]) -> Float[Tensor, " n dim"]:
        """Log-mel patches to embeddings; the channels of a place lie side by side, as in TensorFlow."""
        found = self.features(patches[:, None])
        return self.embeddings(found.permute(0, 2, 3, 1).flatten(1))


@dataclass(frozen=True, eq=False)
class Vggish(Encoder):
    """128 numbers for every 0.96 s of 16 kHz mono audio; what is left at the end is dropped, a shorter clip padded.

    `model` is a file of weights, `.safetensors` or by its name a pickle (`.pth`), of which only tensors are read, or a
    folder with `model.safetensors`; the weights are named `features.0.weight` to `embeddings.4.bias`. With `pca`, a
    file with `pca_eigen_vectors` and `pca_means`, embeddings are those AudioSet published: principal components,
    whitened, cut off at 2 and laid from 0 to 255, but not rounded, so that gradients pass. Nothing is loaded before it
    is used.

    >>> SetFrechet(Vggish("vggish-10086976.pth"), "my-songs/")
    """

    model: str
    pca: str | None = None

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Always the same."""
        return "vggish"

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """128 in the released weights."""
        return self.network.embeddings[-1].out_features

    @property
    def digest(self) -> str:
        """Of the weights and the constants."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        constants = (RATE, WINDOW, HOP, FFT, STEPS, BANDS, LOWEST, HIGHEST, OFFSET, LIMIT)
        own = fingerprint(self.network, {"encoder": "Vggish", "constants": constants})
        if self.pca is None:
            return own
        parts = b"".join(part.contiguous().numpy().tobytes() for part in self._components)
        return hashlib.sha256(own.encode() + parts).hexdigest()

    @cached_property
    def network(self) -> Any:  # noqa: ANN401
        """The network, frozen; InputError where the weights are missing, torn or of another shape."""
        state = {
            name: value for name, value in _read(self.model).items() if name.startswith(("features", "embeddings"))
        }
        try:
            convolutions = [value for name, value in state.items() if name.endswith("weight") and value.ndim == 4]
            widths = tuple(sorted({len(value) for value in convolutions}))
            with torch.random.fork_rng(devices=[]):
                network = VggishNetwork(widths, len(state["embeddings.0.weight"]), len(state["embeddings.4.weight"]))
            network.load_state_dict(state)
        except (KeyError, RuntimeError, AttributeError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"expected the weights of VGGish in {self.model}, got others ({reason}); check it"
            ) from error
        return network.requires_grad_(False).eval()

    @cached_property
    def _components(self) -> tuple[Tensor, Tensor]:
        found = _read(str(self.pca))
        try:
            directions, means = (torch.as_tensor(found[name]).float() for name in ("pca_eigen_vectors", "pca_means"))
            return directions.reshape(self.dim, self.dim), means.reshape(self.dim)
        except (KeyError, RuntimeError) as error:
            raise InputError(
                f"expected pca_eigen_vectors and pca_means of {self.dim} dimensions in {self.pca}, got others; check it"
            ) from error

    def embed(self, media: Media) -> Embeddings:
        """A frame a patch. Gradients pass."""
        patches = log_mel(checkpoint.follow(self.network, waves.mono(media, RATE, f"the encoder {self.name}")))
        frames = self.network(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
        if self.pca is not None:
            directions, means = (part.to(frames) for part in self._components)
            frames = ((frames - means) @ directions.mT).clamp(-LIMIT, LIMIT)
            frames = (frames + LIMIT) * (255 / (2 * LIMIT))
        return Embeddings.of(frames)


def log_mel(waveform: Float[Tensor, " n samples"]) -> Float[Tensor, " n patches 96 64"]:
    """The logarithm of magnitudes in mel bands, in patches of 0.96 s side by side."""
    waveform = waves.at_least(waveform, SHORTEST)
    frames = waveform.unfold(1, WINDOW, HOP) * torch.hann_window(WINDOW, device=waveform.device)
    bands = torch.fft.rfft(frames, FFT).abs() @ _filters().to(waveform)
    count = bands.shape[1] // STEPS
    return (bands[:, : count * STEPS] + OFFSET).log().unflatten(1, (count, STEPS))


@lru_cache(maxsize=1)
def _filters() -> Float[Tensor, " bins bands"]:
    """Triangles on the mel scale 1127 ln(1 + f / 700)."""
    filters = import_module("transformers.audio_utils").mel_filter_bank(
        num_frequency_bins=FFT // 2 + 1,
        num_mel_filters=BANDS,
        min_frequency=LOWEST,
        max_frequency=HIGHEST,
        sampling_rate=RATE,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    return torch.from_numpy(filters).float()


def _read(place: str) -> dict[str, Any]:
    """The tensors of a file, or of `model.safetensors` in a folder."""
    path = Path(place).expanduser()
    if not path.exists():
        raise InputError(f"expected a file of weights or a folder with model.safetensors, got {place}; check the path")
    found = checkpoint.read_weights(path, None) if path.is_dir() else checkpoint.read_weights(path.parent, path.name)
    if not isinstance(found, dict):
        raise InputError(f"expected named tensors in {place}, got another value; check the file")
    return found

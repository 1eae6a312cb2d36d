"""A learnt value of noisy latents (SVDD-MC, Li et al. 2024, arXiv 2408.08252), the same network as VARD's.

It is fitted once to finished generations; then a look costs neither a decode nor a reward call. By default it learns
the expected reward, as SVDD's code does; with an `alpha` the soft value itself.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from dragontune import json_files, tensor_files
from dragontune.algorithms.rollouts import Rollouts, check_instance_reward
from dragontune.algorithms.value import Regression, Value
from dragontune.algorithms.value_lesson import FEWEST_ROLLOUTS, LEAST_R2, Lesson, lesson_prompts
from dragontune.costs import Costs
from dragontune.errors import InputError, NonFiniteError
from dragontune.process import ReverseProcess
from dragontune.rewards.base import Features, InstanceReward, Reward
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.steering.foresight import Foresight
from dragontune.steering.walk import Beams, Walk

PREFIX = "value."
MEMORY = "memory.value."
"""How a run of VARD keeps it in its checkpoints."""


@dataclass(frozen=True, eq=False)
class LearnedValue(Foresight):
    """What a network expects of a state.

    It is read from `file`: a file that was written here, or the folder of a run of VARD. A file that is not there yet
    is written at the first look, after learning from `rollouts` generations for `prompts` (a text file, one a line, or
    prompts), with the generator, sampler and reward at hand; without `file` it is learnt each time. `alpha` is in units
    of the reward (infinite: the expected reward). One value belongs to one model, reward and, roughly, sampler.

    >>> Svdd(KeyStrength(), candidates=8, value=LearnedValue("key.safetensors", "tiny-music/prompts/train.txt"))

    Raises:
        InputError: there is nothing to read nor prompts to learn from, or the file is of another model or reward.
    """

    file: str | None = None
    prompts: str | tuple[str, ...] = ()
    rollouts: int = 400
    alpha: float = inf
    width: int = 64
    depth: int = 3
    steps: int = 500
    batch: int = 64
    lr: float = 1e-3
    seed: int = 0
    micro_batch: int = 40
    _known: dict[str, Value] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise InputError(f"expected a LearnedValue's alpha above 0, got {self.alpha}; inf is the expected reward")
        if not 0 < self.lr < inf:
            raise InputError(f"expected a LearnedValue's lr finite and above 0, got {self.lr}; 0.001 is the default")
        least = {"rollouts": FEWEST_ROLLOUTS, **dict.fromkeys(("width", "depth", "steps", "batch", "micro_batch"), 1)}
        for name, low in least.items():
            if (value := getattr(self, name)) < low:
                raise InputError(f"expected a LearnedValue's {name} of {low} or more, got {value}; raise it")
        if not self.prompts and not self._there:
            raise InputError(
                f"expected prompts or a file that is there in LearnedValue, got {self.file or 'neither'}; name prompts "
                "to learn from"
            )

    @property
    def of_sets(self) -> bool:
        """A number cannot be put into a set."""
        return False

    @property
    def _there(self) -> bool:
        return self.file is not None and Path(self.file).exists()

    def look(self, walk: Walk, reward: Reward, beams: Beams) -> Features:
        """The values themselves, in units of the reward (float64, CPU)."""
        value, state = self._value(walk, reward), beams.state
        found = []
        for part in state.chunks(walk.rows):
            t = walk.generator.schedule.times(walk.process.steps)[part.step].to(part.latents)
            prompt = walk.generator.prompt_vectors(part.condition)
            found.append(value.mean + value.std * value(part.latents, t, prompt, walk.generator.schedule))
        return torch.cat(found).double().cpu()

    def values(
        self, reward: Reward, seen: Features, prompts: tuple[str, ...], shape: tuple[int, ...]
    ) -> Float[Tensor, " *shape"]:
        """What was seen is the value."""
        assert isinstance(seen, Tensor)
        for row in (~seen.isfinite()).nonzero()[:1, 0].tolist():
            raise NonFiniteError(f"the learnt value of {reward.label} is {seen[row].item()} for {prompts[row]!r}")
        return seen.view(shape)

    def costs(self, process: ReverseProcess, reward: Reward, step: int) -> Costs:
        """None in what is counted: the network is small."""
        return Costs()

    def preparation(self, process: ReverseProcess, reward: Reward) -> Costs:
        """The generations that it learns from, unless it is there."""
        if self._there or self._known:
            return Costs()
        count = self.rollouts
        return Costs(count, process.calls(count), count * reward.needs_media, count)

    def fit_to(self, reward: Reward) -> None:
        """Only rewards of single items, with fixed scales."""
        check_instance_reward(reward, self)

    def _value(self, walk: Walk, reward: Reward) -> Value:
        if "value" not in self._known:
            self._known["value"] = self._read(walk, reward) if self._there else self._learn(walk, reward)
        return self._known["value"]

    def _learn(self, walk: Walk, reward: Reward) -> Value:
        if not isinstance(walk.process, Sampler) or not isinstance(reward, InstanceReward):
            raise InputError(
                "expected a continuous diffusion model for a LearnedValue, got one of tokens; use PosteriorMean"
            )
        rollouts = Rollouts(walk.generator, reward, walk.process, self.micro_batch)
        regression = Regression(self.steps, self.batch, self.lr, self.alpha)
        asked = lesson_prompts(self.prompts, "LearnedValue's prompts")
        learnt = Lesson(self.rollouts, self.width, self.depth, regression)(
            rollouts, asked, Key(self.seed).fold("value")
        )
        if (fit := learnt.fit(walk.generator.schedule, self.batch)[0].item()) < LEAST_R2:
            warnings.warn(
                f"the learnt value predicts {reward.label} of held-out rollouts no better than their mean (R^2 "
                f"{fit:.2f}), so it chooses next to nothing; raise rollouts, or use PosteriorMean",
                stacklevel=1,
            )
        if self.file is not None:
            tensors = {PREFIX + name: weight.cpu().contiguous() for name, weight in learnt.value.state_dict().items()}
            about = {"model": walk.generator.name, "reward": reward.label, "alpha": str(self.alpha)}
            place = Path(self.file)
            place.parent.mkdir(parents=True, exist_ok=True)
            beside = place.with_name(f".{place.name}.part")
            beside.write_bytes(save(tensors, metadata={"dragontune": json.dumps(about)}))
            beside.replace(place)
        return Value.of(learnt.value.state_dict(), walk.generator.device)

    def _read(self, walk: Walk, reward: Reward) -> Value:
        path = self._path()
        try:
            found = tensor_files.read(path)
            own = {name: weight for name, weight in found.tensors.items() if name.startswith((PREFIX, MEMORY))}
            weights = {name.rpartition(PREFIX)[2]: weight for name, weight in own.items()}
            tensor_files.check_finite(weights)
            about = json_files.loads(found.metadata.get("dragontune", "{}"))
            if not isinstance(about, dict):
                raise ValueError("nothing about where it came from")
            value = Value.of(weights, walk.generator.device)
        except (OSError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"expected a learnt value in {path}, got a defect ({reason}); learn it anew") from error
        self._check(about, walk, reward)
        channels = walk.generator.latent_shape[0]
        width = walk.generator.prompt_vectors(walk.generator.encode_prompts([""])).shape[1]
        if value.enter.in_channels != channels or len(value.prompt_mean) != width:
            raise InputError(
                f"expected a value of latents with {channels} channels and prompts of {width} numbers, as "
                f"{walk.generator.name} has, got one of {value.enter.in_channels} and {len(value.prompt_mean)} in "
                f"{path}; learn it anew"
            )
        return value

    def _path(self) -> Path:
        """The file, or a run's newest checkpoint."""
        path = Path(self.file or "")
        if not path.is_dir():
            return path
        found = sorted(path.glob("checkpoints/round-*.safetensors")) or sorted(path.glob("round-*.safetensors"))
        if not found:
            raise InputError(f"expected the folder of a run of VARD, got {path} without checkpoints; check the path")
        return found[-1]

    def _check(self, about: Mapping[str, str], walk: Walk, reward: Reward) -> None:
        wanted = {"model": walk.generator.name, "reward": reward.label, "alpha": str(self.alpha)}
        for name, known in about.items():
            if name in wanted and known != wanted[name]:
                raise InputError(
                    f"expected a learnt value of the {name} {wanted[name]}, got one of {known} in {self.file}; name "
                    "another file"
                )

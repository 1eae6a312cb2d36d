"""The learnt value as foresight: soft values against closed forms, kept in a file, shared with a run of VARD."""

from dataclasses import dataclass, replace
from math import exp, inf
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dragontune.algorithms.value import Regression, Value, Visits
from dragontune.algorithms.vard import Vard
from dragontune.data import Samples
from dragontune.errors import InputError
from dragontune.rewards.base import InstanceReward
from dragontune.sampling import Sampler
from dragontune.schedule import Flow
from dragontune.seeding import Key
from dragontune.steering.base import Steering
from dragontune.steering.learned import LearnedValue
from dragontune.steering.svdd import Svdd
from dragontune.testing import Toy
from dragontune.training.loop import Loop
from dragontune.training.run_folder import RunFolder

NOISY = Sampler(steps=6, order=1, eta=1.0)
PROMPTS = ("left", "right", "both")


@dataclass(frozen=True)
class Height(InstanceReward[Tensor]):
    """The second coordinate; counts what it looks at."""

    looked: list[int]

    def encode(self, samples: Samples) -> Tensor:
        self.looked.append(len(samples))
        assert isinstance(samples.media, Tensor)
        return samples.media[:, 1]

    def score(self, features: Tensor) -> Tensor:
        return features


@pytest.mark.parametrize("alpha", [0.5, 2.0, inf])
def test_linex_finds_the_soft_value(alpha: float):
    """Scores s or -s by chance, whatever the latents: alpha log cosh(s / alpha), and the mean, 0, for alpha = inf."""
    count, size = 4000, 1.0
    scores = size * torch.sign(Key(0).normal(range(count), (1,))[:, 0])
    data = Visits(Key(1).normal(range(count), (2,)), torch.full((count,), 0.5), torch.zeros(count, 1), scores)
    value = Value.fresh(data, data.latents, 8, 1, Key(2))
    Regression(steps=300, batch=400, lr=3e-3, alpha=alpha).fit(value, data, Flow(), Key(3))
    found = value.mean + value.std * value(data.latents, data.t, data.prompt, Flow())
    mean = scores.mean().item()  # not quite 0 in the sample
    wanted = mean if alpha == inf else alpha * (scores / alpha).exp().mean().log().item()
    assert found.mean().item() == pytest.approx(wanted, abs=0.04)
    if alpha == 0.5:
        assert wanted - mean > 0.6  # or the test would not tell the two apart


def test_linex_is_near_the_squared_error_for_high_temperatures():
    value = Value.fresh(_visits(), torch.zeros(4, 2), 8, 1, Key(0))
    data = _visits()
    torch.testing.assert_close(value.errors(data, Flow(), 200.0), value.errors(data, Flow()), rtol=1e-2, atol=1e-4)


def test_steering_by_a_learnt_value_raises_the_reward_without_looking_at_it(tmp_path: Path):
    toy, reward = Toy(), Height([])
    kept = tmp_path / "folder" / "value.safetensors"
    learnt = LearnedValue(str(kept), PROMPTS, rollouts=400, steps=300, batch=256)
    steering = Svdd(reward, candidates=8, value=learnt)
    cost = steering.preparation(NOISY)
    assert (cost.items, cost.calls, cost.encodes) == (400, NOISY.calls(400), 400)
    prompts = list(PROMPTS) * 20
    steered = NOISY.sample(toy, prompts, Key(5), steer=steering)
    assert sum(reward.looked) == 400
    plain = NOISY.sample(toy, prompts, Key(5))
    assert reward(steered).mean() > reward(plain).mean() + 0.2

    again = LearnedValue(str(kept))
    reward.looked.clear()
    assert Svdd(reward, 8, value=again).preparation(NOISY).items == 0
    repeated = NOISY.sample(toy, prompts, Key(5), steer=Svdd(reward, candidates=8, value=again))
    assert torch.equal(repeated.latents, steered.latents)
    assert not reward.looked
    other = Svdd(reward, candidates=8, value=replace(again, alpha=2.0))
    with pytest.raises(InputError, match="another file"):
        NOISY.sample(toy, prompts, Key(5), steer=other)


def test_a_run_of_vard_hands_over_its_value(tmp_path: Path):
    toy, reward = Toy(), Height([])
    vard = Vard(toy, reward, NOISY, value_prompts=PROMPTS, value_rollouts=100, value_steps=60)
    loop = Loop(rounds=1, pairs=4, updates=1, batch=8, sample_every=0, checkpoint_every=1)
    loop.run(vard, list(PROMPTS), RunFolder(tmp_path / "run"))
    looked = len(reward.looked)
    with toy.reference():
        NOISY.sample(toy, ["left"], Key(0), steer=Svdd(reward, 4, value=LearnedValue(str(tmp_path / "run"))))
    assert len(reward.looked) == looked


def test_what_is_wrong_with_a_learnt_value_is_one_sentence(tmp_path: Path):
    toy, reward = Toy(), Height([])

    def steer(value: LearnedValue) -> Steering:
        return Svdd(reward, candidates=2, value=value)

    with pytest.raises(InputError, match="name prompts"):
        LearnedValue()
    with pytest.raises(InputError, match="rollouts of 20 or more"):
        LearnedValue(None, PROMPTS, rollouts=3)
    with pytest.raises(InputError, match="alpha above 0"):
        LearnedValue(None, PROMPTS, alpha=0.0)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"no value")
    with pytest.raises(InputError, match="learn it anew"):
        NOISY.sample(toy, ["left"], Key(0), steer=steer(LearnedValue(str(torn))))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="without checkpoints"):
        NOISY.sample(toy, ["left"], Key(0), steer=steer(LearnedValue(str(tmp_path / "empty"))))


def _visits() -> Visits:
    return Visits(
        Key(0).normal(range(4), (2,)), torch.full((4,), 0.5), torch.zeros(4, 1), torch.tensor([0.0, 1.0, 2.0, exp(1)])
    )

"""Rewards and generations by actors of a Ray cluster of two nodes on this machine: the same as here."""

import os
import signal
import time
from typing import Any

import pytest
import torch

from dragontune.data import Samples
from dragontune.demonstrations import divide
from dragontune.encoders.log_mel import LogMel
from dragontune.errors import InputError, LostService, NonFiniteError
from dragontune.reference import Reference
from dragontune.rewards import source
from dragontune.rewards.diversity import Vendi
from dragontune.rewards.elsewhere import services
from dragontune.rewards.frechet import SetFrechet
from dragontune.rewards.function import Function
from dragontune.rewards.ray_actors import RayReward, RaySetReward, unloaded
from dragontune.rewards.signal import Loudness
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.testing import Toy
from services import REWARDS, audio, clips

ray = pytest.importorskip("ray")

from dragontune.algorithms.ray_rollouts import RayRollouts  # noqa: E402 - after what it needs

MEMORY = 80 * 2**20


@pytest.fixture(scope="module")
def cluster():
    """Two raylets, each with a CPU."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    before = signal.getsignal(signal.SIGTERM)
    node: Any = {"num_cpus": 1, "object_store_memory": MEMORY}
    made = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    made.add_node(**node)
    made.wait_for_nodes()
    signal.signal(signal.SIGTERM, before)  # a cluster's own, which only a test has in its process
    os.environ["RAY_ADDRESS"] = str(made.address)
    yield made
    ray.shutdown()
    made.shutdown()
    del os.environ["RAY_ADDRESS"]
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def _handlers(cluster):
    """Joining a cluster leaves the signals as they were."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def samples(count, seed=1):
    return clips(count, seed, 4000)


def test_two_nodes_say_what_is_said_here_and_a_dead_actor_is_replaced(cluster):
    local = Loudness(-20.0)
    remote = RayReward(local, actors=2, chunk=2, concurrency=4)
    given = samples(11)
    assert torch.equal(remote(given), local(given))
    actors = remote.line.actors
    nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    assert len(nodes) == 2
    before = [actors.process(number) for number in range(2)]
    assert len(set(before)) == 2
    os.kill(before[0], signal.SIGKILL)
    assert torch.equal(remote(given), local(given))
    deadline = time.monotonic() + 60
    while True:
        try:
            after = [actors.process(number) for number in range(2)]
            break
        except ray.exceptions.RayError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert after[1] == before[1]
    assert after[0] != before[0]
    assert remote.label == "Loudness"
    assert len(services(remote)) == 1
    for handle in actors._handles:
        ray.kill(handle)
    assert torch.equal(remote(given), local(given))  # even where Ray does not start them again
    for handle in actors._handles:
        ray.kill(handle)


def test_a_set_is_divided_as_here(cluster, tmp_path):
    (tmp_path / "own_rewards.py").write_text(REWARDS)
    own = source.find(f"{tmp_path}/own_rewards.py:Spread")
    assert isinstance(own, type)
    reference = Reference.build(LogMel(), [audio(samples(6, 9))], "here")
    both = Samples.join([samples(6, 1), samples(6, 2)])
    for local in (SetFrechet(LogMel(), reference), own()):
        remote = RaySetReward(local, chunk=4)
        here = divide(local, local.encode(both), both.prompts, Key(3), 2)
        there = divide(remote, remote.encode(both), both.prompts, Key(3), 2)
        assert torch.equal(here.positive, there.positive)
        for handle in remote.line.actors._handles:
            ray.kill(handle)


def test_verdicts_and_losses(cluster, tmp_path):
    (tmp_path / "own_rewards.py").write_text(REWARDS)
    given = samples(4)
    bad = Samples(("a", "nan", "b", "c"), given.latents, given.media)
    remote = RayReward(Function(f"{tmp_path}/own_rewards.py:loudness"))
    with pytest.raises(NonFiniteError, match="for item 2 of the 4"):
        remote(bad)
    assert len(remote(given)) == 4
    for handle in remote.line.actors._handles:
        ray.kill(handle)
    slow = RayReward(Function(f"{tmp_path}/own_rewards.py:slow"), timeout=0.2, deadline=20.0, retries=1, backoff=0.0)
    object.__setattr__(slow, "info", remote.info)  # known, so that the loss is of the items
    with pytest.raises(LostService, match="Ray actor 0"):
        slow(given)
    for handle in slow.line.actors._handles:
        ray.kill(handle)


def test_generations_are_those_of_here_with_the_adapter_of_now(cluster):
    toy, sampler = Toy(), Sampler(steps=4)
    rollouts = RayRollouts(sampler, Toy, actors=2, micro_batch=3)
    prompts = ["left", "right", "both", "any", "left", "right", "x"]
    for change in (0.0, 0.1):
        with torch.no_grad():
            for weight in toy.parameters():
                weight += change
        here = [
            sampler.sample(toy, prompts[rows], Key(1), items=list(range(7))[rows])
            for rows in (slice(0, 3), slice(3, 6), slice(6, 7))
        ]
        there = rollouts.sample(toy, prompts, Key(1))
        expected = Samples.join(here)
        assert there.prompts == expected.prompts
        assert torch.equal(there.latents, expected.latents)
        assert isinstance(there.media, torch.Tensor)
        assert isinstance(expected.media, torch.Tensor)
        assert torch.equal(there.media, expected.media)
    os.kill(rollouts.pool.process(0), signal.SIGKILL)
    assert torch.equal(rollouts.sample(toy, prompts, Key(1)).latents, there.latents)
    assert rollouts.sample(toy, prompts, Key(1), decode=False).media is None
    for handle in rollouts.pool._handles:
        ray.kill(handle)


def test_what_cannot_be():
    with pytest.raises(InputError, match="use RaySetReward"):
        RayReward(Vendi(LogMel()))
    with pytest.raises(InputError, match="use RayReward"):
        RaySetReward(Loudness(-20.0))
    with pytest.raises(InputError, match="1 to 4096 actors"):
        RayReward(Loudness(-20.0), actors=0)


def test_what_was_loaded_does_not_travel():
    reward = Vendi(LogMel())
    reward(samples(3))
    fresh = unloaded(reward)
    assert set(vars(fresh.encoder)) <= set(fresh.encoder.__dataclass_fields__)

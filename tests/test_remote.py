"""Rewards that a service computes: the same as here, whatever happens on the way, or none."""

import secrets
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import pytest
import torch
import yaml

from dragontune import cli
from dragontune.data import Samples
from dragontune.demonstrations import divide
from dragontune.encoders.log_mel import LogMel
from dragontune.errors import InputError, LostService, NonFiniteError
from dragontune.media.audio import Audio
from dragontune.reference import Reference
from dragontune.rewards import source
from dragontune.rewards.base import DistributionReward
from dragontune.rewards.combine import InstanceSum, Sum
from dragontune.rewards.constrain import Constrained, Floor
from dragontune.rewards.diversity import Vendi
from dragontune.rewards.elsewhere import services
from dragontune.rewards.frechet import SetFrechet, SongFrechet
from dragontune.rewards.function import Function, SetFunction
from dragontune.rewards.kernel import SetKernel
from dragontune.rewards.remote import RemoteReward, RemoteSetReward
from dragontune.rewards.signal import Loudness
from dragontune.seeding import Key
from fault_proxy import FAULTS, at_random, between
from services import REWARDS, TOKEN, ask, audio, clips, in_thread
from small_runs import make_workplace

QUICK: Any = {
    "timeout": 0.5,
    "connect": 2.0,
    "backoff": 0.0,
    "rest": 0.05,
    "deadline": 30.0,
    "retries": 30,
    "chunk": 3,
}


def reference():
    return Reference.build(LogMel(), [audio(clips(6, 9, 4000))], "here")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A reward of a set whose features only its own file knows, and one that looks at no media."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_rewards.py").write_text(REWARDS)
    return lambda name: source.find(f"{folder}/own_rewards.py:{name}")


def total(media, prompts):
    return float(media.waveform.double().abs().sum()) / len(prompts)


def set_rewards(own):
    return {
        "set Fréchet": SetFrechet(LogMel(), reference()),
        "kernel": SetKernel(LogMel(), reference()),
        "Vendi": Vendi(LogMel()),
        "a sum": Sum({"v": Vendi(LogMel()), "l": Loudness(-20.0)}, weights={"l": 0.1}),
        "with a floor": Constrained(SetFrechet(LogMel(), reference()), {"v": Floor(Vendi(LogMel()), at_least=1.05)}),
        "latents": Sum({"norm": own("LatentNorm")(), "v": Vendi(LogMel())}),
        "a function": SetFunction(total),
        "features of its own": own("Spread")(),
    }


def samples(count, seed=1):
    made = clips(count, seed, 4000)
    latents = torch.randn(count, 2, 4, generator=torch.Generator().manual_seed(seed))
    return Samples(made.prompts, latents, made.media)


@pytest.mark.parametrize("name", ["loudness", "own", "per song", "a sum"])
def test_scores_of_items_are_those_of_here(name, own):
    local = {
        "loudness": Loudness(-20.0),
        "own": own("LatentNorm")(),
        "per song": SongFrechet(LogMel(), reference()),
        "a sum": InstanceSum({"a": Loudness(-20.0), "b": own("LatentNorm")()}),
    }[name]
    with in_thread(local) as address:
        remote = RemoteReward([address], chunk=3)
        for given in (samples(8), samples(1)):
            here, there = local(given), remote(given)
            assert torch.allclose(here.cpu(), there, rtol=1e-10, atol=0.0)  # other batches, other rounding
            assert there.dtype == here.dtype
        assert (remote.label, remote.minimum, remote.distance) == (local.label, local.minimum, local.distance)
        assert (remote.needs_media, remote.needs_prompts) == (local.needs_media, local.needs_prompts)
        assert len(remote(samples(8)[torch.arange(0)])) == 0
        inside = InstanceSum({"there": remote, "here": Loudness(-20.0)}, weights={"here": 2.0})
        assert torch.allclose(inside(samples(5)), local(samples(5)).double() + 2 * Loudness(-20.0)(samples(5)).double())


@pytest.mark.parametrize("pairing", ["paired", "unpaired"])
def test_a_set_is_divided_as_here(own, pairing):
    for name, local in set_rewards(own).items():
        first, second = samples(6, 1), samples(6, 2)
        both = Samples.join([first, second])
        with in_thread(local) as address:
            remote = RemoteSetReward([address], chunk=4)
            here, there = local.encode(both), remote.encode(both)
            assert float(local.score(here)) == pytest.approx(float(remote.score(there)), rel=1e-12), name
            rows = torch.tensor([5, 1, 8])
            assert float(local.score(here[rows])) == pytest.approx(float(remote.score(there[rows])), rel=1e-9), name
            for search in ("greedy", "best") if pairing == "paired" else ("greedy",):
                divided = [
                    divide(reward, features, both.prompts, Key(3), 2, pairing, search)
                    for reward, features in ((local, here), (remote, there))
                ]
                assert torch.equal(divided[0].positive, divided[1].positive), name
                assert torch.equal(divided[0].negative, divided[1].negative), name
                assert divided[0].accepted == divided[1].accepted


def test_exchanges_take_few_requests(own, tmp_path):
    journal = tmp_path / "journal"
    first, second = samples(12, 1), samples(12, 2)
    both = Samples.join([first, second])
    with in_thread(Vendi(LogMel()), journal=str(journal)) as address:
        remote = RemoteSetReward([address], chunk=24)
        features = remote.encode(both)
        before = len(journal.read_text().splitlines())
        division = divide(remote, features, both.prompts, Key(0), passes=3)
        asked = len(journal.read_text().splitlines()) - before
        assert division.asked > 12
        assert division.accepted > 0
        assert asked <= 2 + 1 + division.accepted  # both halves' scores, the beginning, and one an exchange


def test_a_remote_set_reward_inside_others():
    local = SetFrechet(LogMel(), reference())
    both = samples(12)
    with in_thread(local) as address:
        remote = RemoteSetReward([address])
        there = Constrained(remote, {"v": Floor(Vendi(LogMel()), at_least=1.02)})
        here = Constrained(local, {"v": Floor(Vendi(LogMel()), at_least=1.02)})
        divided = [divide(reward, reward.encode(both), both.prompts, Key(1)) for reward in (here, there)]
        assert torch.equal(divided[0].positive, divided[1].positive)


def test_the_order_is_kept_whatever_comes_first():
    count = threading.local(), cycle([0.05, 0.0, 0.02])

    def slow(media, prompts):
        time.sleep(next(count[1]))
        return [float(prompt.split()[1]) for prompt in prompts]

    with in_thread(Function(slow)) as one, in_thread(Function(slow)) as two:
        remote = RemoteReward([one, two], chunk=1, concurrency=8)
        assert remote(clips(20)).tolist() == [float(i) for i in range(20)]


@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_makes_a_wrong_reward(fault):
    local = Loudness(-20.0)
    given = samples(7)
    with in_thread(local) as address:
        faults = iter([fault, None, fault])
        with between(address, lambda: next(faults, None), hang=3.0) as proxy:
            remote = RemoteReward([proxy.address], **QUICK)
            if fault == "NaN":
                with pytest.raises(NonFiniteError, match=r"gave nan for item \d+ \(prompt 'prompt \d'\)"):
                    remote(given)
            assert torch.equal(remote(given), local(given))
            assert proxy.done[fault] == 2 or fault == "NaN"


def test_many_faults_on_a_set_make_no_wrong_one():
    local = SetFrechet(LogMel(), reference())
    both = samples(12)
    kinds = tuple(fault for fault in FAULTS if fault not in ("hangs", "slow drip", "NaN"))
    with in_thread(local) as address, between(address, at_random(0.5, 1, kinds)) as proxy:
        remote = RemoteSetReward([proxy.address], **QUICK)
        here = divide(local, local.encode(both), both.prompts, Key(1))
        there = divide(remote, remote.encode(both), both.prompts, Key(1))
        assert torch.equal(here.positive, there.positive)
        assert sum(proxy.done.values()) >= 5


def test_a_full_service_says_so_also_while_a_large_body_is_on_its_way():
    def slow(media, prompts):
        time.sleep(0.6)
        return [1.0] * len(prompts)

    large = clips(1, length=2_000_000)
    with in_thread(Function(slow), queue=1) as address, ThreadPoolExecutor(3) as pool:
        remotes = [RemoteReward([address], retries=50, backoff=0.1, rest=60.0) for _ in range(3)]
        assert [each.tolist() for each in pool.map(lambda remote: remote(large), remotes)] == [[1.0]] * 3
        assert 'status="429"' in ask(address, path="/metrics")[1].decode()
        assert [[each.failures for each in remote.line.circuits._all] for remote in remotes] == [[0]] * 3


@dataclass(frozen=True, eq=False)
class Torn(DistributionReward[torch.Tensor]):
    def encode(self, samples):
        return samples.latents.flatten(1)

    def score(self, features):
        return features.sum() * float("nan")


def test_a_set_whose_value_became_nan_stops_its_division():
    """Nothing is above NaN: without a word no exchange would be accepted any more."""

    with in_thread(Torn()) as address:
        remote = RemoteSetReward([address])
        features = remote.encode(clips(6))
        with pytest.raises(NonFiniteError, match="the reward of a set is nan"):
            remote.swaps(features[torch.arange(3)], features[torch.arange(3, 6)])


def test_features_that_are_not_finite_name_the_item():
    with in_thread(SetFrechet(LogMel(), reference())) as address:
        faults = iter(["NaN"])
        with between(address, lambda: next(faults, None)) as proxy:
            remote = RemoteSetReward([proxy.address], **QUICK | {"concurrency": 1})
            with pytest.raises(NonFiniteError, match=r"features of .* not finite for item 1 \(prompt 'prompt 0'\)"):
                remote.encode(samples(7))


def test_the_rewards_own_verdict_comes_back_with_its_item(own):
    with (
        in_thread(
            Function(lambda media, prompts: [float("nan") if p == "prompt 4" else 1.0 for p in prompts])
        ) as address,
        pytest.raises(NonFiniteError, match=r"for item 2 .*'prompt 4'.* \(among items 4 to 6 of 7\)"),
    ):
        RemoteReward([address], **QUICK)(clips(7))
    with (
        in_thread(Function(lambda media, prompts: [1.0])) as address,
        pytest.raises(InputError, match="expected 7 numbers"),
    ):
        RemoteReward([address])(clips(7))


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_another_address_takes_over_and_a_lost_service_ends_it():
    local = Loudness(-20.0)
    dead = f"http://127.0.0.1:{free_port()}"
    with in_thread(local) as address:
        remote = RemoteReward([dead, address], **QUICK)
        assert torch.equal(remote(clips(9)), local(clips(9)))
    start = time.monotonic()
    with pytest.raises(LostService, match=r"expected an answer of the reward service at http://.*, got no answer"):
        replace(remote, retries=3, deadline=3.0)(clips(9))
    with pytest.raises(LostService):
        RemoteReward([dead], **(QUICK | {"deadline": 0.5, "backoff": 0.1, "retries": 1000}))(clips(2))
    assert time.monotonic() - start < 6


def test_a_service_that_hangs_does_not_keep_an_interrupted_run(monkeypatch):
    """Ctrl-C arrives while a reply is waited for: the wait ends, and so do the threads."""
    held = threading.Event()
    local = Loudness(-20.0)
    with in_thread(local) as address, between(address, lambda: "hangs", hang=20.0) as proxy:
        remote = RemoteReward([proxy.address], timeout=15.0, chunk=1)
        _ = remote.info
        monkeypatch.setattr("dragontune.rewards.elsewhere.wait", interrupts(held))
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            remote(clips(4))
        while any("remote-reward" in thread.name for thread in threading.enumerate()):
            assert time.monotonic() - start < 3
            time.sleep(0.01)


def interrupts(held):
    def wait(*given, **more):
        held.wait(0.3)
        raise KeyboardInterrupt

    return wait


def test_two_services_with_different_rewards_are_refused(own):
    with in_thread(Loudness(-20.0)) as one, in_thread(Loudness(-21.0)) as two:
        with pytest.raises(InputError, match=r"reward that is served here|expected the same reward"):
            RemoteReward([one, two], chunk=1)(clips(8))
        with pytest.raises(InputError, match="expected the same reward"):
            RemoteReward([one], digest="0" * 64)(clips(2))
        nested = InstanceSum({"a": RemoteReward([one]), "b": RemoteReward([two])})
        found = services(nested)
        assert list(found) == ["reward.rewards.a", "reward.rewards.b"]
        assert len(set(found.values())) == 2


def test_the_wrong_scope_and_no_service_at_all():
    with in_thread(Loudness(-20.0)) as address:
        with pytest.raises(InputError, match="use RemoteReward or RayReward"):
            RemoteSetReward([address]).encode(clips(2))
        with pytest.raises(InputError, match="so it is none; check the address"):
            RemoteReward([f"{address}/elsewhere"])(clips(2))
    with in_thread(Vendi(LogMel())) as address, pytest.raises(InputError, match="use RemoteSetReward or RaySetReward"):
        RemoteReward([address])(clips(2))


def test_the_token(monkeypatch):
    monkeypatch.setenv("A_TOKEN", TOKEN)
    monkeypatch.setenv("WRONG_TOKEN", "x" * 32)
    with in_thread(Loudness(-20.0), TOKEN) as address:
        assert len(RemoteReward([address], token_variable="A_TOKEN")(clips(2))) == 2
        with pytest.raises(InputError, match="check the token in the environment variable WRONG_TOKEN") as wrong:
            RemoteReward([address], token_variable="WRONG_TOKEN")(clips(2))
        assert "xxx" not in str(wrong.value)
        with pytest.raises(InputError, match="name the environment variable with its token"):
            RemoteReward([address])(clips(2))


def test_items_that_are_too_large_for_the_service():
    with in_thread(Loudness(-20.0), bytes=200_000) as address:
        assert len(RemoteReward([address], chunk=64)(samples(40))) == 40  # in smaller chunks than asked for
        large = Samples(("a",), torch.zeros(1, 1), Audio(torch.zeros(1, 1, 100_000), 16000))
        with pytest.raises(InputError, match="raise its --max-mib"):
            RemoteReward([address])(large)


SETTINGS: list[dict[str, Any]] = [
    {"addresses": []},
    {"addresses": ["a:1"]},
    {"addresses": ["http://u:p@a:1"]},
    {"addresses": ["http://a", "http://a"]},
    {"timeout": 0},
    {"retries": -1},
    {"chunk": 0},
    {"concurrency": 0},
    {"token_variable": "my-token"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_settings_that_cannot_be(settings):
    with pytest.raises(InputError):
        RemoteReward(**{"addresses": ["http://localhost:1"]} | settings)


def recipe(folder, reward, name):
    text = yaml.safe_load((folder / "recipe.yaml").read_text())
    text.pop("evaluation")
    text["reward"] = reward
    text["loop"] |= {"sample_every": 0}
    (folder / name).write_text(yaml.safe_dump(text))
    return name


def tune(name, *more):
    return cli.run(["tune", name, "--out", name.removesuffix(".yaml"), *more])


def test_a_run_with_a_lost_service_goes_on_to_the_same_adapter(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(make_workplace(tmp_path))
    clap = {"class_path": "TinyClap", "init_args": {"model": "clap"}}
    local = {"class_path": "SetFrechet", "init_args": {"encoder": clap, "exemplars": "real"}}
    assert tune(recipe(tmp_path, local, "local.yaml")) == 0
    from dragontune.commands import parsing

    reward = parsing.make(SetFrechet, "reward", local)
    lost = threading.Event()
    with in_thread(reward) as address, between(address, lambda: "status 500" if lost.is_set() else None) as proxy:
        settings = {"addresses": [proxy.address], "retries": 1, "backoff": 0.0}
        remote = {"class_path": "RemoteSetReward", "init_args": settings}
        name = recipe(tmp_path, remote, "remote.yaml")
        taken = proxy.choose
        count = iter(range(10**6))
        proxy.choose = lambda: (lost.set() if next(count) == 9 else None) or taken()
        assert tune(name) == 6
        said = capsys.readouterr().err
        assert "the state is saved, resume with: dragontune tune remote.yaml" in said
        assert "Traceback" not in said
        assert list((tmp_path / "remote" / "checkpoints").glob("round-*.json"))
        with in_thread(replace(reward, exemplars="prompts.txt")) as other:
            proxy.target = ("127.0.0.1", int(other.rpartition(":")[2]))
            lost.clear()
            proxy.choose = lambda: None
            assert tune(name, "--resume") == 2
            assert "services.reward" in capsys.readouterr().err
        proxy.target = ("127.0.0.1", int(address.rpartition(":")[2]))
        assert tune(name, "--resume") == 0
    files = [tmp_path / run / "adapter" / "adapter_model.safetensors" for run in ("local", "remote")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_keys_are_never_the_same(monkeypatch):
    given = samples(3)
    seen = set()
    original = secrets.token_hex
    monkeypatch.setattr(secrets, "token_hex", lambda n: seen.add(made := original(n)) or made)
    with in_thread(Loudness(-20.0)) as address:
        remote = RemoteReward([address], chunk=1)
        remote(given)
        remote(given)
    assert len(seen) == 1 + 2 * 3 * 2  # the first question, then an id and a key for each item

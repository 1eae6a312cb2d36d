import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from dragontune.errors import InputError
from dragontune.generators import adapters
from dragontune.generators.adapters import Lora
from dragontune.generators.tiny import TinyMusicPipeline
from tiny_models import save_tiny_music


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 4)])
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x):
        return self.conv(self.layers[1](self.layers[0](x).tanh())[:, None])[:, 0]


def net(lora: Lora | None = None) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Net().requires_grad_(False)
    if lora is not None:
        adapters.attach(network, lora)
    return network


def move(network: nn.Module) -> None:
    """Away from the start, where the adapter changes nothing."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in adapters.parameters(network):
            weight.add_(torch.randn(weight.shape, generator=draw), alpha=0.3)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(2))


def test_a_fresh_adapter_changes_nothing_and_alone_is_trained(x):
    network = net(Lora(rank=2))
    assert torch.equal(network(x), net()(x))
    trained = {id(p) for p in network.parameters() if p.requires_grad}
    assert trained == {id(p) for p in adapters.parameters(network)}
    assert sum(p.numel() for p in adapters.parameters(network)) == 2 * 2 * (4 + 6)


def test_disabled_is_the_base_bit_for_bit(x):
    network = net(Lora(rank=2))
    move(network)
    tuned, base = network(x), net()(x)
    assert not torch.allclose(tuned, base)
    with adapters.disabled(network):
        assert torch.equal(network(x), base)
        with adapters.disabled(network):
            pass
        assert torch.equal(network(x), base)
    assert torch.equal(network(x), tuned)
    assert all(p.requires_grad for p in adapters.parameters(network))


def test_disabling_between_forward_and_backward_leaves_the_gradients(x):
    network = net(Lora(rank=2))
    move(network)
    expected = torch.autograd.grad(network(x).square().sum(), list(adapters.parameters(network)))
    loss = network(x).square().sum()
    with torch.no_grad(), adapters.disabled(network):
        network(x)
    loss.backward()
    torch.testing.assert_close([p.grad for p in adapters.parameters(network)], list(expected), rtol=0, atol=0)


def test_scaled_multiplies_the_change_of_a_linear_layer(x):
    layer = nn.Linear(4, 3)
    network = nn.Sequential(layer)
    adapters.attach(network, Lora(rank=2))
    move(network)
    full = network(x)
    with adapters.disabled(network):
        base = network(x)
    for gamma in (0.0, 0.5, 1.0, 1.5):
        with adapters.scaled(network, gamma):
            torch.testing.assert_close(network(x), base + gamma * (full - base))
    with adapters.scaled(network, 0.0):
        assert torch.equal(network(x), base)
    assert torch.equal(network(x), full)


def test_alpha_over_rank_is_the_scale(x):
    network, double = (nn.Sequential(nn.Linear(4, 3, bias=False)) for _ in range(2))
    double.load_state_dict(network.state_dict())
    adapters.attach(network, Lora(rank=4, alpha=4))
    adapters.attach(double, Lora(rank=4, alpha=8))
    move(network)
    move(double)
    with adapters.disabled(network):
        base = network(x)
    torch.testing.assert_close(double(x) - base, 2 * (network(x) - base))


def test_the_start_belongs_to_the_seed_and_not_to_the_global_stream():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = [p.clone() for p in adapters.parameters(net(Lora(rank=2, seed=7)))]
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(4)
    second = list(adapters.parameters(net(Lora(rank=2, seed=7))))
    other = list(adapters.parameters(net(Lora(rank=2, seed=8))))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_targets_choose_layers():
    network = net(Lora(rank=2, targets=("layers.1",)))
    assert sum(p.numel() for p in adapters.parameters(network)) == 2 * (6 + 4)
    for wrong in ("conv", "to_q"):
        with pytest.raises(InputError, match=wrong):
            net(Lora(targets=(wrong,)))


@pytest.mark.parametrize("absurd", [{"rank": 0}, {"alpha": -1.0}, {"alpha": float("nan")}])
def test_absurd_numbers_are_refused(absurd):
    with pytest.raises(InputError, match="LoRA"):
        Lora(**absurd)


def test_saved_adapters_are_the_same_bytes_and_load_in_place(tmp_path, x):
    network = net(Lora(rank=2, alpha=3))
    move(network)
    adapters.save(network, tmp_path / "a", "toy")
    adapters.save(network, tmp_path / "b", "toy")
    for name in (adapters.CONFIG_FILE, adapters.WEIGHTS_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    fresh = net(Lora(rank=2, alpha=3))
    weights = list(adapters.parameters(fresh))
    adapters.load(fresh, tmp_path / "a")
    assert torch.equal(fresh(x), network(x))
    assert all(a is b for a, b in zip(weights, adapters.parameters(fresh), strict=True))


def test_an_adapter_that_was_trained_with_dropout_is_loaded_without(tmp_path, x):
    """What is computed twice must be the same."""
    network = net(Lora(rank=2, alpha=3))
    move(network)
    adapters.save(network, tmp_path, "toy")
    config = json.loads((tmp_path / adapters.CONFIG_FILE).read_text())
    (tmp_path / adapters.CONFIG_FILE).write_text(json.dumps(config | {"lora_dropout": 0.5}))
    fresh = net(None)
    adapters.load(fresh, tmp_path)
    torch.testing.assert_close(fresh(x), network(x))
    assert torch.equal(fresh(x), fresh(x))


@pytest.mark.parametrize("present", [None, Lora(rank=3, targets=("layers.0",))])
def test_an_adapter_of_another_shape_takes_the_place_of_the_present_one(tmp_path, x, present):
    network = net(Lora(rank=2, alpha=3))
    move(network)
    adapters.save(network, tmp_path, "toy")
    other = net(present)
    before = torch.get_rng_state()
    adapters.load(other, tmp_path)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(other(x), network(x))
    assert all(p.requires_grad for p in adapters.parameters(other))
    adapters.detach(other)
    assert torch.equal(other(x), net()(x))
    assert list(adapters.parameters(other)) == []


def spoil_weights(folder):
    (folder / adapters.WEIGHTS_FILE).write_bytes(b"torn")


def spoil_config(folder):
    (folder / adapters.CONFIG_FILE).write_text("{")


def other_method(folder):
    (folder / adapters.CONFIG_FILE).write_text(json.dumps({"peft_type": "IA3"}))


def lose_a_row(folder):
    weights = load_file(folder / adapters.WEIGHTS_FILE)
    name = next(iter(weights))
    save_file(weights | {name: weights[name][:-1].contiguous()}, folder / adapters.WEIGHTS_FILE)


@pytest.mark.parametrize("spoil", [shutil.rmtree, spoil_weights, spoil_config, other_method, lose_a_row])
def test_adapters_that_do_not_fit_are_refused(tmp_path, spoil):
    adapters.save(net(Lora(rank=2)), tmp_path / "bad", "toy")
    spoil(tmp_path / "bad")
    with pytest.raises(InputError, match="bad"):
        adapters.load(net(Lora(rank=2)), tmp_path / "bad")


def test_an_adapter_of_another_network_is_refused(tmp_path):
    adapters.save(net(Lora(rank=2)), tmp_path, "toy")
    for other in (nn.Sequential(nn.Linear(4, 4)), nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 9)])})):
        with pytest.raises(InputError, match="adapter for this model"):
            adapters.load(other, tmp_path)


def test_peft_itself_loads_what_was_saved(tmp_path):
    pipeline = TinyMusicPipeline.from_pretrained(save_tiny_music(tmp_path / "model"))
    plain = TinyMusicPipeline.from_pretrained(tmp_path / "model")
    network = pipeline.transformer
    adapters.attach(network, Lora(rank=2))
    move(network)
    adapters.save(network, tmp_path / "adapter", "tiny-music")
    loaded = PeftModel.from_pretrained(plain.transformer, str(tmp_path / "adapter"))
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 4, 16, generator=draw), torch.zeros(2), torch.randn(2, 3, 16, generator=draw)
    mask = torch.ones(2, 3, dtype=torch.long)
    with torch.no_grad():
        ours, theirs = network(*inputs, mask), loaded(*inputs, mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)

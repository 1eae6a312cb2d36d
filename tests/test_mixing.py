"""LoRA strength and mixtures: the sum of the products, exactly, in memory and on disk."""

import json
import math
import shutil
from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from peft.tuners.lora import Linear
from safetensors.torch import load_file
from torch import nn

from dragontune.errors import InputError
from dragontune.generators import adapters
from dragontune.generators.adapters import Lora
from dragontune.generators.pretrained import load
from dragontune.generators.tiny import TinyMusicPipeline
from dragontune.testing import Toy, check_generator
from tiny_models import save_tiny_music

A = LoraConfig(r=2, lora_alpha=3, target_modules="all-linear")
B = LoraConfig(r=5, lora_alpha=20, use_rslora=True, target_modules=["0", "2"])


class Net(nn.Module):
    """Its layers are named so that one name ends in another."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)
        self.first = nn.ModuleDict({"0": nn.Linear(4, 6), "2": nn.Linear(6, 5)})
        self.add_module("0", nn.Linear(5, 4))

    def forward(self, x):
        x = self.first["2"](self.first["0"](self.conv(x[:, None])[:, 0]).tanh()).tanh()
        return self.get_submodule("0")(x)


def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().double().requires_grad_(False)


def write(folder, config, seed=1, make=net):
    """An adapter away from its start, in peft's format."""
    network = make()
    inject_adapter_in_model(deepcopy(config), network, "default")
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adapters.parameters(network):
            weight.add_(torch.randn(weight.shape, generator=draw), alpha=0.5)
    adapters.save(network, folder, "toy")
    return folder


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(7, 4, generator=torch.Generator().manual_seed(2)).double()


@pytest.fixture
def a(tmp_path):
    return write(tmp_path / "a", A, 1)


@pytest.fixture
def b(tmp_path):
    return write(tmp_path / "b", B, 2)


def deltas(folder, scale):
    """s B A of every layer, from the file."""
    weights = load_file(folder / "adapter_model.safetensors")
    names = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in weights}
    file = {name: [weights[f"base_model.model.{name}.lora_{part}.weight"] for part in "BA"] for name in names}
    return {name: scale * (up @ down) for name, (up, down) in file.items()}


def merged(*changes):
    """The base with the changes added to its weights."""
    network = net()
    for gamma, change in changes:
        for name, delta in change.items():
            network.get_parameter(f"{name}.weight").add_(gamma * delta)
    return network


def mixture(*pairs):
    network = net()
    adapters.mix(network, pairs)
    return network


def changes(network):
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, Linear)]
    return {name: layer.get_delta_weight("default").detach() for name, layer in layers}


def close(one, other, tolerance=1e-9):
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("left", "right"), [(0.5, 0.5), (1.0, 1.0), (0.3, -0.7), (0.0, 2.0), (1, 0)])
def test_a_mixture_is_the_sum_of_the_products(a, b, x, left, right):
    by_hand = merged((left, deltas(a, 3 / 2)), (right, deltas(b, 20 / math.sqrt(5))))
    close(mixture((a, left), (b, right))(x), by_hand(x))
    close(mixture((b, right), (a, left))(x), by_hand(x))


def test_a_sum_of_the_factors_is_something_else(a, tmp_path, x):
    other = write(tmp_path / "other", A, 3)
    files = [load_file(folder / "adapter_model.safetensors") for folder in (a, other)]
    sums = {name: 0.5 * value + 0.5 * files[1][name] for name, value in files[0].items()}
    wrong = merged()
    for name in deltas(a, 1):
        up, down = (sums[f"base_model.model.{name}.lora_{part}.weight"] for part in "BA")
        wrong.get_parameter(f"{name}.weight").add_(1.5 * up @ down)
    got = mixture((a, 0.5), (other, 0.5))(x)
    close(got, merged((0.5, deltas(a, 1.5)), (0.5, deltas(other, 1.5)))(x))
    assert (got - wrong(x)).abs().max() > 0.01


def test_weights_of_nought_are_the_base_bit_for_bit(a, b, x):
    for pairs in ([(a, 0)], [(a, 0.0), (b, 0.0)]):
        assert torch.equal(mixture(*pairs)(x), net()(x))


def test_the_change_is_linear_in_the_weight(a):
    full = changes(mixture((a, 1.0)))
    for gamma in (0.3, -1.0, 2.5):
        part = changes(mixture((a, gamma)))
        assert part.keys() == full.keys()
        for name in full:
            close(part[name], gamma * full[name])


@pytest.mark.parametrize("config", [A, B, LoraConfig(r=2, use_dora=True, target_modules=["2"])])
def test_one_adapter_with_weight_1_is_loaded_as_it_is(tmp_path, x, config):
    folder = write(tmp_path / "one", config)
    network, loaded = mixture((folder, 1.0)), net()
    adapters.load(loaded, folder)
    assert torch.equal(network(x), loaded(x))
    adapters.save(network, tmp_path / "mixed", "toy")
    adapters.save(loaded, tmp_path / "loaded", "toy")
    for name in (adapters.CONFIG_FILE, adapters.WEIGHTS_FILE):
        assert (tmp_path / "mixed" / name).read_bytes() == (tmp_path / "loaded" / name).read_bytes()


def test_a_folder_named_twice_counts_twice(a, x):
    close(mixture((a, 0.75), (str(a), -0.25))(x), merged((0.5, deltas(a, 1.5)))(x))


def test_layers_that_only_one_adapter_has(tmp_path, x):
    """A regular expression picks the layer named 0 and leaves first.0, whose name ends in 0, alone."""
    last = write(tmp_path / "last", LoraConfig(r=3, lora_alpha=6, target_modules="0"), 4)
    wide = write(tmp_path / "wide", LoraConfig(r=1, lora_alpha=1, target_modules=["0"], exclude_modules=["first.0"]), 5)
    middle = write(tmp_path / "middle", LoraConfig(r=2, lora_alpha=2, target_modules=["first.2"]), 6)
    network, ranks = mixture((last, 0.5), (wide, 1.0), (middle, -1.0)), {"0": 4, "first.2": 2}
    assert {name: len(network.get_parameter(f"{name}.lora_A.default.weight")) for name in changes(network)} == ranks
    close(network(x), merged((0.5, deltas(last, 2)), (1.0, deltas(wide, 1)), (-1.0, deltas(middle, 1)))(x))


def test_ranks_and_alphas_by_layer(tmp_path, b, x):
    """Against peft's own arithmetic, through the merged change of each layer."""
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["0", "2"])
    config.rank_pattern, config.alpha_pattern = {"first.2": 4, "^0": 1}, {"first.[02]": 7}
    folder = write(tmp_path / "by layer", config)
    alone = changes(mixture((folder, 1.0)))
    close(mixture((folder, 0.5), (b, 2.0))(x), merged((0.5, alone), (2.0, deltas(b, 20 / math.sqrt(5))))(x))


def test_peft_mixes_alike(tmp_path, a, x):
    other = write(tmp_path / "other", LoraConfig(r=5, lora_alpha=20, target_modules="all-linear"), 3)
    theirs = PeftModel.from_pretrained(net(), str(a), adapter_name="a")
    theirs.load_adapter(str(other), "other")
    theirs.add_weighted_adapter(["a", "other"], [0.5, 0.75], "mixed", combination_type="cat")
    theirs.set_adapter("mixed")
    close(mixture((a, 0.5), (other, 0.75))(x), theirs(x))


@pytest.mark.parametrize("pairs", [[("a", 0.5), ("b", -0.5)], [("b", 0.25)]])
def test_a_mixture_is_saved_and_loaded(tmp_path, a, b, x, pairs):
    network = mixture(*((tmp_path / name, gamma) for name, gamma in pairs))
    adapters.save(network, tmp_path / "mixed", "toy")
    again = net()
    adapters.load(again, tmp_path / "mixed")
    assert torch.equal(again(x), network(x))
    theirs = PeftModel.from_pretrained(net(), str(tmp_path / "mixed"))
    assert torch.equal(theirs(x), network(x))
    close(mixture((tmp_path / "mixed", 2.0), (a, 0.0))(x), merged((2.0, changes(network)))(x))


def test_a_mixture_can_be_trained_on_and_switched_off(a, b, x):
    network = mixture((a, 0.5), (b, 0.5))
    trained = {id(p) for p in network.parameters() if p.requires_grad}
    assert trained == {id(p) for p in adapters.parameters(network)}
    network(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapters.parameters(network))
    with adapters.disabled(network):
        assert torch.equal(network(x), net()(x))
    adapters.detach(network)
    assert torch.equal(network(x), net()(x))


def test_a_mixture_takes_the_place_of_the_present_adapter(a, b, x):
    network = net()
    adapters.attach(network, Lora(rank=3))
    adapters.mix(network, [(a, 0.5), (b, 0.5)])
    close(network(x), mixture((a, 0.5), (b, 0.5))(x))


@pytest.mark.parametrize("config", [A, B, LoraConfig(r=2, lora_bias=True, target_modules=["0"])])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, -2.0])
def test_rescale_is_scaled_for_good(tmp_path, x, config, gamma):
    network = net()
    adapters.load(network, write(tmp_path / "full", config))
    weights = list(adapters.parameters(network))
    with adapters.scaled(network, gamma), torch.no_grad():
        expected = network(x)
    adapters.rescale(network, gamma)
    close(network(x).detach(), expected)
    assert all(one is other for one, other in zip(weights, adapters.parameters(network), strict=True))
    adapters.save(network, tmp_path / "weaker", "toy")
    again = net()
    adapters.load(again, tmp_path / "weaker")
    assert torch.equal(again(x), network(x))


def test_rescale_of_embeddings():
    def make():
        return nn.Sequential(nn.Embedding.from_pretrained(torch.arange(12.0).reshape(4, 3)), nn.Flatten())

    network, tokens = make(), torch.tensor([[0], [3]])
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"]), network, "default")
    with torch.no_grad():
        for weight in adapters.parameters(network):
            weight.fill_(0.5)
        full, base = network(tokens), make()(tokens)
        adapters.rescale(network, 0.25)
        close(network(tokens), base + 0.25 * (full - base))
    assert not torch.allclose(full, base)


def test_a_network_without_an_adapter_has_nothing_to_rescale(x):
    network = net()
    adapters.rescale(network, 0.5)
    assert torch.equal(network(x), net()(x))


@pytest.mark.parametrize("gamma", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(a, gamma):
    for refused in (lambda: adapters.mix(net(), [(a, gamma)]), lambda: adapters.rescale(net(), gamma)):
        with pytest.raises(InputError, match="finite"):
            refused()


def refused_alike(network, pairs, *words):
    """An InputError with these words, after which the network computes what its base does."""
    probe = torch.randn(3, 4, generator=torch.Generator().manual_seed(3)).double()
    with pytest.raises(InputError) as stop:
        adapters.mix(network, pairs)
    for word in words:
        assert word in str(stop.value)
    assert torch.equal(network(probe), net()(probe))
    assert not adapters.attached(network)


@pytest.mark.parametrize(
    ("said", "config"),
    [
        ("use_dora", LoraConfig(r=2, use_dora=True, target_modules=["0"])),
        ("bias", LoraConfig(r=2, bias="all", target_modules=["0"])),
        ("lora_bias", LoraConfig(r=2, lora_bias=True, target_modules=["0"])),
        ("modules_to_save", LoraConfig(r=2, target_modules=["0"], modules_to_save=["conv"])),
        ("init_lora_weights", LoraConfig(r=2, init_lora_weights="pissa", target_modules=["0"])),
        ("Conv1d", LoraConfig(r=2, target_modules=["conv", "0"])),
    ],
)
def test_what_is_no_plain_lora_is_named(tmp_path, a, said, config):
    odd = write(tmp_path / "odd", config, make=lambda: net().float())
    for pairs in ([(a, 0.5), (odd, 0.5)], [(odd, 0.5), (a, 0.5)], [(odd, 2.0)]):
        refused_alike(net(), pairs, "odd", said)


def narrow():
    network = net()
    network.add_module("0", nn.Linear(5, 9))
    return network.double().requires_grad_(False)


def test_adapters_of_another_network_or_of_none_are_refused(tmp_path, a):
    other = write(tmp_path / "other", A, make=narrow)
    refused_alike(net(), [(a, 0.5), (other, 0.5)], "adapter for this model", "other")
    elsewhere = write(tmp_path / "elsewhere", A, make=lambda: nn.Sequential(nn.Linear(4, 4)))
    refused_alike(net(), [(a, 0.5), (elsewhere, 0.5)], "adapter for this model", "elsewhere")
    refused_alike(net(), [(a, 0.5), (tmp_path / "gone", 0.5)], "gone", "adapter_config.json")
    (tmp_path / "ia3").mkdir()
    shutil.copy(a / adapters.WEIGHTS_FILE, tmp_path / "ia3")
    (tmp_path / "ia3" / adapters.CONFIG_FILE).write_text(json.dumps({"peft_type": "IA3"}))
    refused_alike(net(), [(a, 0.5), (tmp_path / "ia3", 0.5)], "ia3")
    refused_alike(net(), [], "at least one adapter")


def test_the_embedded_models_network(tmp_path):
    """With a list of every layer, as `attach` makes it, and a mixture of other ranks and targets."""
    model = save_tiny_music(tmp_path / "model")
    for name, lora, seed in (("a", Lora(rank=2), 1), ("b", Lora(rank=3, alpha=5, targets=("to_q", "text_v")), 2)):
        tuned = load(str(model), lora, device="cpu")
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in tuned.parameters():
                weight.add_(torch.randn(weight.shape, generator=draw), alpha=0.3)
        tuned.save_adapter(str(tmp_path / name))
    mixed = load(str(model), device="cpu")
    mixed.mix_adapters([(str(tmp_path / "a"), 0.5), (str(tmp_path / "b"), 0.5)])
    mixed.save_adapter(str(tmp_path / "mixed"))
    theirs = PeftModel.from_pretrained(TinyMusicPipeline.from_pretrained(model).transformer, str(tmp_path / "mixed"))
    base = TinyMusicPipeline.from_pretrained(model).transformer
    for name, scale in (("a", 8.0), ("b", 5 / 3)):
        for layer, delta in deltas(tmp_path / name, scale).items():
            base.get_parameter(f"{layer}.weight").data.add_(0.5 * delta)
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 4, 16, generator=draw), torch.zeros(2), torch.randn(2, 3, 16, generator=draw)
    mask = torch.ones(2, 3, dtype=torch.long)
    with torch.no_grad():
        ours = mixed.network(*inputs, mask)
        assert torch.equal(ours, theirs(*inputs, mask))
        close(ours, base(*inputs, mask), 1e-5)


@dataclass(frozen=True, eq=False)
class SumsFactors(Toy):
    def mix_adapters(self, parts):
        self.load_adapter(parts[0][0])
        with torch.no_grad():
            for weight in self.parameters():
                weight.mul_(sum(gamma for _, gamma in parts))


@dataclass(frozen=True, eq=False)
class Forgets(Toy):
    def rescale(self, gamma):
        pass


@pytest.mark.parametrize(("broken", "complaint"), [(SumsFactors(), "half"), (Forgets(), "rescale")])
def test_the_conformance_suite_catches_wrong_mixtures(broken, complaint):
    before = [weight.detach().clone() for weight in broken.parameters()]
    with pytest.raises(AssertionError, match=complaint):
        check_generator(broken)
    assert all(torch.equal(one, other) for one, other in zip(before, broken.parameters(), strict=True))

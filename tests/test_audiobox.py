"""Audiobox Aesthetics: the released structure, written out by hand from the released names, is the oracle."""

import json
import math

import pytest
import soxr
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from dragontune.data import Samples
from dragontune.encoders.audiobox import AXES
from dragontune.errors import InputError
from dragontune.media.audio import Audio
from dragontune.rewards.audiobox import AudioboxAesthetics
from dragontune.testing import check_reward
from tiny_encoders import save_audiobox

LENGTH = 160000
KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
HEADS, BUCKETS, FARTHEST = 2, 320, 800


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_audiobox(tmp_path_factory.mktemp("audiobox"))


def samples(seconds: float, count: int = 2, rate: int = 16000, channels: int = 1) -> Samples:
    shape = (count, channels, round(seconds * rate))
    wave = 0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return Samples(("",) * count, torch.zeros(count, 2), Audio(wave, rate))


def norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def full(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].mT + state[f"{name}.bias"]


def bias_of_places(state: dict[str, Tensor], frames: int) -> Tensor:
    """T5's buckets: half for either side, half of each exact, the rest logarithmic up to the farthest."""
    side, exact = BUCKETS // 2, BUCKETS // 4
    ahead = torch.arange(frames) - torch.arange(frames)[:, None]
    off = ahead.abs()
    far = exact + ((off / exact).log() / math.log(FARTHEST / exact) * (side - exact)).clamp(min=0).long()
    table = torch.where(off < exact, off, far).clamp(max=side - 1) + side * (ahead > 0)
    return state["wavlm_model.encoder.layers.0.self_attn.relative_attention_bias.weight"][table].permute(2, 0, 1)


def attention(state: dict[str, Tensor], name: str, x: Tensor, places: Tensor, real: int) -> Tensor:
    """Of one clip: each head's bias is gated by what stands at the query (WavLM, Chen et al. 2022, section 3.1)."""
    frames, width = x.shape
    q, k, v = (full(state, f"{name}.{part}_proj", x).reshape(frames, HEADS, -1).transpose(0, 1) for part in "qkv")
    gates = full(state, f"{name}.grep_linear", x.reshape(frames, HEADS, -1)).unflatten(2, (2, 4)).sum(3).sigmoid()
    update, reset = gates[..., 0].mT, gates[..., 1].mT
    scale = update * (reset * state[f"{name}.grep_a"][0, :, :, 0] - 1) + 2
    scores = q @ k.mT / math.sqrt(width / HEADS) + scale[..., None] * places
    scores[:, :, real:] = -math.inf
    return full(state, f"{name}.out_proj", (scores.softmax(2) @ v).transpose(0, 1).reshape(frames, width))


def window_rating(state: dict[str, Tensor], window: Tensor, heard: int, axis: str, places: Tensor) -> Tensor:
    trunk = {name.removeprefix("wavlm_model."): value for name, value in state.items()}
    x = window[None, None]
    for k, stride in enumerate(STRIDES):
        x = functional.conv1d(x, trunk[f"feature_extractor.conv_layers.{k}.0.weight"], stride=stride)
        if k == 0:
            scale, shift = (trunk[f"feature_extractor.conv_layers.0.2.{part}"] for part in ("weight", "bias"))
            x = functional.group_norm(x, x.shape[1], scale, shift)
        x = functional.gelu(x)
    x = full(trunk, "post_extract_proj", norm(trunk, "layer_norm", x[0].mT))
    real = min(len(x), math.ceil(heard / (LENGTH // len(x))))
    x = torch.cat([x[:real], torch.zeros_like(x[real:])])
    v, g = (trunk[f"encoder.pos_conv.0.weight_{part}"] for part in "vg")
    kernel = g * v / v.norm(dim=(0, 1), keepdim=True)
    conv = functional.conv1d(x.mT[None], kernel, trunk["encoder.pos_conv.0.bias"], padding=4, groups=4)
    x = norm(trunk, "encoder.layer_norm", x + functional.gelu(conv[0, :, :-1]).mT)
    layers = [x]
    for k in range(2):
        name = f"encoder.layers.{k}"
        x = norm(trunk, f"{name}.self_attn_layer_norm", x + attention(trunk, f"{name}.self_attn", x, places, real))
        inner = full(trunk, f"{name}.fc2", functional.gelu(full(trunk, f"{name}.fc1", x)))
        x = norm(trunk, f"{name}.final_layer_norm", x + inner)
        layers.append(x)
    mixed = (torch.stack(layers, 2) @ state[f"layer_weights.{axis}"].softmax(0))[:real].mean(0)
    head = full(state, f"proj_layer.{axis}.0", mixed / mixed.norm())
    return full(state, f"proj_layer.{axis}.3", functional.gelu(norm(state, f"proj_layer.{axis}.1", head)))[0]


def rating(folder, waveform: Tensor, axis: str) -> Tensor:
    state = load_file(folder / "model.safetensors")
    target = json.loads((folder / "config.json").read_text())["target_transform"][axis]
    places, total = bias_of_places(state, 499), torch.tensor(0.0)
    for start in range(0, len(waveform), LENGTH):
        part = waveform[start : start + LENGTH]
        padded = functional.pad(part, (0, LENGTH - len(part)))
        total = total + len(part) / len(waveform) * window_rating(state, padded, len(part), axis, places)
    return total * target["std"] + target["mean"]


@pytest.mark.parametrize(("seconds", "axis"), [(0.031, "PQ"), (1.0, "CE"), (10.0, "CU"), (13.7, "PC")])
def test_the_released_structure(folder, seconds, axis):
    batch = samples(seconds)
    assert isinstance(batch.media, Audio)
    with torch.no_grad():
        found = AudioboxAesthetics(str(folder), axis=axis)(batch)
        expected = torch.stack([rating(folder, wave[0], axis) for wave in batch.media.waveform])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_promises(folder):
    check_reward(AudioboxAesthetics(str(folder)), samples(0.6, 3, 44100, 2))
    check_reward(AudioboxAesthetics(str(folder), axis="CE"), samples(10.4, 2))


def test_axes_differ(folder):
    ratings = [AudioboxAesthetics(str(folder), axis=axis)(samples(0.5))[0].item() for axis in AXES]
    assert len({round(value, 3) for value in ratings}) == 4
    assert AudioboxAesthetics(str(folder), axis="CU").label == "AudioboxAesthetics CU"


def test_any_rate_and_channel_count_is_converted(folder):
    batch = samples(0.5, 2, 44100, 2)
    assert isinstance(batch.media, Audio)
    by_hand = soxr.resample(batch.media.waveform.mean(1).numpy().T, 44100, 16000).T
    reward = AudioboxAesthetics(str(folder))
    expected = reward(Samples(batch.prompts, batch.latents, Audio(torch.from_numpy(by_hand.copy())[:, None], 16000)))
    torch.testing.assert_close(reward(batch), expected, rtol=1e-3, atol=1e-3)


def test_silence_and_next_to_nothing(folder):
    reward = AudioboxAesthetics(str(folder))
    for count in (0, 1, 399, 8000):
        assert reward(Samples(("",), torch.zeros(1, 2), Audio(torch.zeros(1, 1, count), 16000))).isfinite().all()


def test_gradients_agree_with_differences(folder):
    reward, batch = AudioboxAesthetics(str(folder)), samples(0.3, 1)
    assert isinstance(batch.media, Audio)
    wave = batch.media.waveform.requires_grad_()

    def value(waveform):
        return reward(Samples(("",), batch.latents, Audio(waveform, 16000))).sum()

    value(wave).backward()
    assert wave.grad is not None
    step = 1e-2 * wave.grad / wave.grad.norm()
    with torch.no_grad():
        difference = (value(wave + step) - value(wave - step)).item() / 2e-2
    assert wave.grad.norm().item() == pytest.approx(difference, rel=0.03)


def test_the_checkpoint_of_the_first_release(folder, tmp_path):
    """A pickle with the settings beside the weights, whose names begin with `model.`"""
    settings = json.loads((folder / "config.json").read_text())
    state = {f"model.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    content = {"state_dict": state, "model_cfg": settings, "target_transform": settings["target_transform"]}
    torch.save(content, tmp_path / "checkpoint.pt")
    named = AudioboxAesthetics(str(tmp_path), weights="checkpoint.pt")
    torch.testing.assert_close(named(samples(0.5)), AudioboxAesthetics(str(folder))(samples(0.5)))
    with pytest.raises(InputError, match=r"checkpoint\.pt"):
        AudioboxAesthetics(str(tmp_path))(samples(0.5))


def test_other_structures_are_refused(tmp_path):
    folder = save_audiobox(tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"use_weighted_layer_sum": False}))
    with pytest.raises(InputError, match="learnt sum"):
        AudioboxAesthetics(str(folder))(samples(0.5))
    (folder / "config.json").write_text(json.dumps(settings))
    state = load_file(folder / "model.safetensors")
    name = "wavlm_model.encoder.layers.1.fc1.weight"
    save_file({key: value for key, value in state.items() if key != name}, folder / "model.safetensors")
    with pytest.raises(InputError, match="intermediate_dense"):
        AudioboxAesthetics(str(folder))(samples(0.5))
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(InputError, match="complete checkpoint"):
        AudioboxAesthetics(str(folder))(samples(0.5))


def test_undecoded_samples(folder):
    with pytest.raises(ValueError, match="not decoded"):
        AudioboxAesthetics(str(folder))(Samples(("",), torch.zeros(1, 2), None))

"""MERT, EnCodec and VGGish: the same as the library's networks, or as the published front end, with gradients."""

import json
from typing import Any

import numpy as np
import pytest
import soxr
import torch
from safetensors.torch import load_file, save_file
from transformers import EncodecFeatureExtractor, EncodecModel, Wav2Vec2FeatureExtractor
from transformers.audio_utils import hertz_to_mel, mel_filter_bank

from dragontune.encoders.encodec import Encodec
from dragontune.encoders.mert import Mert
from dragontune.encoders.vggish import Vggish, log_mel
from dragontune.errors import InputError
from dragontune.media.audio import Audio
from dragontune.media.image import Images
from dragontune.testing import check_encoder
from tiny_encoders import mert_twin, save_encodec, save_mert, save_vggish

RATES = {"mert": 24000, "encodec": 24000, "encodec48": 48000, "vggish": 16000}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("encoders")
    return {
        "mert": save_mert(base / "mert"),
        "encodec": save_encodec(base / "encodec"),
        "encodec48": save_encodec(base / "encodec48", stereo=True),
        "vggish": save_vggish(base / "vggish" / "model.safetensors").parent,
    }


@pytest.fixture(scope="module")
def encoders(folders):
    kinds = {"mert": Mert, "encodec": Encodec, "encodec48": Encodec, "vggish": Vggish}
    return {name: kind(str(folders[name])) for name, kind in kinds.items()}


def noise(seconds: float, rate: int, channels: int = 1, count: int = 2) -> Audio:
    shape = (count, channels, round(seconds * rate))
    return Audio(0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(0)), rate)


@pytest.mark.parametrize("name", RATES)
def test_promises(encoders, name):
    check_encoder(encoders[name], noise(0.13, 44100, 2, 3))
    check_encoder(encoders[name], noise(1.1, 16000, 1, 3))


@pytest.mark.parametrize("name", RATES)
def test_any_rate_and_channel_count_is_converted(encoders, name):
    clips, rate = noise(0.4, 44100, 2), RATES[name]
    kept = clips.waveform if name == "encodec48" else clips.waveform.mean(1, keepdim=True)
    by_hand = np.stack([soxr.resample(clip.numpy().T, 44100, rate).T for clip in kept])
    expected = encoders[name].embed(Audio(torch.from_numpy(by_hand), rate)).frames
    torch.testing.assert_close(encoders[name].embed(clips).frames, expected, rtol=1e-3, atol=1e-4)
    mono = Audio(clips.waveform.mean(1, keepdim=True), 44100)
    twice = Audio(mono.waveform.repeat(1, 2, 1), 44100)
    torch.testing.assert_close(
        encoders[name].embed(mono).frames, encoders[name].embed(twice).frames, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("name", RATES)
def test_silence_and_next_to_nothing(encoders, name):
    for samples in (0, 1, 50, 4001):
        wave = torch.zeros(1, 1, samples, requires_grad=True)
        frames = encoders[name].embed(Audio(wave, 16000)).frames
        assert frames.shape[1] >= 1
        assert frames.isfinite().all()
        frames.sum().backward()
        assert wave.grad is None or wave.grad.isfinite().all()


@pytest.mark.parametrize("name", RATES)
def test_gradients_agree_with_differences(encoders, name):
    encoder, random = encoders[name], torch.Generator().manual_seed(3)
    wave = noise(0.12, RATES[name], 1, 1).waveform.requires_grad_()
    frames = encoder.embed(Audio(wave.detach(), RATES[name])).frames
    way = torch.randn(frames.shape, generator=random)

    def value(waveform):
        return (encoder.embed(Audio(waveform, RATES[name])).frames * way).double().sum()

    value(wave).backward()
    assert wave.grad is not None
    step = 1e-2 * wave.grad / wave.grad.norm()
    with torch.no_grad():
        difference = (value(wave + step) - value(wave - step)).item() / 2e-2
    assert wave.grad.norm().item() == pytest.approx(difference, rel=0.02)
    assert not any(weight.requires_grad for weight in encoder.network.parameters())


@pytest.mark.parametrize("normalise", [True, False])
def test_mert_is_hubert(tmp_path, normalise):
    folder, clips = save_mert(tmp_path, normalise=normalise), noise(0.3, 24000)
    extract = Wav2Vec2FeatureExtractor(sampling_rate=24000, do_normalize=normalise)
    inputs = extract(list(clips.waveform[:, 0].numpy()), sampling_rate=24000, return_tensors="pt").input_values
    with torch.no_grad():
        expected = mert_twin()(inputs, output_hidden_states=True)
    found = Mert(str(folder)).embed(clips).frames
    torch.testing.assert_close(found, expected.last_hidden_state, rtol=1e-4, atol=1e-5)
    for layer in (0, 1, 2):
        found = Mert(str(folder), layer=layer).embed(clips).frames
        torch.testing.assert_close(found, expected.hidden_states[layer], rtol=1e-4, atol=1e-5)
    found = Mert(str(folder), average=True).embed(clips).frames
    torch.testing.assert_close(found, expected.last_hidden_state.mean(1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_pickles_are_read_by_their_names_only(tmp_path, encoders):
    folder = save_mert(tmp_path)
    named = Mert(str(folder), weights="pytorch_model.bin")
    clips = noise(0.2, 24000)
    torch.testing.assert_close(named.embed(clips).frames, encoders["mert"].embed(clips).frames)
    assert named.digest == encoders["mert"].digest
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"safetensors, got only pytorch_model\.bin.* weights: pytorch_model\.bin"):
        Mert(str(folder)).embed(clips)


class Trap:
    def __reduce__(self):
        return (print, ("sprung",))


@pytest.mark.parametrize("content", [Trap(), {"a": Trap()}])
def test_pickles_with_code_are_refused(tmp_path, content, capsys):
    folder = save_mert(tmp_path)
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin"):
        Mert(str(folder), weights="pytorch_model.bin").embed(noise(0.2, 24000))
    assert "sprung" not in capsys.readouterr().out


@pytest.mark.parametrize("setting", ["deepnorm", "feature_extractor_cqt"])
def test_what_hubert_cannot_express_is_refused(tmp_path, setting):
    with pytest.raises(InputError, match=f"{setting} in"):
        Mert(str(save_mert(tmp_path, **{setting: True}))).embed(noise(0.2, 24000))


def test_layers_and_weights_that_are_not_there(tmp_path, folders):
    with pytest.raises(InputError, match="layer from 0 to 2"):
        Mert(str(folders["mert"]), layer=3).embed(noise(0.2, 24000))
    folder = save_mert(tmp_path)
    state = load_file(folder / "model.safetensors")
    state.pop("encoder.layers.1.attention.k_proj.weight")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"layers\.1\.attention\.k_proj"):
        Mert(str(folder)).embed(noise(0.2, 24000))


def test_layers_have_digests_of_their_own(folders, encoders):
    assert len({Mert(str(folders["mert"]), layer=k).digest for k in (0, 1)} | {encoders["mert"].digest}) == 3


@pytest.mark.parametrize("name", ["encodec", "encodec48"])
@pytest.mark.parametrize("seconds", [0.05, 0.117, 0.2])
def test_encodec_gives_what_the_library_quantises(encoders, folders, name, seconds):
    rate, channels = RATES[name], 2 if name == "encodec48" else 1
    clips, network = noise(seconds, rate, channels), EncodecModel.from_pretrained(folders[name]).eval()
    seen = []
    hook = network.encoder.register_forward_hook(lambda _, __, latents: seen.append(latents))
    with torch.no_grad():
        codes: Any = network.encode(clips.waveform, bandwidth=network.config.target_bandwidths[0])[0]
    hook.remove()
    found = encoders[name].embed(clips).frames
    torch.testing.assert_close(found, torch.cat(seen, 2).mT, rtol=1e-4, atol=1e-5)
    first = found[:, : codes.shape[3]].mT
    with torch.no_grad():
        again = network.quantizer.encode(first, network.config.target_bandwidths[0]).transpose(0, 1)
    assert torch.equal(again, codes[0])


def test_encodec_takes_what_its_extractor_gives(encoders, folders):
    clips = noise(0.2, 24000)
    extract = EncodecFeatureExtractor.from_pretrained(folders["encodec"])
    inputs = extract(list(clips.waveform[:, 0].numpy()), sampling_rate=24000, return_tensors="pt")
    torch.testing.assert_close(inputs["input_values"], clips.waveform)


def published_log_mel(wave: np.ndarray) -> np.ndarray:
    """AudioSet's front end in plain NumPy: frames, spectrum, bands, patches."""
    count = 1 + (len(wave) - 400) // 160
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    spectrum = np.stack([np.abs(np.fft.rfft(window * wave[160 * k : 160 * k + 400], 512)) for k in range(count)])
    edges = np.linspace(1127 * np.log(1 + 125 / 700), 1127 * np.log(1 + 7500 / 700), 66)
    bins = 1127 * np.log(1 + np.linspace(0, 8000, 257) / 700)
    bands = np.stack(
        [
            np.maximum(0, np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)))
            for low, middle, high in zip(edges[:-2], edges[1:-1], edges[2:], strict=True)
        ],
        1,
    )
    bands[0] = 0
    logs = np.log(spectrum @ bands + 0.01)
    return np.stack([logs[96 * k : 96 * k + 96] for k in range(count // 96)])


def test_vggish_hears_as_published():
    wave = noise(2.5, 16000, 1, 1).waveform[0, 0]
    expected = published_log_mel(wave.double().numpy())
    assert expected.shape == (2, 96, 64)
    np.testing.assert_allclose(log_mel(wave[None])[0].numpy(), expected, atol=2e-4)
    assert log_mel(torch.zeros(1, 15600)).shape == (1, 1, 96, 64)
    assert log_mel(torch.zeros(1, 15600 + 15359)).shape == (1, 1, 96, 64)
    assert log_mel(torch.zeros(1, 15600 + 15360)).shape == (1, 2, 96, 64)
    assert log_mel(torch.zeros(1, 15600)).allclose(torch.tensor(0.01).log())


def test_vggish_network_as_published(encoders, folders):
    """Written out layer by layer, channels last before the full layers as in TensorFlow."""
    state = load_file(folders["vggish"] / "model.safetensors")
    wave = noise(1.0, 16000, 1, 1)
    x = torch.from_numpy(published_log_mel(wave.waveform[0, 0].double().numpy())).float()[:, None]
    for layer in (0, 3, 6, 8, 11, 13):
        weight, bias = state[f"features.{layer}.weight"], state[f"features.{layer}.bias"]
        x = torch.nn.functional.conv2d(x, weight, bias, padding=1).relu()
        if layer not in (6, 11):
            x = torch.nn.functional.max_pool2d(x, 2)
    assert x.shape[2:] == (6, 4)
    x = torch.stack([x[:, :, row, column] for row in range(6) for column in range(4)], 1).flatten(1)
    for layer in (0, 2, 4):
        x = x @ state[f"embeddings.{layer}.weight"].mT + state[f"embeddings.{layer}.bias"]
        x = x.relu() if layer < 4 else x
    torch.testing.assert_close(encoders["vggish"].embed(wave).frames[0], x, rtol=1e-3, atol=1e-4)


def test_vggish_files(tmp_path, encoders, folders):
    pickle = Vggish(str(save_vggish(tmp_path / "v.pth")))
    file = Vggish(str(folders["vggish"] / "model.safetensors"))
    assert pickle.digest == file.digest == encoders["vggish"].digest
    with pytest.raises(InputError, match="nowhere"):
        Vggish(str(tmp_path / "nowhere")).embed(noise(1.0, 16000))
    (tmp_path / "torn.safetensors").write_bytes(b"not tensors")
    with pytest.raises(InputError, match="torn"):
        Vggish(str(tmp_path / "torn.safetensors")).embed(noise(1.0, 16000))
    save_file({"features.0.weight": torch.zeros(4, 1, 3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="weights of VGGish"):
        Vggish(str(tmp_path / "other.safetensors")).embed(noise(1.0, 16000))


def test_vggish_components(tmp_path, encoders, folders):
    random = torch.Generator().manual_seed(1)
    parts = {
        "pca_eigen_vectors": torch.randn(10, 10, generator=random),
        "pca_means": torch.randn(10, 1, generator=random),
    }
    save_file(parts, tmp_path / "pca.safetensors")
    with_components = Vggish(str(folders["vggish"]), pca=str(tmp_path / "pca.safetensors"))
    clips = noise(1.0, 16000)
    raw = encoders["vggish"].embed(clips).frames[:, 0]
    expected = (parts["pca_eigen_vectors"] @ (raw.mT - parts["pca_means"])).mT.clamp(-2, 2)
    found = with_components.embed(clips).frames[:, 0]
    torch.testing.assert_close(found, (expected + 2) * 255 / 4, rtol=1e-4, atol=1e-3)
    assert with_components.digest != encoders["vggish"].digest


def test_mel_scales_agree():
    assert hertz_to_mel(1000.0, "kaldi") == pytest.approx(1127 * np.log(1 + 1000 / 700))
    assert mel_filter_bank(257, 64, 125, 7500, 16000, None, "kaldi", True)[0].max() == 0


@pytest.mark.parametrize("name", RATES)
def test_media_must_be_audio(encoders, name):
    with pytest.raises(InputError, match=r"expected audio for the encoder .* got images"):
        encoders[name].embed(Images(torch.zeros(1, 3, 8, 8)))


def test_torn_settings(tmp_path):
    folder = save_encodec(tmp_path)
    (folder / "config.json").write_text(json.dumps({"model_type": "mimi"}))
    with pytest.raises(InputError, match="checkpoint of encodec, got one of mimi"):
        Encodec(str(folder)).embed(noise(0.1, 24000))
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json"):
        Encodec(str(folder)).embed(noise(0.1, 24000))

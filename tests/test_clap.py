"""CLAP checkpoints: the same as the library's own processor and network, with gradients."""

from typing import Any

import numpy as np
import pytest
import soxr
import torch
from transformers import AutoTokenizer, ClapModel

from dragontune.data import Samples
from dragontune.encoders.laion_clap import Clap
from dragontune.errors import InputError
from dragontune.media.audio import Audio
from dragontune.rewards.alignment import Alignment
from dragontune.testing import check_encoder, check_reward
from tiny_encoders import clap_sound, save_clap

RATE = 4000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_clap(tmp_path_factory.mktemp("clap"))


@pytest.fixture(scope="module")
def clap(folder):
    return Clap(str(folder))


def noise(seconds: float, rate: int = RATE, channels: int = 1, count: int = 2) -> Audio:
    shape = (count, channels, int(seconds * rate))
    return Audio(0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(0)), rate)


@pytest.mark.parametrize("seconds", [0.21, 0.5, 0.77, 1.0])
def test_the_library_hears_the_same(clap, folder, seconds):
    clips = noise(seconds)
    inputs = clap_sound()(list(clips.waveform[:, 0].numpy()), sampling_rate=RATE, return_tensors="pt")
    network: Any = ClapModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = network.get_audio_features(input_features=inputs["input_features"].float())
    found = clap.embed(clips)
    assert found.frames.shape == (2, 1, 8)
    torch.testing.assert_close(found.frames[:, 0], expected.pooler_output, rtol=1e-4, atol=1e-5)


def test_spectrograms_are_the_librarys(clap):
    clips = noise(1.0)
    inputs = clap_sound()(list(clips.waveform[:, 0].numpy()), sampling_rate=RATE, return_tensors="np")
    expected = np.stack(inputs["input_features"])[:, 0]
    np.testing.assert_allclose(clap.mel(clips.waveform[:, 0]).numpy(), expected, atol=2e-3)


@pytest.mark.parametrize(("seconds", "starts"), [(1.5, [0, 2000]), (2.4, [0, 2800, 5600]), (3.0, [0, 4000, 8000])])
def test_long_clips_have_a_frame_a_window(clap, seconds, starts):
    clips = noise(seconds)
    found = clap.embed(clips).frames
    assert found.shape == (2, len(starts), 8)
    for k, start in enumerate(starts):
        window = Audio(clips.waveform[..., start : start + RATE], RATE)
        torch.testing.assert_close(found[:, k], clap.embed(window).frames[:, 0], rtol=1e-4, atol=1e-5)


def test_texts_are_the_librarys(clap, folder):
    texts = ["a jig", "", "a long slow air for the flute and for whoever listens to it"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network: Any = ClapModel.from_pretrained(folder).eval()
    found = clap.embed_text(texts).frames
    for text, vector in zip(texts, found, strict=True):
        inputs = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
        with torch.no_grad():
            expected = network.get_text_features(inputs.input_ids, inputs.attention_mask).pooler_output
        torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-5)
    assert (found[0] - found[2]).abs().max() > 1e-5


def test_any_rate_and_channel_count_is_converted(clap):
    clips = noise(0.9, 44100, 2)
    by_hand = soxr.resample(clips.waveform.mean(1).numpy().T, 44100, RATE).T
    expected = clap.embed(Audio(torch.from_numpy(by_hand.copy())[:, None], RATE))
    torch.testing.assert_close(clap.embed(clips).frames, expected.frames, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clips", [noise(0.6, count=3), noise(1.7, 16000, 2, 3)], ids=["short", "long"])
def test_promises(clap, clips):
    check_encoder(clap, clips)
    check_reward(Alignment(clap), Samples(("a jig", "", "a reel"), torch.zeros(3, 2), clips))


def test_silence_and_next_to_nothing(clap):
    for samples in (1, 3, 400, RATE + 1):
        frames = clap.embed(Audio(torch.zeros(1, 1, samples), RATE)).frames
        assert frames.isfinite().all()
        torch.testing.assert_close(frames.norm(dim=2), torch.ones(frames.shape[:2]))
    assert clap.embed(Audio(torch.zeros(1, 1, 0), RATE)).frames.shape == (1, 1, 8)


def test_gradients_agree_with_differences(clap):
    clips = noise(1.3, count=1)
    wave = clips.waveform.clone().requires_grad_()
    way = torch.randn(8, generator=torch.Generator().manual_seed(1))

    def value(waveform):
        return (clap.embed(Audio(waveform, RATE)).frames @ way).sum()

    value(wave).backward()
    assert wave.grad is not None
    step = 1e-2 * wave.grad / wave.grad.norm()
    with torch.no_grad():
        difference = (value(wave + step) - value(wave - step)).item() / 2e-2
    assert wave.grad.norm().item() == pytest.approx(difference, rel=0.02)
    assert not any(weight.requires_grad for weight in clap.network.parameters())


def test_fused_checkpoints_are_refused(tmp_path):
    fused = Clap(str(save_clap(tmp_path, fusion=True)))
    with pytest.raises(InputError, match="without feature fusion"):
        fused.embed(noise(0.5))

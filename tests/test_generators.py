import json
import shutil

import pytest
import torch

from dragontune.data import Rows
from dragontune.errors import InputError
from dragontune.generators import hub
from dragontune.generators.adapters import Lora
from dragontune.generators.pretrained import load, load_codec
from dragontune.generators.tiny import TinyMusicPipeline
from dragontune.generators.tiny_music import TinyMusic
from dragontune.media.audio import Audio
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from tiny_models import save_tiny_music


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_music(tmp_path_factory.mktemp("models") / "music")


@pytest.fixture(scope="module")
def generator(folder):
    return load(str(folder), device="cpu")


def test_loading_freezes_everything_and_leaves_the_random_stream(folder):
    before = torch.get_rng_state()
    generator = load(str(folder), Lora(rank=2), device="cpu")
    assert torch.equal(before, torch.get_rng_state())
    assert generator.latent_shape == (4, 16)
    assert generator.sample_rate == 16000
    trained = {id(p) for p in generator.parameters()}
    assert isinstance(generator, TinyMusic)
    pipeline = generator.pipeline
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.transformer):
        assert not part.training
        assert {id(p) for p in part.parameters() if p.requires_grad} <= trained


def test_without_an_adapter_nothing_is_trained_and_the_reference_is_the_model(generator):
    assert list(generator.parameters()) == []
    noise, condition = torch.randn(1, 4, 16), generator.encode_prompts(["a reel"])
    t = torch.tensor([0.5])
    with torch.no_grad():
        plain = generator.denoise(noise, t, condition)
        with generator.reference(), generator.scaled(2.0):
            assert torch.equal(generator.denoise(noise, t, condition), plain)


def test_the_denoiser_has_the_preconditioning_of_edm(generator):
    """D(x; sigma) against Karras et al. 2022, table 1, written out."""
    schedule, condition = generator.schedule, generator.encode_prompts(["a jig", ""])
    noisy, t = torch.randn(2, 4, 16), torch.tensor([0.3, 0.9])
    sigma, data = schedule.sigma(t)[:, None, None], schedule.sigma_data
    with torch.no_grad():
        raw = generator.network(
            noisy / (sigma**2 + data**2).sqrt(), sigma.flatten().log() / 4, condition.text, condition.mask
        )
        expected = data**2 / (sigma**2 + data**2) * noisy + sigma * data / (sigma**2 + data**2).sqrt() * raw
        torch.testing.assert_close(generator.denoise(noisy, t, condition), expected)


def test_without_noise_the_input_is_the_estimate(generator):
    noisy = torch.randn(1, 4, 16)
    with torch.no_grad():
        assert torch.equal(generator.denoise(noisy, torch.zeros(1), generator.encode_prompts(["a"])), noisy)


def test_a_prompt_does_not_depend_on_its_neighbours(generator):
    prompts = ["a reel in G major for flute", "", "jig"]
    together = generator.encode_prompts(prompts)
    for i, prompt in enumerate(prompts):
        alone = generator.encode_prompts([prompt])
        assert torch.equal(alone.mask[0], together.mask[i])
        torch.testing.assert_close(alone.text[0], together.text[i])


def test_a_condition_of_another_model_is_refused(generator):
    with pytest.raises(TypeError, match="Condition"):
        generator.denoise(torch.randn(1, 4, 16), torch.ones(1), Rows())


def test_encode_fits_any_audio_to_the_model(generator):
    stereo = Audio(torch.randn(2, 2, 11025), 22050)
    assert generator.encode(stereo).shape == (2, 4, 16)
    assert generator.encode(Audio(torch.randn(1, 1, 100), 16000)).shape == (1, 4, 16)


def test_decode_passes_gradients(generator):
    latents = torch.randn(1, 4, 16, requires_grad=True)
    media = generator.decode(latents)
    assert media.waveform.shape == (1, 1, 4096)
    media.waveform.square().sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().sum() > 0


def test_a_tuned_model_is_saved_and_loaded(folder, tmp_path):
    tuned, again = load(str(folder), Lora(rank=2), device="cpu"), load(str(folder), device="cpu")
    with torch.no_grad():
        for weight in tuned.parameters():
            weight.add_(0.1)
    tuned.save_adapter(str(tmp_path))
    again.load_adapter(str(tmp_path))
    sampler, prompts = Sampler(steps=2), ["a reel", "a jig"]
    a, b = (sampler.sample(g, prompts, Key(0)).latents for g in (tuned, again))
    base = sampler.sample(load(str(folder), device="cpu"), prompts, Key(0)).latents
    assert torch.equal(a, b)
    assert not torch.equal(a, base)
    with tuned.reference():
        assert torch.equal(sampler.sample(tuned, prompts, Key(0)).latents, base)


def test_the_codec_alone_is_the_generators(folder, generator):
    clip = Audio(torch.randn(1, 1, 4096, generator=torch.Generator().manual_seed(0)), 16000)
    with torch.no_grad():
        assert torch.equal(load_codec(str(folder), "cpu").encode(clip), generator.encode(clip))


def test_weights_stored_in_half_are_used_in_single(folder, tmp_path):
    pipeline = TinyMusicPipeline.from_pretrained(folder)
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.transformer):
        part.half()
    pipeline.save_pretrained(tmp_path)
    single, half = load(str(folder), device="cpu"), load(str(tmp_path), device="cpu")
    assert isinstance(half, TinyMusic)
    for part in (half.pipeline.vae, half.pipeline.text_encoder, half.pipeline.transformer):
        assert {value.dtype for value in part.state_dict().values()} == {torch.float32}
    a, b = (Sampler(steps=2).sample(g, ["a reel"], Key(0)).media for g in (single, half))
    assert isinstance(a, Audio)
    assert isinstance(b, Audio)
    torch.testing.assert_close(a.waveform, b.waveform, rtol=0.1, atol=0.05)


def unknown(folder):
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "OtherPipeline"}))


def torn(folder):
    next(folder.glob("transformer/*.safetensors")).write_bytes(b"torn")


def pickled(folder):
    file = next(folder.glob("vae/*.safetensors"))
    torch.save({}, file.with_suffix(".bin"))
    file.unlink()


def no_index(folder):
    (folder / "model_index.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [(unknown, "OtherPipeline"), (torn, "transformer|torn|header"), (pickled, "vae"), (no_index, "index")],
)
def test_bad_models_are_refused(folder, tmp_path, spoil, says):
    bad = shutil.copytree(folder, tmp_path / "bad")
    spoil(bad)
    with pytest.raises(InputError, match=says):
        load(str(bad), device="cpu")


def test_names_that_lead_nowhere_are_refused(tmp_path):
    for name in (str(tmp_path / "nowhere"), "no where", "../x/y/z"):
        with pytest.raises(InputError, match="hub name"):
            load(name)


def test_the_hub_is_asked_only_for_hub_names(monkeypatch, folder):
    asked = []

    def download(name, allow_patterns, ignore_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert load("owner/model", device="cpu").name == "owner/model"
    load(str(folder), device="cpu")
    assert [name for name, _ in asked] == ["owner/model"]
    assert not any(pattern.endswith((".bin", ".pt", ".ckpt", ".py")) for pattern in asked[0][1])

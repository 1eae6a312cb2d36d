"""Every family, in tiny real classes: tuned, steered, and its adapter taken over by plain diffusers and peft."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from dragontune.algorithms.draft import Draft
from dragontune.algorithms.dragon import Dragon
from dragontune.data import Media, Samples
from dragontune.encoders.latents import Latents
from dragontune.errors import InputError
from dragontune.evaluation.generations import Steered
from dragontune.generators import pretrained
from dragontune.generators.adapters import CONFIG_FILE, WEIGHTS_FILE, Lora
from dragontune.generators.checkpoint import Plan, Size
from dragontune.generators.lora_files import FILE, loads_lora
from dragontune.generators.pipeline import PipelineGenerator
from dragontune.generators.pretrained import load
from dragontune.media.audio import Audio
from dragontune.media.image import Images
from dragontune.media.video import Video
from dragontune.rewards.base import DifferentiableReward, InstanceReward
from dragontune.rewards.diversity import Vendi
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.steering.svdd import Svdd
from dragontune.training.loop import Loop
from tiny_ace_step import save_ace_step
from tiny_audioldm2 import save_audioldm2
from tiny_flux import save_flux
from tiny_longcat_audio import save_longcat_audio
from tiny_ltx import save_ltx
from tiny_models import save_stable_audio, save_tiny_music
from tiny_musicldm import save_musicldm
from tiny_stable_audio_3 import save_stable_audio_3
from tiny_stable_diffusion import save_stable_diffusion
from tiny_stable_diffusion_3 import save_stable_diffusion_3
from tiny_stable_diffusion_xl import save_stable_diffusion_xl
from tiny_wan import save_wan

MAKERS: dict[str, Callable[[Path], Path]] = {
    "TinyMusicPipeline": save_tiny_music,
    "StableAudioPipeline": save_stable_audio,
    "StableAudio3Pipeline": save_stable_audio_3,
    "AceStepPipeline": save_ace_step,
    "LongCatAudioDiTPipeline": save_longcat_audio,
    "AudioLDM2Pipeline": save_audioldm2,
    "MusicLDMPipeline": save_musicldm,
    "StableDiffusionPipeline": save_stable_diffusion,
    "StableDiffusionXLPipeline": save_stable_diffusion_xl,
    "StableDiffusion3Pipeline": save_stable_diffusion_3,
    "FluxPipeline": save_flux,
    "LTXPipeline": save_ltx,
    "WanPipeline": save_wan,
}
SIZES = {"FluxPipeline": Size(height=32, width=32)}
"""Of those whose folder does not say how large pictures are."""
PROMPTS = ["a reel in G major", "a jig for flute", "a violin", "organ in G"]
SAMPLER = Sampler(steps=2, guidance=1.5)
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch and diffusers, about their own ways


@dataclass(frozen=True)
class Power(InstanceReward, DifferentiableReward):
    """Mean square of what was decoded."""

    def encode(self, samples: Samples) -> torch.Tensor:
        return values(samples.media).flatten(1).square().mean(1)

    def score(self, features: torch.Tensor) -> torch.Tensor:
        return features


def values(media: Media | None) -> torch.Tensor:
    match media:
        case Audio():
            return media.waveform
        case Images():
            return media.pixels
        case Video():
            return media.frames
        case _:
            raise TypeError(type(media).__name__)


@pytest.fixture(scope="module", params=MAKERS)
def folder(request, tmp_path_factory) -> Path:
    return MAKERS[request.param](tmp_path_factory.mktemp("models") / request.param)


def opened(folder: Path, lora: Lora | None = None) -> PipelineGenerator:
    generator = load(str(folder), lora, device="cpu", size=SIZES.get(folder.name))
    assert isinstance(generator, PipelineGenerator)
    return generator


def moved(folder: Path) -> PipelineGenerator:
    """With an adapter that changes something."""
    tuned = opened(folder, Lora(rank=2, alpha=3.0))
    with torch.no_grad():
        for i, weight in enumerate(tuned.parameters()):
            weight.add_(0.2 * Key(i).normal([0], weight.shape)[0])
    return tuned


def estimate(generator: PipelineGenerator) -> torch.Tensor:
    noisy = Key(1).normal(range(2), generator.latent_shape)
    with torch.no_grad():
        return generator.denoise(noisy, torch.full((2,), 0.6), generator.encode_prompts(PROMPTS[:2]))


def test_there_is_a_maker_of_every_family():
    assert {*MAKERS, "LettersPipeline", "TokenMusicPipeline"} == set(pretrained.FAMILIES)


def test_two_rounds_of_dragon_with_a_reward_of_a_set(folder):
    generator = opened(folder, Lora(rank=2))
    before = [weight.detach().clone() for weight in generator.parameters()]
    algorithm = Dragon(generator, Vendi(Latents(str(folder))), sampler=SAMPLER, beta=50.0, micro_batch=2)
    loop = Loop(rounds=2, pairs=2, updates=1, batch=2, micro_batch=1, lr=1e-3)
    first, second = loop.run(algorithm, PROMPTS)
    assert first["metrics"]["grad_norm"] > 0
    assert second["metrics"]["generations"] == 4
    assert any(not torch.equal(a, b) for a, b in zip(before, generator.parameters(), strict=True))
    with generator.reference():
        torch.testing.assert_close(estimate(generator), estimate(opened(folder)), rtol=0, atol=0)


def test_a_round_of_draft_through_the_decoder(folder):
    generator = opened(folder, Lora(rank=2))
    algorithm = Draft(generator, Power(), sampler=SAMPLER, last=1, micro_batch=1)
    (record,) = Loop(rounds=1, pairs=2, updates=1, batch=2, micro_batch=1, lr=1e-3).run(algorithm, PROMPTS)
    assert record["metrics"]["grad_norm"] > 0
    assert record["metrics"]["gradient_calls"] == 4


def test_plain_peft_takes_the_adapter_over(folder, tmp_path):
    tuned = moved(folder)
    tuned.save_adapter(str(tmp_path))
    plain = opened(folder)
    assert not torch.allclose(estimate(plain), estimate(tuned), atol=1e-4)
    PeftModel.from_pretrained(plain.network, str(tmp_path))  # pyright: ignore[reportArgumentType] - of any module
    torch.testing.assert_close(estimate(plain), estimate(tuned), rtol=1e-5, atol=1e-5)


def test_plain_diffusers_takes_the_adapter_over(folder, tmp_path):
    tuned = moved(folder)
    tuned.save_adapter(str(tmp_path))
    plain = opened(folder)
    if not loads_lora(type(plain.pipeline)):
        assert not (tmp_path / FILE).exists()
        return
    plain.pipeline.load_lora_weights(str(tmp_path))
    torch.testing.assert_close(estimate(plain), estimate(tuned), rtol=1e-5, atol=1e-5)


def test_a_file_of_diffusers_is_a_start(folder, tmp_path):
    """As `save_lora_weights` or the pipeline's own training scripts write it, without peft's configuration."""
    tuned = moved(folder)
    tuned.save_adapter(str(tmp_path))
    if not loads_lora(type(tuned.pipeline)):
        return
    (tmp_path / CONFIG_FILE).unlink()
    (tmp_path / WEIGHTS_FILE).unlink()
    for source in (tmp_path, tmp_path / FILE):
        started = opened(folder)
        started.load_adapter(str(source))
        torch.testing.assert_close(estimate(started), estimate(tuned), rtol=1e-5, atol=1e-5)
        assert all(weight.requires_grad for weight in started.parameters())


def test_an_adapter_of_another_architecture_is_refused(folder, tmp_path):
    other = "StableAudioPipeline" if "StableAudio" not in folder.name else "WanPipeline"
    moved(MAKERS[other](tmp_path / other)).save_adapter(str(tmp_path / "adapter"))
    before = opened(folder)
    with pytest.raises(InputError, match="expected an adapter for this model"):
        before.load_adapter(str(tmp_path / "adapter"))
    torch.testing.assert_close(estimate(before), estimate(opened(folder)), rtol=0, atol=0)


@pytest.mark.parametrize("offload", [False, True])
def test_no_prompts_are_no_rows(folder, offload):
    generator = load(str(folder), device="cpu", size=SIZES.get(folder.name), plan=Plan(offload=offload))
    for nothing in (generator.encode_prompts([]), *generator.conditions([])):
        assert len(nothing) == 0
        some = generator.encode_prompts(PROMPTS[:2])
        joined = type(some).join([some, nothing])
        assert len(joined) == 2
        torch.testing.assert_close(generator.prompt_vectors(joined), generator.prompt_vectors(some))


def test_svdd_steers(folder):
    generator, process = opened(folder), Sampler(steps=3, order=1, eta=1.0)
    steered = Steered(Svdd(Power(), candidates=4), process)
    plain = process.sample(generator, PROMPTS[:2], Key(0))
    made = process.sample(generator, PROMPTS[:2], Key(0), steer=steered.steering)
    assert made.latents.isfinite().all()
    assert not torch.equal(made.latents, plain.latents)
    reward = Power()
    assert reward(made).mean() >= reward(plain).mean()


def test_the_autoencoder_alone_is_the_models(folder):
    generator, codec = opened(folder), pretrained.load_codec(str(folder), "cpu")
    with torch.no_grad():
        media = generator.decode(0.5 * Key(0).normal(range(1), generator.latent_shape))
        torch.testing.assert_close(codec.encode(codec.fit(media, generator.latent_shape)), generator.encode(media))
    assert codec.latent_channels == generator.latent_shape[0]

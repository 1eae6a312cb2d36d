"""Stable Audio's Generator against diffusers' own pipeline and scheduler, on tiny weights of the real classes."""

import json
import shutil

import pytest
import torch
from diffusers.pipelines.stable_audio.pipeline_stable_audio import StableAudioPipeline
from diffusers.schedulers.scheduling_cosine_dpmsolver_multistep import CosineDPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler

from dragontune.encoders.latents import Latents
from dragontune.errors import InputError
from dragontune.generators.adapters import Lora
from dragontune.generators.pretrained import load
from dragontune.generators.stable_audio import ExponentialCosine
from dragontune.media.audio import Audio
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from tiny_models import save_stable_audio

pytestmark = pytest.mark.filterwarnings("ignore:Should have")  # torchsde, about its rounding

PROMPTS = ["a reel in G major", "a jig for flute"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_stable_audio(tmp_path_factory.mktemp("models") / "stable-audio")


@pytest.fixture(scope="module")
def generator(folder):
    return load(str(folder), device="cpu")


@pytest.fixture(scope="module")
def pipeline(folder):
    return StableAudioPipeline.from_pretrained(folder)


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(seed))


def test_the_schedule_is_diffusers():
    scheduler = CosineDPMSolverMultistepScheduler()
    scheduler.set_timesteps(20)
    times = ExponentialCosine().times(20)
    torch.testing.assert_close(times[:-1].float(), scheduler.timesteps)
    ratio = ExponentialCosine().sigma(times) / ExponentialCosine().alpha(times)
    torch.testing.assert_close(ratio.float(), scheduler.sigmas, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("step", [0, 4, 9])
def test_clean_estimates_are_the_pipelines(generator, pipeline, step, guidance):
    """The pipeline runs its own loop; its scheduler is watched at one step and its clean estimate compared."""
    seen = {}
    scheduler = pipeline.scheduler

    class Watched(type(scheduler)):
        def precondition_outputs(self, sample, model_output, sigma):
            clean = super().precondition_outputs(sample, model_output, sigma)
            seen[self.step_index] = sample, clean
            return clean

    pipeline.scheduler = Watched.from_config(scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    start = noise()
    pipeline(
        list(PROMPTS),
        num_inference_steps=10,
        guidance_scale=guidance,
        latents=start,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    pipeline.scheduler = scheduler
    sample, theirs = seen[step]
    time = generator.schedule.times(10)[step].float()
    t = time.expand(2)
    noisy = sample * generator.schedule.alpha(time)
    if step == 0:
        torch.testing.assert_close(noisy, start, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        ours = generator.denoise(noisy, t, generator.encode_prompts(PROMPTS))
        free = generator.denoise(noisy, t, generator.encode_prompts(["", ""]))
    torch.testing.assert_close(free + guidance * (ours - free), theirs, rtol=1e-3, atol=1e-3)


class Deterministic(EDMDPMSolverMultistepScheduler):
    """Of the pipeline's own scheduler all but its noise: the same solver, times and scaling, as an ODE."""

    def precondition_noise(self, sigma):
        return CosineDPMSolverMultistepScheduler.precondition_noise(self, sigma)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize(("order", "steps"), [(1, 2), (1, 7), (2, 2), (2, 7), (2, 30)])
def test_sampling_is_the_pipelines(folder, generator, order, steps, guidance):
    """The pipeline's own solver draws noise at every step; without it the same walk is ours, too."""
    pipeline = StableAudioPipeline.from_pretrained(folder)
    config = {key: value for key, value in pipeline.scheduler.config.items() if not key.startswith("_")}
    pipeline.scheduler = Deterministic(**config | {"algorithm_type": "dpmsolver++", "solver_order": order})
    pipeline.set_progress_bar_config(disable=True)
    sampler = Sampler(steps=steps, guidance=guidance, order=order)
    start = sampler.noise(generator, Key(0), torch.arange(2))
    expected = pipeline(
        list(PROMPTS),
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=start,
        output_type="latent",
        return_dict=False,
    )[0]
    ours = sampler.sample(generator, PROMPTS, Key(0), decode=False).latents
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_sampling_decodes_to_the_models_seconds(generator):
    samples = Sampler(steps=3, guidance=2.0).sample(generator, PROMPTS, Key(0))
    assert samples.latents.shape == (2, 4, 16)
    assert isinstance(samples.media, Audio)
    assert samples.media.waveform.shape == (2, 2, 2048)
    assert samples.media.sample_rate == 800
    assert samples.latents.isfinite().all()


def test_training_times_stay_where_the_sampler_goes():
    schedule = ExponentialCosine()
    assert schedule.training_times(torch.tensor([0.0, 1.0])).tolist() == pytest.approx(
        [0.0, schedule.times(2)[0].item()]
    )


def test_encode_and_decode_are_the_autoencoders(folder, generator, pipeline):
    clip = Audio(torch.randn(1, 2, 2048, generator=torch.Generator().manual_seed(0)), 800)
    with torch.no_grad():
        latents = generator.encode(clip)
        torch.testing.assert_close(latents, pipeline.vae.encode(clip.waveform).latent_dist.mean)
        torch.testing.assert_close(generator.decode(latents).waveform, pipeline.vae.decode(latents).sample)
        assert generator.encode(Audio(clip.waveform[:, :1, :500], 800)).shape == (1, 4, 16)
    assert Latents(str(folder)).dim == 4


def test_times_are_not_rounded_in_bfloat16(folder, generator):
    """The first lie close together: of 20 steps bfloat16 takes the first eight for five."""
    half, heard = load(str(folder), device="cpu", precision="bf16"), []
    half.network.get_submodule("time_proj").register_forward_hook(
        lambda _, inputs, waves: heard.append((*inputs, waves))
    )
    t = half.schedule.times(20)[:8].float()
    latents, condition = noise()[:1].expand(8, 4, 16), generator.encode_prompts(PROMPTS * 4)
    with torch.no_grad():
        near, exact = half.denoise(latents, t, condition), generator.denoise(latents, t, condition)
    ((times, waves),) = heard
    assert torch.equal(times, t)
    torch.testing.assert_close(waves, generator.network.time_proj(t), atol=0.05, rtol=0)  # weights are rounded
    assert len(waves.unique(dim=0)) == 8
    assert waves.dtype == torch.float32
    assert len(t.bfloat16().unique()) == 5
    assert half.network.get_submodule("proj_in").weight.dtype == torch.bfloat16
    assert (near - exact).norm() < 0.05 * exact.norm()


def test_an_adapter_goes_on_every_linear_layer_and_off_again(folder):
    tuned, base = load(str(folder), Lora(rank=2), device="cpu"), load(str(folder), device="cpu")
    with torch.no_grad():
        for weight in tuned.parameters():
            weight.add_(0.1)
    t, condition = torch.full((2,), 0.5), base.encode_prompts(PROMPTS)
    with torch.no_grad():
        expected = base.denoise(noise(), t, condition)
        assert not torch.allclose(tuned.denoise(noise(), t, condition), expected)
        with tuned.reference():
            assert torch.equal(tuned.denoise(noise(), t, condition), expected)


def test_another_parametrisation_is_refused(folder, tmp_path):
    bad = shutil.copytree(folder, tmp_path / "bad")
    file = bad / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "epsilon"}))
    with pytest.raises(InputError, match="v_prediction"):
        load(str(bad), device="cpu")

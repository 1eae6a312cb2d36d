"""FLUX's Generator against diffusers' own pipeline and scheduler, on tiny weights of the real classes."""

import math

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from dragontune.encoders.latents import Latents
from dragontune.errors import InputError
from dragontune.generators.adapters import Lora
from dragontune.generators.checkpoint import Plan, Size
from dragontune.media.image import Images
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.testing import check_generator
from flow_families import (
    PROMPTS,
    check_bfloat16,
    check_gradients,
    check_no_waiting,
    check_offload,
    check_prompts,
    check_scheduler,
    noise_of,
    opened,
)
from tiny_flux import SIZE, save_flux

pytestmark = [
    pytest.mark.filterwarnings("ignore:Mismatch dtype"),  # torch, about bfloat16 in a slower way
    pytest.mark.filterwarnings("ignore:Dynamo does not know"),  # about the checks of types in tests
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_flux(tmp_path_factory.mktemp("models") / "flux")


@pytest.fixture(scope="module")
def generator(folder):
    return opened(folder, SIZE)


def theirs(folder, latents, steps, guidance, images=False, **more):
    """The pipeline run by itself, its tokens laid out as latents; or its images, which it only clamps."""
    pipeline = FluxPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    found = pipeline(
        list(PROMPTS),
        negative_prompt=["", ""],
        true_cfg_scale=guidance,
        height=SIZE.height,
        width=SIZE.width,
        num_inference_steps=steps,
        latents=pipeline._pack_latents(latents, 2, 4, 8, 12),
        output_type="np" if images else "latent",
        return_dict=False,
        **more,
    )[0]
    if images:
        return torch.from_numpy(found).permute(0, 3, 1, 2)
    return pipeline._unpack_latents(found, SIZE.height, SIZE.width, 2)


def asked(network, generator, noise, t, condition, dtype=torch.float32):
    """What diffusers' network says if it is asked as the pipeline does."""
    packed, (texts, images) = pixel_unshuffle(noise, 2), generator.places
    flow = network(
        packed.flatten(2).transpose(1, 2).to(dtype),
        encoder_hidden_states=condition.tokens.to(dtype),
        pooled_projections=condition.pooled.to(dtype),
        timestep=t.to(dtype),
        img_ids=images,
        txt_ids=texts,
        guidance=torch.full_like(t, 3.5) if network.config["guidance_embeds"] else None,
        return_dict=False,
    )[0]
    return pixel_shuffle(flow.transpose(1, 2).unflatten(2, packed.shape[2:]), 2).float()


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("steps", [1, 4, 9])
def test_sampling_is_the_pipelines(folder, generator, steps, guidance):
    sampler = Sampler(steps=steps, guidance=guidance, order=1)
    start = sampler.start(generator, PROMPTS, Key(0), range(2)).latents
    ours = sampler.sample(generator, PROMPTS, Key(0))
    assert (ours.latents - start).abs().max() > 0.5
    torch.testing.assert_close(ours.latents, theirs(folder, start, steps, guidance), atol=1e-4, rtol=1e-4)
    assert isinstance(ours.media, Images)
    expected = theirs(folder, start, steps, guidance, images=True)
    torch.testing.assert_close(ours.media.pixels, expected, atol=1e-4, rtol=1e-4)


def test_the_distilled_guidance_is_the_pipelines_own(folder, generator):
    sampler = Sampler(steps=4, order=1)
    start = sampler.start(generator, PROMPTS, Key(0), range(2)).latents
    ours = sampler.sample(generator, PROMPTS, Key(0), decode=False).latents
    torch.testing.assert_close(ours, theirs(folder, start, 4, 1.0, guidance_scale=3.5), atol=1e-4, rtol=1e-4)
    assert (ours - theirs(folder, start, 4, 1.0, guidance_scale=1.5)).abs().max() > 0.01


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_schnell_is_told_no_guidance_and_has_no_shift(tmp_path, guidance):
    folder = save_flux(tmp_path / "flux", scheduler=FlowMatchEulerDiscreteScheduler(), distilled=False)
    generator, sampler = opened(folder, SIZE), Sampler(steps=4, guidance=guidance, order=1)
    assert generator.schedule.times(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    start = sampler.start(generator, PROMPTS, Key(1), range(2)).latents
    ours = sampler.sample(generator, PROMPTS, Key(1), decode=False).latents
    torch.testing.assert_close(ours, theirs(folder, start, 4, guidance), atol=1e-4, rtol=1e-4)


def test_places_are_the_pipelines(generator):
    texts, images = generator.places
    expected = FluxPipeline._prepare_latent_image_ids(1, 4, 6, torch.device("cpu"), torch.float32)
    assert torch.equal(images, expected)
    assert texts.shape == (512, 3)
    assert not texts.any()
    assert generator.places is generator.places


def test_encode_and_decode(folder, generator):
    with torch.no_grad():
        latents = generator.encode(Images(torch.rand(2, 3, 16, 24)))
        assert latents.shape == (2, *generator.latent_shape) == (2, 4, 8, 12)
        assert generator.decode(latents).pixels.shape == (2, 3, 16, 24)
        assert generator.encode(Images(torch.rand(1, 3, 40, 20))).shape == (1, 4, 8, 12)
    assert Latents(str(folder)).dim == 4


def test_contract(folder):
    check_generator(opened(folder, SIZE, Lora(rank=2)), PROMPTS)


def test_prompts(generator):
    check_prompts(generator)


@pytest.mark.parametrize("distilled", [True, False])
def test_times_and_guidance_are_exact_in_bfloat16(tmp_path, distilled):
    """Near single precision, where diffusers' own network, which rounds them, is far off."""
    folder = save_flux(tmp_path / "flux", distilled=distilled)
    check_bfloat16(folder, SIZE, tolerance=0.05)
    full, half = opened(folder, SIZE), opened(folder, SIZE, precision="bf16")
    rough = FluxPipeline.from_pretrained(folder).transformer.bfloat16()
    noise, condition, farthest = noise_of(full), full.encode_prompts(PROMPTS), 0.0
    for time in (0.3, 0.7, 0.991):
        t = torch.full((2,), time)
        with torch.no_grad(), half.autocast():
            near, later = half.predict(noise, t, condition), half.predict(noise, t - 0.0009, condition)
        with torch.no_grad():
            flow = full.predict(noise, t, condition)
            theirs = asked(rough, full, noise, t, condition, torch.bfloat16)
        assert (near - flow).norm() < 0.03 * flow.norm()
        assert (later - near).norm() > 0.05 * flow.norm()
        farthest = max(farthest, ((theirs - flow).norm() / flow.norm()).item())
    assert farthest > 0.09


@pytest.mark.parametrize("distilled", [True, False])
def test_predictions_are_the_networks_to_the_bit(tmp_path, distilled):
    """In single precision; and the network may be asked in diffusers' way."""
    folder = save_flux(tmp_path / "flux", distilled=distilled)
    generator, plain = opened(folder, SIZE), FluxPipeline.from_pretrained(folder).transformer
    noise, t, condition = noise_of(generator), torch.tensor([0.3, 0.991]), generator.encode_prompts(PROMPTS)
    with torch.no_grad():
        flow = generator.predict(noise, t, condition)
        for network in (plain, generator.network):
            assert torch.equal(asked(network, generator, noise, t, condition), flow)


def test_compiled_it_hears_times_as_well(folder):
    generator = opened(folder, SIZE)
    noise, t, condition = noise_of(generator), torch.tensor([0.3, 0.991]), generator.encode_prompts(PROMPTS)
    with torch.no_grad():
        plain = generator.predict(noise, t, condition)
        generator.network.compile(backend="eager", dynamic=False)
        torch.testing.assert_close(generator.predict(noise, t, condition), plain)
        assert (generator.predict(noise, t - 0.1, condition) - plain).abs().max() > 0.1


def test_a_step_does_not_wait(generator):
    check_no_waiting(generator)


def test_gradients_with_and_without_checkpointing(folder):
    check_gradients(folder, SIZE)


def test_offload_changes_nothing(folder):
    check_offload(folder, SIZE)


def test_sizes(tmp_path):
    folder = save_flux(tmp_path / "flux", scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    generator = opened(folder)
    assert generator.latent_shape == (4, 128, 128)
    assert generator.schedule.shift == pytest.approx(math.exp(1.15))
    generator = opened(folder, Size(height=8), plan=Plan(tiling=True))
    assert generator.latent_shape == (4, 4, 128)
    assert generator.codec.network.use_tiling


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (Size(height=18, width=16), "in steps of 4 pixels, got 18 and 16"),
        (Size(frames=3), "only height, width in size for a model of images, got frames"),
    ],
)
def test_sizes_that_cannot_be(folder, size, message):
    with pytest.raises(InputError, match=message):
        opened(folder, size)


@pytest.mark.parametrize("wrong", [{"_class_name": "DDIMScheduler"}, {"stochastic_sampling": True}])
def test_another_scheduler_is_refused(folder, tmp_path, wrong):
    check_scheduler(folder, tmp_path, wrong)


def test_networks_of_other_latents_are_refused(tmp_path):
    folder = save_flux(tmp_path / "flux")
    AutoencoderKL(latent_channels=8).save_pretrained(folder / "vae")
    with pytest.raises(InputError, match="32 channels, packed from the latents' 8, got 16 to None"):
        opened(folder, SIZE)

"""What every family of models must do, whatever its pipeline."""

import torch

from dragontune.generators.adapters import Lora
from dragontune.generators.checkpoint import Plan
from dragontune.generators.codec import audio_of
from dragontune.generators.padded_text import PaddedText
from dragontune.generators.pretrained import load
from dragontune.media.audio import Audio
from dragontune.sampling import Sampler
from dragontune.schedule import expand
from dragontune.seeding import Key
from dragontune.testing import check_generator


def waveform(samples):
    """Of samples that are audio."""
    assert isinstance(samples.media, Audio)
    return samples.media.waveform


def noise_and_times(generator, count):
    noise = Key(5).normal(range(count), generator.latent_shape)
    return noise, torch.linspace(0.3, 0.95, count)


def check_rows(generator, prompts):
    """A prompt means the same whatever its neighbours; prompts and times matter."""
    noise, t = noise_and_times(generator, len(prompts))
    with torch.no_grad():
        together = generator.denoise(noise, t, generator.encode_prompts(prompts))
        for i, prompt in enumerate(prompts):
            alone = generator.denoise(noise[[i]], t[[i]], generator.encode_prompts([prompt]))
            torch.testing.assert_close(together[[i]], alone, atol=2e-5, rtol=1e-4)
        others = generator.denoise(noise, t, generator.encode_prompts([*prompts[1:], prompts[0]]))
        assert ((together - others).abs().flatten(1).amax(1) > 1e-3).all(), "a prompt changes nothing"
        condition = generator.encode_prompts(prompts)
        if isinstance(condition, PaddedText):
            more = PaddedText.of([condition.tokens.new_ones(300, condition.tokens.shape[2])])
            longer = PaddedText.join([condition, more])[torch.arange(len(prompts))]
            torch.testing.assert_close(generator.denoise(noise, t, longer), together, atol=2e-5, rtol=1e-4)
        flow, later = ((noise - generator.denoise(noise, time, condition)) / expand(time, noise) for time in (t, t / 2))
        assert ((flow - later).abs().flatten(1).amax(1) > 1e-3).all(), "the time changes nothing"
    assert generator.prompt_vectors(generator.encode_prompts(prompts)).isfinite().all()


def check_plans(folder, prompts, size):
    """bfloat16 is near single precision; checkpointing keeps gradients, offloading latents; the house's checks hold."""
    plain = load(str(folder), Lora(rank=2), device="cpu", size=size)
    check_generator(plain, (*prompts, ""))
    sampler = Sampler(steps=3, guidance=2.0, order=1)
    expected = sampler.sample(plain, prompts, Key(0)).latents
    away = load(str(folder), device="cpu", size=size, plan=Plan(offload=True))
    for _ in range(2):
        torch.testing.assert_close(sampler.sample(away, prompts, Key(0)).latents, expected, atol=1e-5, rtol=1e-5)
    tiles = load(str(folder), device="cpu", size=size, plan=Plan(tiling=True))
    with torch.no_grad():
        whole, parts = (audio_of(generator.decode(expected)).waveform for generator in (plain, tiles))
        torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)
    rough = load(str(folder), device="cpu", size=size, precision="bf16")
    low = sampler.sample(rough, prompts, Key(0))
    assert low.latents.dtype == waveform(low).dtype == torch.float32
    assert (low.latents - expected).norm() < 0.1 * expected.norm()
    again = load(str(folder), Lora(rank=2), device="cpu", size=size, plan=Plan(checkpointing=True))
    both = [_gradients(generator, prompts) for generator in (plain, again)]
    assert any(gradient.abs().sum() > 0 for gradient in both[0])
    for kept, computed in zip(*both, strict=True):
        torch.testing.assert_close(computed, kept)


def _gradients(generator, prompts):
    """Of the energy of what one differentiable step and the decoder make, by the adapter's weights."""
    weights = list(generator.parameters())
    kept = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for i, weight in enumerate(weights):
            weight.copy_(0.1 * Key(i).normal([0], weight.shape)[0])
    samples = Sampler(steps=2, guidance=2.0, order=1).sample(generator, prompts, Key(0), differentiate_last=1)
    gradients = torch.autograd.grad(waveform(samples).square().mean(), weights, allow_unused=True)
    with torch.no_grad():
        for weight, value in zip(weights, kept, strict=True):
            weight.copy_(value)
    return [torch.zeros(()) if gradient is None else gradient for gradient in gradients]

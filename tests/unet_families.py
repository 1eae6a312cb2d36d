"""What the tests of families with U-Nets in discrete time share."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from dragontune.generators.adapters import Lora
from dragontune.generators.checkpoint import Plan
from dragontune.generators.pipeline import PipelineGenerator
from dragontune.generators.pretrained import load
from dragontune.sampling import Sampler
from dragontune.seeding import Key

PROMPTS = ["a reel in G major", "a jig for flute"]


def start(generator, seed=0):
    """The noise of the sampler's first two items."""
    sampler = Sampler(steps=2, order=1)
    return sampler.start(generator, PROMPTS, Key(seed), range(2)).latents


def near(ours: Tensor, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def loaded(folder, **more) -> Any:
    generator = load(str(folder), device="cpu", **more)
    assert isinstance(generator, PipelineGenerator)
    return generator


def rows_are_independent(generator):
    """A prompt says the same whatever its neighbours, and the unconditional one something else."""
    prompts = [*PROMPTS, "", "organ", "a reel in G major for flute for violin and for organ"]
    together = generator.encode_prompts(prompts)
    for i, prompt in enumerate(prompts):
        alone, row = generator.encode_prompts([prompt]), together[torch.tensor([i])]
        for mine, others in zip(columns(alone), columns(row), strict=True):
            torch.testing.assert_close(mine, others, atol=1e-5, rtol=1e-5)
    first = next(columns(together))
    assert not torch.allclose(first[0], first[1], atol=1e-2)
    assert not torch.allclose(first[0], first[2], atol=1e-2)
    assert generator.prompt_vectors(together).shape[0] == len(prompts)


def columns(condition: Any):
    return (value for value in (getattr(condition, f.name) for f in fields(condition)) if isinstance(value, Tensor))


def prompts_and_times_matter(generator):
    noise, condition = start(generator)[[0, 0]], generator.encode_prompts(PROMPTS)
    with torch.no_grad():
        late, early = (generator.predict(noise, torch.full((2,), t), condition) for t in (0.9, 0.2))
    assert (late[0] - late[1]).abs().max() > 0.05
    assert (late[0] - early[0]).abs().max() > 0.03


def bfloat16_is_near(folder, tolerance=0.2):
    exact, half = loaded(folder), loaded(folder, precision="bf16")
    assert {weight.dtype for weight in half.network.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in half.codec.network.parameters()} == {torch.float32}
    noise, t = start(exact), torch.full((2,), 0.5)
    with torch.no_grad():
        plain = exact.denoise(noise, t, exact.encode_prompts(PROMPTS))
        near = half.denoise(noise, t, half.encode_prompts(PROMPTS))
    assert near.dtype == torch.float32
    assert not torch.equal(near, plain)
    torch.testing.assert_close(near, plain, atol=tolerance, rtol=tolerance)
    tuned = loaded(folder, precision="bf16", lora=Lora(rank=2))
    samples = Sampler(steps=2, guidance=2.0, order=1).sample(tuned, PROMPTS, Key(0), differentiate_last=1)
    slopes = torch.autograd.grad(samples.latents.square().mean(), list(tuned.parameters()), allow_unused=True)
    assert any(slope is not None and slope.abs().sum() > 0 for slope in slopes)


def checkpointing_changes_no_gradient(folder):
    def gradients(plan):
        generator = loaded(folder, lora=Lora(rank=2), plan=plan)
        with torch.no_grad():
            for weight in generator.parameters():
                weight.add_(0.01)
        samples = Sampler(steps=3, guidance=2.0, order=1).sample(generator, PROMPTS, Key(0), differentiate_last=2)
        loss = next(columns(samples.media)).square().mean()
        slopes = torch.autograd.grad(loss, list(generator.parameters()), allow_unused=True)
        return [torch.zeros(()) if slope is None else slope for slope in slopes]

    plain, again = gradients(Plan()), gradients(Plan(checkpointing=True))
    assert sum(slope.abs().sum() for slope in plain) > 0
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def offloading_changes_nothing(folder):
    sampler = Sampler(steps=3, guidance=2.0, order=1)
    plain = sampler.sample(loaded(folder), PROMPTS, Key(0), decode=False).latents
    generator = loaded(folder, plan=Plan(offload=True))
    for _ in range(2):
        torch.testing.assert_close(sampler.sample(generator, PROMPTS, Key(0), decode=False).latents, plain)


def noise_stays_out_of_the_last_step(generator):
    """Ancestral sampling: the last draw is the mean, even where the pipeline leaves a little noise."""
    sampler = Sampler(steps=4, guidance=2.0, eta=1.0, order=1)
    state = sampler.start(generator, PROMPTS, Key(0), range(2))
    with torch.no_grad():
        for _ in range(sampler.random_steps):
            assert sampler.transition(generator, state).std.gt(0).all()
            state = sampler.advance(generator, state, Key(0))
        assert sampler.transition(generator, state).std.eq(0).all()

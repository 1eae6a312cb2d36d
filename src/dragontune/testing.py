"""The public conformance suite: what generators, encoders, rewards and steerings must keep, and toys to try things on.

The toy generator lives in two dimensions and knows the exact denoiser of its data, a mixture of two Gaussians, so that
whatever tuning does to it can be compared with a closed form.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from hashlib import sha256
from unittest.mock import patch

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dragontune.costs import Costs
from dragontune.data import Media, Rows, Samples
from dragontune.encoders.base import Embeddings, Encoder, TextEncoder
from dragontune.errors import InputError
from dragontune.generators import adapters
from dragontune.generators.base import Generator
from dragontune.process import ReverseProcess
from dragontune.rewards.base import DifferentiableReward, Features, InstanceReward, Reward
from dragontune.schedule import Edm, Schedule, expand
from dragontune.seeding import Key
from dragontune.steering.base import Steering


@dataclass(frozen=True, eq=False)
class Weights(Rows):
    """The toy's condition: how likely each mode is."""

    modes: Float[Tensor, " n 2"]


@dataclass(frozen=True, eq=False)
class Toy(Generator):
    """Points around (-1, 0) for the prompt `left`, around (1, 0) for `right`, and a mixture for anything else.

    `spread` is the standard deviation of a mode and `minor` the weight of the right one in the mixture. The network
    adds to the exact denoiser; its frozen last layer is 0, so that without its LoRA the model is exact.

    >>> Sampler(steps=10).sample(Toy(), ["left", "right"], Key(0)).media.sign()[:, 0]
    tensor([-1.,  1.])
    """

    schedule: Schedule = field(default_factory=Edm)
    spread: float = 0.3
    minor: float = 0.5
    lora: adapters.Lora = field(default_factory=lambda: adapters.Lora(rank=8, alpha=8.0))
    name: str = "toy"
    latent_shape: tuple[int, ...] = (2,)
    sample_rate: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @cached_property
    def network(self) -> nn.Sequential:
        """The trainable correction."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            last = nn.Linear(64, 2)
            network = nn.Sequential(nn.Linear(5, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        adapters.attach(network, self.lora)
        return network.to(self.device)

    def encode_prompts(self, prompts: Sequence[str]) -> Weights:
        """Mode weights."""
        known = {"left": (1.0, 0.0), "right": (0.0, 1.0)}
        rows = [known.get(prompt, (1 - self.minor, self.minor)) for prompt in prompts]
        return Weights(torch.tensor(rows, device=self.device).reshape(-1, 2))

    def exact(self, noisy: Float[Tensor, " n 2"], t: Float[Tensor, " n"], condition: Rows) -> Float[Tensor, " n 2"]:
        """E[x_0 | x_t] of the mixture."""
        alpha, sigma = expand(self.schedule.alpha(t), noisy), expand(self.schedule.sigma(t), noisy)
        variance = (alpha * self.spread) ** 2 + sigma**2
        centres = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).to(noisy)
        off = noisy[:, None] - alpha[..., None] * centres
        log_weights = _modes(condition).to(noisy).log() - off.square().sum(2) / (2 * variance)
        means = centres + (alpha * self.spread**2 / variance)[..., None] * off
        return (log_weights.softmax(1)[..., None] * means).sum(1)

    def denoise(self, noisy: Float[Tensor, " n 2"], t: Float[Tensor, " n"], condition: Rows) -> Float[Tensor, " n 2"]:
        """The exact estimate and the network's correction, which vanishes with the noise."""
        alpha, sigma = expand(self.schedule.alpha(t), noisy), expand(self.schedule.sigma(t), noisy)
        size = (alpha**2 + sigma**2).sqrt()
        level = sigma.clamp(min=1e-4).log() / 4
        inputs = torch.cat([noisy / size, level, _modes(condition).to(noisy)], 1)
        return self.exact(noisy, t, condition) + sigma / size * self.network(inputs)

    def decode(self, latents: Float[Tensor, " n 2"]) -> Float[Tensor, " n 2"]:
        """The points themselves."""
        return latents * 1

    def encode(self, media: Media) -> Float[Tensor, " n 2"]:
        """The points themselves."""
        if not isinstance(media, Tensor):
            raise TypeError("the toy's media are points")
        return media

    def parameters(self) -> Iterator[nn.Parameter]:
        """The network's LoRA."""
        return adapters.parameters(self.network)

    def reference(self) -> AbstractContextManager[None]:
        """The exact denoiser."""
        return adapters.disabled(self.network)

    def scaled(self, gamma: float) -> AbstractContextManager[None]:
        """Part of the correction."""
        return adapters.scaled(self.network, gamma)

    def save_adapter(self, folder: str) -> None:
        """In peft's format."""
        adapters.save(self.network, folder, self.name)

    def load_adapter(self, folder: str) -> None:
        """In peft's format."""
        adapters.load(self.network, folder)

    def mix_adapters(self, parts: Sequence[tuple[str, float]]) -> None:
        """A weighted sum of corrections to the network's layers."""
        adapters.mix(self.network, parts)

    def rescale(self, gamma: float) -> None:
        """Part of the correction, for good."""
        adapters.rescale(self.network, gamma)


def _modes(condition: Rows) -> Float[Tensor, " n 2"]:
    if not isinstance(condition, Weights):
        raise TypeError("the toy's condition is what its encode_prompts gave")
    return condition.modes


@dataclass(frozen=True)
class ToyEncoder(TextEncoder):
    """Points as they are, in `frames` copies that differ by a turn; `left` and `right` as unit vectors."""

    frames: int = 1
    name: str = "toy-encoder"
    dim: int = 2

    @property
    def digest(self) -> str:
        """Of the settings."""
        return sha256(f"{self.name} {self.frames}".encode()).hexdigest()

    def embed(self, media: Media) -> Embeddings:
        """Frame k is turned by k / 10."""
        if not isinstance(media, Tensor):
            raise TypeError("the toy encoder embeds points")
        angle = torch.arange(self.frames, device=media.device) / 10
        cos, sin = angle.cos().to(media), angle.sin().to(media)
        x, y = media[:, :1], media[:, 1:]
        return Embeddings.of(torch.stack([cos * x - sin * y, sin * x + cos * y], 2))

    def embed_text(self, texts: Sequence[str]) -> Embeddings:
        """Anything else points up."""
        known = {"left": [-1.0, 0.0], "right": [1.0, 0.0]}
        return Embeddings.of(torch.tensor([[known.get(text, [0.0, 1.0])] for text in texts]))


def check_generator(generator: Generator, prompts: Sequence[str] = ("one", "two", "")) -> None:
    """AssertionError where a generator breaks its promises. The adapter is changed for the check and put back."""
    n = len(prompts)
    noise = torch.randn(n, *generator.latent_shape, generator=torch.Generator().manual_seed(0)).to(generator.device)
    t = torch.linspace(0.3, 0.9, n).to(noise)
    condition = generator.encode_prompts(prompts)
    assert len(condition) == n, f"encode_prompts gave {len(condition)} rows for {n} prompts"
    with torch.no_grad():
        before = generator.denoise(noise, t, condition)
        _same_shape(before, noise, "denoise")
        single = torch.cat([generator.denoise(noise[[i]], t[[i]], condition[torch.tensor([i])]) for i in range(n)])
        torch.testing.assert_close(single, before, rtol=1e-3, atol=1e-4, msg=_says("denoise mixes the rows of a batch"))
        early = torch.full((n,), 1e-3).to(noise)
        almost = generator.denoise(noise, early, condition)
        torch.testing.assert_close(almost, noise, rtol=0.05, atol=0.05, msg=_says("near t = 0 denoise changes latents"))
        assert len(generator.decode(noise)) == n, "decode changes the number of rows"
        _same_shape(generator.encode(generator.decode(noise)), noise, "encode")

    weights = list(generator.parameters())
    assert weights, "parameters() is empty: there is no adapter to train"
    assert all(weight.requires_grad for weight in weights), "parameters() holds frozen weights"
    kept = [weight.detach().clone() for weight in weights]
    try:
        _check_adapter(generator, weights, lambda: generator.denoise(noise, t, condition))
    finally:
        with torch.no_grad():
            for weight, value in zip(generator.parameters(), kept, strict=True):
                weight.copy_(value)


def _check_adapter(generator: Generator, weights: list[nn.Parameter], denoise: Callable[[], Tensor]) -> None:
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad(), generator.reference():
        base = denoise()
    with torch.no_grad():
        for weight in weights:
            weight.add_(0.1 * torch.randn(weight.shape, generator=draws).to(weight))
    tuned = denoise()
    gradients = torch.autograd.grad(tuned.square().mean(), weights, allow_unused=True)
    assert any(g is not None and g.abs().sum() > 0 for g in gradients), "no gradient reaches parameters()"
    tuned = tuned.detach()
    assert not torch.equal(tuned, base), "changing parameters() changes nothing"
    with torch.no_grad():
        with generator.reference():
            assert torch.equal(denoise(), base), "reference() is not the pretrained model, bit for bit"
        with generator.scaled(0):
            assert torch.equal(denoise(), base), "scaled(0) is not the pretrained model, bit for bit"
        with generator.scaled(1):
            torch.testing.assert_close(denoise(), tuned, msg=_says("scaled(1) is not the tuned model"))
        assert torch.equal(denoise(), tuned), "leaving reference() or scaled() does not put the adapter back"
        with tempfile.TemporaryDirectory() as folder:
            generator.save_adapter(folder)
            for weight in weights:
                weight.zero_()
            generator.load_adapter(folder)
            torch.testing.assert_close(denoise(), tuned, msg=_says("a saved adapter does not come back"))
            try:
                _check_mixing(generator, folder, denoise, base, tuned)
            finally:
                generator.load_adapter(folder)


def _check_mixing(
    generator: Generator, folder: str, denoise: Callable[[], Tensor], base: Tensor, tuned: Tensor
) -> None:
    """The adapter in `folder` is the present one."""
    with generator.scaled(0.5):
        half = denoise()
    generator.rescale(0.5)
    torch.testing.assert_close(denoise(), half, rtol=1e-4, atol=1e-4, msg=_says("rescale(0.5) is not scaled(0.5)"))
    generator.mix_adapters([(folder, 1.0)])
    assert torch.equal(denoise(), tuned), "a mixture of one adapter with weight 1 is not that adapter"
    generator.mix_adapters([(folder, 0.75), (folder, -0.25)])
    torch.testing.assert_close(
        denoise(), half, rtol=1e-4, atol=1e-4, msg=_says("0.75 - 0.25 of an adapter is not half of it")
    )
    generator.mix_adapters([(folder, 0.0)])
    assert torch.equal(denoise(), base), "a mixture with weight 0 is not the pretrained model, bit for bit"


def check_encoder(encoder: Encoder, media: Media) -> None:
    """AssertionError where an encoder breaks its promises; `media` holds a few different items."""
    n = len(media)
    assert len(encoder.digest) == 64, f"digest is not a SHA-256 in hex: {encoder.digest}"
    with torch.no_grad():
        embeddings = encoder.embed(media)
        assert len(embeddings) == n, f"embed gave {len(embeddings)} rows for {n} items"
        assert embeddings.frames.shape[2] == encoder.dim, f"embed: frames of {embeddings.frames.shape[2]}, not dim"
        assert embeddings.pooled().isfinite().all(), "embed gives values that are not finite"
        assert torch.equal(encoder.embed(media).frames, embeddings.frames), "embed is not deterministic"
        single = Embeddings.join([encoder.embed(media[torch.tensor([i])]) for i in range(n)])
        torch.testing.assert_close(
            single.pooled(), embeddings.pooled(), rtol=1e-3, atol=1e-4, msg=_says("embed mixes the items of a batch")
        )
        if isinstance(encoder, TextEncoder):
            texts = encoder.embed_text(["one", "two"])
            assert texts.frames.shape == (2, 1, encoder.dim), "embed_text: one frame of dim a text"
            torch.testing.assert_close(texts.frames.norm(dim=2), torch.ones(2, 1).to(texts.frames))


def check_reward(reward: Reward, samples: Samples) -> None:
    """AssertionError where a reward breaks its promises; `samples` holds some different items."""
    n = len(samples)
    features = reward.encode(samples)
    scores = reward.score(features)
    order = torch.arange(n).flip(0)
    again = reward.score(features[order])
    assert scores.isfinite().all(), "scores are not finite"
    if isinstance(reward, InstanceReward):
        assert scores.shape == (n,), f"an instance reward gives one score an item, got shape {tuple(scores.shape)}"
        torch.testing.assert_close(
            again, scores[order.to(scores.device)], msg=_says("scores do not follow their items")
        )
    else:
        assert scores.shape == (), f"a reward of a set gives one score, got shape {tuple(scores.shape)}"
        torch.testing.assert_close(again, scores, msg=_says("the score of a set depends on the order"))
        _refuses_too_few(reward, features)
    parts = [reward.encode(samples[torch.tensor([i])]) for i in range(n)]
    kind = type(parts[0])
    joined = torch.cat(parts) if isinstance(parts[0], Tensor) else kind.join(parts)  # pyright: ignore
    torch.testing.assert_close(
        reward.score(joined), scores, rtol=1e-3, atol=1e-4, msg=_says("encode mixes the items of a batch")
    )
    leaves, traced = _traced(samples)
    score = reward(traced)
    marked = isinstance(reward, DifferentiableReward)
    assert score.requires_grad == marked, f"gradients flow: {score.requires_grad}, DifferentiableReward: {marked}"
    if score.requires_grad:
        slopes = [g for g in torch.autograd.grad(score.sum(), leaves, allow_unused=True) if g is not None]
        assert slopes, "gradients are missing"
        assert all(g.isfinite().all() for g in slopes), "gradients are not finite"
        assert any(g.abs().sum() > 0 for g in slopes), "gradients are 0"


def _refuses_too_few(reward: Reward, features: Features) -> None:
    if reward.minimum < 2:
        return
    try:
        reward.score(features[torch.arange(reward.minimum - 1)])
    except InputError:
        return
    raise AssertionError(f"{reward.minimum - 1} items are fewer than the minimum and must be an InputError")


def _traced(samples: Samples) -> tuple[list[Tensor], Samples]:
    """The same samples, and the copies of their tensors that gradients are taken of."""
    latents = samples.latents.detach().clone().requires_grad_()
    match samples.media:
        case Tensor():
            media = samples.media.detach().clone().requires_grad_()
            return [latents, media], Samples(samples.prompts, latents, media)
        case Rows():
            name = next(f.name for f in fields(samples.media) if isinstance(getattr(samples.media, f.name), Tensor))
            leaf = getattr(samples.media, name).detach().clone().requires_grad_()
            return [latents, leaf], Samples(samples.prompts, latents, replace(samples.media, **{name: leaf}))
        case _:
            return [latents], Samples(samples.prompts, latents, None)


def check_steering(
    steering: Steering,
    process: ReverseProcess,
    generator: Generator,
    prompts: Sequence[str] = ("one", "two", "", "one"),
) -> None:
    """AssertionError where a steering breaks its promises; `prompts` are 2 or more. A reward of sets sees an order."""
    key, count = Key(3), len(prompts)

    def latents(steering: Steering, order: Sequence[int] = range(count)) -> Tensor:
        return process.sample(generator, [prompts[i] for i in order], key, items=order, steer=steering).latents

    before = torch.get_rng_state()
    with _spied(generator, steering.reward) as seen:
        first = latents(steering)
    assert torch.equal(torch.get_rng_state(), before), "the global random state of torch is touched"
    assert len(first) == count, f"{count} prompts gave {len(first)} results"
    assert first.shape[1:] == generator.latent_shape, f"results of shape {tuple(first.shape[1:])}"
    assert not first.requires_grad, "results carry gradients"
    _check_budget(steering.budget(process, count, key), seen)
    rows = max(steering.micro_batch, count) * (2 if process.calls(1) > process.steps else 1)
    assert seen["widest"] <= rows, f"{seen['widest']} rows at once, more than {rows}"
    assert torch.equal(latents(steering), first), "the same call gives other bits"
    for micro_batch in (1, 1000):
        other = latents(replace(steering, micro_batch=micro_batch))  # pyright: ignore[reportArgumentType] - a dataclass
        _almost(other, first, f"a micro-batch of {micro_batch} gives another result")
    if isinstance(steering.reward, InstanceReward):
        back = list(range(count))[::-1]
        _almost(latents(steering, back).flip(0), first, "the result depends on the order of the prompts")
        alone = torch.cat([latents(steering, [i]) for i in range(count)])
        _almost(alone, first, "the result of a prompt depends on the others")


@contextmanager
def _spied(generator: Generator, reward: Reward) -> Iterator[dict[str, int]]:
    """Counts rows by what is done to them, and those of the widest call."""
    count: dict[str, int] = {"denoise": 0, "gradients": 0, "decode": 0, "encode": 0, "widest": 0}

    def counted(watched: Generator | Reward, name: str) -> AbstractContextManager[object]:
        inner = getattr(type(watched), name)

        def spy(found: object, rows: Tensor | Samples, *others: Tensor | Rows) -> object:
            if found is watched:
                traced = name == "denoise" and isinstance(rows, Tensor) and rows.requires_grad
                count["gradients" if traced else name] += len(rows)
                count["widest"] = max(count["widest"], len(rows))
            return inner(found, rows, *others)

        return patch.object(type(watched), name, spy)

    with counted(generator, "denoise"), counted(generator, "decode"), counted(reward, "encode"):
        yield count


def _check_budget(budget: Costs, seen: dict[str, int]) -> None:
    """What is decoded again on the way back of a gradient is not counted as another decode."""
    found = Costs(budget.items, seen["denoise"], seen["decode"], seen["encode"], seen["gradients"])
    if budget.gradient_calls and found.decodes > budget.decodes:
        found = replace(found, decodes=budget.decodes)
    assert found == budget, f"the budget says {budget}, but it was {found}"


def _almost(got: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5, msg=_says(what))


def _says(what: str) -> Callable[[str], str]:
    return lambda details: f"{what}: {details}"


def _same_shape(got: Tensor, expected: Tensor, what: str) -> None:
    assert got.shape == expected.shape, f"{what} gave shape {tuple(got.shape)}, expected {tuple(expected.shape)}"

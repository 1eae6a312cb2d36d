"""Generators of tokens: estimates, loss, adapter, files; letters, codes and the motif reward."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from dragontune.data import Samples
from dragontune.errors import InputError
from dragontune.generators import adapters, codes
from dragontune.generators.adapters import Lora
from dragontune.generators.pretrained import load, load_codec
from dragontune.generators.sequences import Letters, LettersPipeline, letters
from dragontune.generators.tokens import TokenTransformer, masked_cross_entropy
from dragontune.media.sequences import Sequences
from dragontune.rewards.function import Function
from dragontune.rewards.motif import Motifs
from dragontune.seeding import Key
from dragontune.unmasking import Unmasking
from enumerable import Enumerable


def small(seed: int = 0, length: int = 12, **more: int) -> Letters:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = TokenTransformer(**{"length": length, "width": 16, "depth": 2, "heads": 2, **more})
    return letters(LettersPipeline(network), "small")


def tokens(count: int, length: int = 12, below: int = 5) -> torch.Tensor:
    return torch.randint(below, (count, length), generator=torch.Generator().manual_seed(count))


def test_an_estimate_is_a_distribution_and_keeps_what_is_revealed():
    generator = small()
    x = tokens(6)
    found = generator.denoise(x, torch.full((6,), 0.5), generator.encode_prompts([""] * 6))
    assert found.shape == (6, 12, 4)
    torch.testing.assert_close(found.sum(2), torch.ones(6, 12))
    known = x != generator.mask
    assert (found[known].amax(1) == 1).all()
    assert torch.equal(found[known].argmax(1), x[known])
    assert (found[~known].amax(1) < 0.99).all()


def test_the_network_does_not_mix_rows_and_sees_every_token():
    generator = small()
    x = tokens(5)
    condition = generator.encode_prompts([""] * 5)
    whole = generator.logits(x, condition)
    single = torch.cat([generator.logits(x[[i]], condition[torch.tensor([i])]) for i in range(5)])
    torch.testing.assert_close(whole, single)
    for place in (0, 11):
        other = x.clone()
        other[:, place] = (other[:, place] + 1) % 5
        assert ((generator.logits(other, condition) - whole).abs().amax((0, 2)) > 1e-7).all()


def test_tokens_of_a_patch_are_told_apart():
    generator = small(patch=3)
    condition = generator.encode_prompts([""])
    masks = torch.full((1, 12), generator.mask)
    found = []
    for place in range(3):
        x = masks.clone()
        x[0, place] = 1
        found.append(generator.logits(x, condition))
    assert found[0].shape == (1, 12, 4)
    assert all(not torch.allclose(a, b) for a, b in pairwise(found))


def test_the_loss_is_the_negative_log_likelihood_of_the_exact_posterior_and_larger_for_any_other():
    generator = Enumerable()
    exact = generator.joint()
    everything = generator.all()
    condition = generator.encode_prompts([""] * len(everything))

    def bound(asked: Enumerable) -> float:
        """Averaged over rates and over all 2^3 masks of each: an integral by Gauss-Legendre points, exact here."""
        nodes, weights = torch.tensor([0.5 - 15**0.5 / 10, 0.5, 0.5 + 15**0.5 / 10]), torch.tensor([5.0, 8.0, 5.0]) / 18
        total = 0.0
        for rate, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            for mask in range(8):
                hidden = torch.tensor([bool(mask >> i & 1) for i in range(3)])
                chance = rate ** int(hidden.sum()) * (1 - rate) ** int((~hidden).sum())
                uniforms = torch.where(hidden, 0.0, 1.0).expand(len(everything), 3)
                rates = torch.full((len(everything),), rate)
                losses = masked_cross_entropy(asked, everything, rates, uniforms, condition)
                total += weight * chance * (losses.double() @ exact).item()
        return total

    entropy = -(exact @ exact.log()).item()
    assert bound(generator) == pytest.approx(entropy, rel=1e-5)
    assert bound(replace(generator, seed=5)) > entropy + 0.05


def test_the_loss_has_gradients_and_goes_down():
    generator = small(length=8)
    network = generator.network.requires_grad_()
    x = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]]).repeat(16, 1)
    condition = generator.encode_prompts([""] * 16)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    found = []
    for step in range(30):
        draws = Key(0).fold(step).generator()
        rates = (torch.arange(16) + 0.5) / 16
        loss = masked_cross_entropy(generator, x, rates, torch.rand(16, 8, generator=draws), condition).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    assert found[-1] < 0.1 * found[0]
    network.requires_grad_(False)
    drawn = Unmasking(8).sample(generator, [""] * 10, Key(0)).latents
    assert (drawn == x[:1]).double().mean() > 0.9


def test_the_adapter_changes_the_model_and_reference_and_scales_take_it_back(tmp_path: Path):
    generator = small()
    x, t, condition = tokens(4), torch.full((4,), 0.5), generator.encode_prompts([""] * 4)
    base = generator.denoise(x, t, condition)
    assert list(generator.parameters()) == []
    adapters.attach(generator.network, Lora(rank=4))
    assert torch.equal(generator.denoise(x, t, condition), base)
    weights = list(generator.parameters())
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in weights:
            weight.add_(0.3 * torch.randn(weight.shape, generator=draws))
    tuned = generator.denoise(x, t, condition)
    assert not torch.allclose(tuned, base, atol=1e-3)
    gradients = torch.autograd.grad(tuned.square().sum(), weights, allow_unused=True)
    assert sum(g is not None and bool(g.abs().sum() > 0) for g in gradients) > len(weights) / 2
    for context in (generator.reference(), generator.scaled(0)):
        with context:
            assert torch.equal(generator.denoise(x, t, condition), base)
    assert torch.equal(generator.denoise(x, t, condition), tuned)
    generator.save_adapter(str(tmp_path))
    fresh = small()
    fresh.load_adapter(str(tmp_path))
    assert torch.equal(fresh.denoise(x, t, condition), tuned)
    generator.rescale(0.5)
    fresh.mix_adapters([(str(tmp_path), 0.5)])
    torch.testing.assert_close(fresh.denoise(x, t, condition), generator.denoise(x, t, condition))


def test_a_saved_model_comes_back(tmp_path: Path):
    generator = small()
    generator.pipeline.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*.*")} <= {".json", ".safetensors"}
    again = load(str(tmp_path), device="cpu")
    assert isinstance(again, Letters)
    assert (again.latent_shape, again.vocabulary, again.alphabet) == ((12,), 4, "ACGT")
    process = Unmasking(6)
    first, second = (process.sample(one, [""] * 3, Key(0)).media for one in (generator, again))
    assert isinstance(first, Sequences)
    assert isinstance(second, Sequences)
    assert first.text() == second.text()
    with pytest.raises(InputError, match=r"model of audio, got .*, which makes sequences"):
        load_codec(str(tmp_path), "cpu")


def test_lower_precision_is_close():
    generator = small()
    x, t, condition = tokens(4), torch.full((4,), 0.5), generator.encode_prompts([""] * 4)
    half = replace(generator, precision="bf16").denoise(x, t, condition)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, generator.denoise(x, t, condition), atol=0.02, rtol=0.05)


def test_prompts_say_nothing_to_letters():
    generator = small()
    assert generator.prompt_vectors(generator.encode_prompts(["a", "b"])).shape == (2, 0)
    guided = Unmasking(5, guidance=3.0).sample(generator, ["a", "b"], Key(0)).latents
    assert torch.equal(guided, Unmasking(5).sample(generator, ["", ""], Key(0)).latents)


def test_sequences_are_text_and_come_from_text():
    media = Sequences.of(["ATG", "CCA"])
    assert media.text() == ["ATG", "CCA"]
    assert media[torch.tensor([1])].text() == ["CCA"]
    assert torch.equal(small(length=3).encode(media), media.tokens)
    with pytest.raises(InputError, match="letters of ACGT, got 'U'"):
        Sequences.of(["AUG"])
    with pytest.raises(InputError, match="sequences of one length"):
        Sequences.of(["AT", "ATG"])


def made(texts: list[str]) -> Samples:
    media = Sequences.of(texts)
    return Samples(("",) * len(texts), media.tokens.float(), media)


def test_motifs_are_scored_where_they_fit_best():
    reward = Motifs(("TATA", "GN"), slip=0.04)
    fit, miss = torch.tensor(0.96 * 4).log().item(), torch.tensor(0.04 / 3 * 4).log().item()
    scores = reward(made(["CCTATAGC", "CCTACACC", "GGGGGGGG", "CCCCCCTA"]))
    expected = [5 * fit, 3 * fit + 2 * miss, fit + 4 * miss, 2 * fit + 3 * miss]
    expected[3] = max(2 * miss + 2 * fit, 4 * miss) + miss  # CCTA
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64))
    assert reward.best == pytest.approx(5 * fit)
    two = Motifs(("W",), slip=0.1)(made(["CCA", "CGC"]))
    torch.testing.assert_close(two.exp(), torch.tensor([0.45 * 4, 0.05 * 4], dtype=torch.float64))
    some = made(["CCTATAGC", "CCTACACC", "GGGGGGGG"])
    order = torch.tensor([2, 0, 1])
    assert torch.equal(reward(some[order]), reward(some)[order])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (((), 0.05), "at least one motif"),
        ((("TATA", ""), 0.05), "at least one motif"),
        ((("TAXA",), 0.05), "got 'X'"),
        ((("TATA",), 1.0), "slip between 0 and 1"),
    ],
)
def test_bad_motifs_are_refused(wrong: tuple[tuple[str, ...], float], says: str):
    with pytest.raises(InputError, match=says):
        Motifs(*wrong)


def test_motifs_need_room_and_letters():
    with pytest.raises(InputError, match="at least 4 letters, got 3"):
        Motifs(("TATA",))(made(["TAT"]))
    with pytest.raises(TypeError, match="Sequences over ACGT"):
        Motifs(("TATA",))(Samples(("",), torch.zeros(1, 4), torch.zeros(1, 4)))


def test_a_plain_function_may_look_at_sequences():
    reward = Function(lambda media, prompts: [text.count("A") for text in media.text()])
    assert reward(made(["ATA", "CCC"])).tolist() == [2, 0]


def test_codes_give_back_frames_and_each_level_brings_them_closer():
    draws = torch.Generator().manual_seed(0)
    latents = torch.randn(40, 4, 10, generator=draws)
    frames = latents.transpose(1, 2).flatten(0, 1)
    errors = []
    for levels in (1, 2, 3):
        found = codes.fit(frames, levels, 16, Key(0))
        x = found.encode(latents)
        assert x.shape == (40, 10 * levels)
        assert int(x.max()) < 16
        assert torch.equal(found.encode(latents[[7]]), x[[7]])
        errors.append((found.decode(x) - latents).square().mean().item())
    assert errors[0] < 0.6
    assert errors[2] < 0.7 * errors[1] < 0.5 * errors[0]
    # 16 different frames and 16 codes: nothing is lost
    few = frames[:16].repeat(5, 1)
    exact = codes.fit(few[:16], 1, 16, Key(0))
    torch.testing.assert_close(exact.decode(exact.encode(few.T[None])), few.T[None])

"""Masked-token music on the embedded codec, with a small network of random weights: latents, prompts, files."""

from pathlib import Path

import pytest
import torch

from dragontune.cli import run
from dragontune.data import Rows, Samples
from dragontune.encoders.clap import TinyClap
from dragontune.generators import token_music
from dragontune.generators.codes import fit
from dragontune.generators.pretrained import load, load_codec
from dragontune.generators.tiny_music import TinyMusic
from dragontune.generators.token_music import TokenMusic, TokenMusicPipeline
from dragontune.generators.tokens import TokenTransformer
from dragontune.media.audio import Audio
from dragontune.rewards.alignment import Alignment
from dragontune.seeding import Key
from dragontune.unmasking import Unmasking


@pytest.fixture(scope="module")
def music() -> TokenMusic:
    base = load("tiny-music", device="cpu")
    assert isinstance(base, TinyMusic)
    clips = base.encode(Audio(torch.randn(3, 1, 65536, generator=torch.Generator().manual_seed(0)) / 10, 16000))
    codes = fit(clips.transpose(1, 2).flatten(0, 1), 2, 16, Key(0), rounds=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = TokenTransformer(16, 128, patch=2, width=16, depth=1, heads=2, text_width=128)
    return token_music.token_music(TokenMusicPipeline(network, codes), base, "small")


def test_tokens_become_the_codec_s_audio(music: TokenMusic):
    prompts = ["a slow air on a flute", "a quick reel", "a quick reel"]
    samples = Unmasking(4, guidance=2.0).sample(music, prompts, Key(0))
    assert samples.latents.shape == (3, 128)
    assert int(samples.latents.max()) < 16
    assert isinstance(samples.media, Audio)
    assert (samples.media.waveform.shape, samples.media.sample_rate) == ((3, 1, 65536), 16000)
    assert samples.media.waveform.isfinite().all()
    assert not torch.equal(samples.latents[1], samples.latents[2])
    again = Unmasking(4, guidance=2.0).sample(music, prompts[1:], Key(0), items=[1, 2])
    assert torch.equal(again.latents, samples.latents[1:])


def test_audio_becomes_tokens_and_frames_the_nearest_codes(music: TokenMusic):
    latents = music.base.encode(Audio(torch.randn(1, 1, 65536, generator=torch.Generator().manual_seed(1)) / 10, 16000))
    tokens = music.pipeline.codes.encode(latents)
    assert tokens.shape == (1, 128)
    codes = music.pipeline.codes.codes
    first = torch.cdist(latents[0].T, codes[0]).argmin(1)
    assert torch.equal(tokens[0, ::2], first)
    left = latents[0].T - codes[0][first]
    assert torch.equal(tokens[0, 1::2], torch.cdist(left, codes[1]).argmin(1))
    frame = codes[0][first[5]] + codes[1][tokens[0, 11]]
    torch.testing.assert_close(music.pipeline.codes.decode(tokens)[0, :, 5], frame)


def test_what_is_said_changes_what_is_expected(music: TokenMusic):
    condition = music.encode_prompts(["a slow air on a flute", "a quick reel"])
    vectors = music.prompt_vectors(condition)
    torch.testing.assert_close(vectors, music.base.prompt_vectors(condition))
    masks = torch.full((2, 128), music.mask)
    found = music.denoise(masks, torch.ones(2), condition)
    assert not torch.allclose(found[0], found[1], atol=1e-5)
    with pytest.raises(TypeError, match="this model's Condition"):
        music.denoise(masks, torch.ones(2), Rows())


def test_a_saved_model_comes_back(music: TokenMusic, tmp_path: Path):
    music.pipeline.save_pretrained(tmp_path)
    again = load(str(tmp_path), device="cpu")
    assert isinstance(again, TokenMusic)
    assert {path.name for path in tmp_path.iterdir()} == {"model_index.json", "transformer", "codes"}
    first, second = (Unmasking(3).sample(one, ["a reel"], Key(2)).media for one in (music, again))
    assert isinstance(first, Audio)
    assert isinstance(second, Audio)
    assert torch.equal(first.waveform, second.waveform)
    codec = load_codec(str(tmp_path), "cpu")
    assert torch.equal(codec.encode(first), music.base.codec.encode(first))


def test_the_embedded_model_makes_music_that_is_steered_from_the_command_line(tmp_path: Path):
    """Its clips follow their prompts, and a candidate more costs what is said."""
    generator = load("tiny-tokens")
    prompts = [f"a slow air for {name}" for name in ("flute", "banjo", "organ", "choir")]
    samples = Unmasking(8, guidance=2.0).sample(generator, prompts, Key(0))
    reward = Alignment(TinyClap())
    mismatched = Samples(tuple(prompts[1:] + prompts[:1]), samples.latents, samples.media)
    assert reward(samples).mean() > reward(mismatched).mean() + 0.2

    steer = tmp_path / "steer.yaml"
    steer.write_text(
        "steering: {class_path: Svdd, init_args: {candidates: 2, reward: {class_path: KeyStrength}}}\n"
        "sampler: {steps: 4, guidance: 1.0, order: 1, eta: 1.0}\n"
    )
    words = ["--model", "tiny-tokens", "--prompt", prompts[0], "--steer", str(steer), "--out", str(tmp_path / "clips")]
    assert run(["generate", *words]) == 0
    assert (tmp_path / "clips" / "scores.csv").exists()
    assert run(["evaluate", "--model", "tiny-tokens", "--steer", str(steer), "--prompts", "x", "--out", "y"]) == 2

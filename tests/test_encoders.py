import pytest
import torch

from dragontune.data import Samples
from dragontune.embedded import ASSETS, is_embedded, locate
from dragontune.encoders.clap import TinyClap
from dragontune.encoders.latents import Latents
from dragontune.errors import InputError
from dragontune.media.audio import Audio
from tiny_models import save_tiny_clap, save_tiny_music


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    return TinyClap(str(save_tiny_clap(tmp_path_factory.mktemp("clap"))))


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return Latents(str(save_tiny_music(tmp_path_factory.mktemp("music"))))


@pytest.fixture
def clips() -> Audio:
    return Audio(torch.randn(3, 1, 16384, generator=torch.Generator().manual_seed(0)), 16000)


def test_frames_are_unit_vectors(clap, clips):
    embeddings = clap.embed(clips)
    assert embeddings.frames.shape == (3, 2, clap.dim)
    assert embeddings.count.tolist() == [2, 2, 2]
    torch.testing.assert_close(embeddings.frames.norm(dim=2), torch.ones(3, 2))


def test_texts_are_unit_vectors_of_their_own(clap):
    texts = ["a reel in G major", "", "x " * 200]
    together = clap.embed_text(texts)
    assert together.frames.shape == (3, 1, clap.dim)
    torch.testing.assert_close(together.frames.norm(dim=2), torch.ones(3, 1))
    for i, text in enumerate(texts):
        torch.testing.assert_close(clap.embed_text([text]).frames[0], together.frames[i])


def test_any_rate_and_channel_count_is_converted(clap, clips):
    stereo = Audio(clips.waveform.expand(-1, 2, -1), 16000)
    torch.testing.assert_close(clap.embed(stereo).frames, clap.embed(clips).frames)
    assert clap.embed(clips.resample(22050)).frames.shape == clap.embed(clips).frames.shape


@pytest.mark.parametrize("name", ["clap", "latents"])
def test_gradients_reach_the_media(request, clips, name):
    wave = clips.waveform.clone().requires_grad_()
    request.getfixturevalue(name).embed(Audio(wave, 16000)).frames.square().mean((1, 2)).sum().backward()
    assert wave.grad.isfinite().all()
    assert (wave.grad.flatten(1).abs().sum(1) > 0).all() or name == "clap"  # unit vectors have one length


@pytest.mark.parametrize("name", ["clap", "latents"])
def test_an_item_does_not_depend_on_its_neighbours(request, clips, name):
    encoder = request.getfixturevalue(name)
    together = encoder.embed(clips).frames
    for i in range(3):
        torch.testing.assert_close(encoder.embed(clips[torch.tensor([i])]).frames[0], together[i], atol=1e-5, rtol=1e-4)


def test_digests_tell_weights_apart(tmp_path, clap, latents):
    same, other = TinyClap(str(save_tiny_clap(tmp_path / "same"))), TinyClap(str(save_tiny_clap(tmp_path / "b", 1)))
    assert clap.digest == same.digest != other.digest
    assert latents.digest == Latents(str(save_tiny_music(tmp_path / "same-music"))).digest
    assert latents.digest != Latents(str(save_tiny_music(tmp_path / "other-music", 1))).digest


def test_digests_tell_tokenizers_apart(tmp_path, clap):
    folder = save_tiny_clap(tmp_path / "clap")
    other = TinyClap(str(folder))
    other.tokenizer.add_tokens(["theremin"])
    other.tokenizer.save_pretrained(folder / "tokenizer")
    assert TinyClap(str(folder)).digest != clap.digest


def test_latents_of_generations_are_taken_as_they_are(latents):
    clean = torch.randn(2, 4, 16)
    embeddings = latents.encode(Samples(("a", "b"), clean, None))
    assert not latents.needs_media
    assert latents.dim == 4
    assert torch.equal(embeddings.frames, clean.transpose(1, 2))


def test_latents_of_media_have_any_length(latents):
    assert latents.embed(Audio(torch.randn(1, 1, 1000), 16000)).frames.shape == (1, 4, 4)


def test_media_must_be_audio(clap, latents):
    for encoder in (clap, latents):
        with pytest.raises((InputError, TypeError), match=r"[Aa]udio"):
            encoder.embed(torch.zeros(1, 2))


def test_missing_models_are_named(tmp_path):
    for make in (TinyClap, Latents):
        with pytest.raises(InputError, match="nowhere"):
            _ = make(str(tmp_path / "nowhere")).digest
    with pytest.raises(InputError, match="tokenizer"):
        TinyClap(str(tmp_path)).embed_text(["a"])


def test_local_paths_win_over_embedded_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-music").mkdir()
    assert locate("tiny-music").resolve() == tmp_path / "tiny-music"


@pytest.mark.parametrize(
    "path", ["elsewhere/x.txt", "tiny-music/../../errors.py", "tiny-music/no-such.txt", "/tiny-music/x"]
)
def test_paths_that_lead_nowhere_are_named(path):
    with pytest.raises(InputError, match=path.replace(".", r"\.")):
        locate(path)


def test_embedded_names_stay_inside():
    assert is_embedded("tiny-clap/x")
    assert not is_embedded("tiny-clap/../x")
    assert not is_embedded("")
    assert ASSETS.name == "assets"

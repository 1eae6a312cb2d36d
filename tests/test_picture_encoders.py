"""CLIP, SigLIP, DINOv2 and PickScore: the same as the library's own processors and networks, with gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPModel, Dinov2Model, SiglipModel

from dragontune.data import Samples
from dragontune.encoders.clip import Clip
from dragontune.encoders.dinov2 import Dinov2
from dragontune.encoders.pictures import Preparation
from dragontune.encoders.siglip import Siglip
from dragontune.errors import InputError
from dragontune.media.audio import Audio
from dragontune.media.image import Images
from dragontune.media.video import Video
from dragontune.rewards.alignment import Alignment
from dragontune.rewards.preference import PickScore
from dragontune.testing import check_encoder, check_reward
from tiny_encoders import (
    clip_pictures,
    dino_pictures,
    save_clip,
    save_dinov2,
    save_siglip,
    siglip_pictures,
)

KINDS = {
    "clip": (Clip, save_clip, clip_pictures, CLIPModel),
    "siglip": (Siglip, save_siglip, siglip_pictures, SiglipModel),
    "dinov2": (Dinov2, save_dinov2, dino_pictures, Dinov2Model),
}
TEXTS = ("a cat on a mat", "", "b " * 60)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save(tmp_path_factory.mktemp(name)) for name, (_, save, _, _) in KINDS.items()}


@pytest.fixture(scope="module")
def encoders(folders):
    return {name: kind(str(folders[name])) for name, (kind, *_) in KINDS.items()}


def photos(height: int, width: int, count: int = 3) -> Images:
    """Smooth pictures with an edge, in whole 255ths as those in files are."""
    random = torch.Generator().manual_seed(height)
    coarse = torch.rand(count, 3, 6, 7, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    smooth[:, :, height // 3 :, width // 2 :] = 1 - smooth[:, :, height // 3 :, width // 2 :]
    return Images((smooth * 255).round() / 255)


def pillow(pictures: Images) -> list[Image.Image]:
    return [Image.fromarray(row) for row in (pictures.pixels.permute(0, 2, 3, 1) * 255).round().byte().numpy()]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [(50, 70), (91, 40), (32, 32), (20, 25), (200, 37)])
def test_pictures_are_prepared_as_the_library_does(encoders, name, size):
    pictures = photos(*size)
    expected = np.stack(KINDS[name][2]()(pillow(pictures), return_tensors="np")["pixel_values"])
    found = encoders[name].prepare(pictures.pixels).numpy()
    assert found.shape == expected.shape
    off = np.abs(found - expected) * 255 * np.array(encoders[name].prepare.std)[:, None, None]
    assert (off < 1.6).mean() > 0.998  # Pillow rounds to whole numbers, twice
    assert off.max() < 6
    assert off.mean() < 0.4


@pytest.mark.parametrize("name", KINDS)
def test_embeddings_are_the_librarys(encoders, folders, name):
    _, _, processor, kind = KINDS[name]
    pictures, network = photos(60, 48), kind.from_pretrained(folders[name]).eval()
    pixels = torch.from_numpy(np.stack(processor()(pillow(pictures), return_tensors="np")["pixel_values"]))
    with torch.no_grad():
        if name == "dinov2":
            expected = network(pixel_values=pixels).last_hidden_state[:, 0]
        else:
            expected = torch.nn.functional.normalize(
                network.get_image_features(pixel_values=pixels).pooler_output, dim=1
            )
    found = encoders[name].embed(pictures)
    assert found.frames.shape == (3, 1, encoders[name].dim)
    assert torch.cosine_similarity(found.frames[:, 0], expected).min() > 0.9999
    torch.testing.assert_close(found.frames[:, 0], expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_texts_are_the_librarys(encoders, folders, name):
    network, tokenizer = (
        KINDS[name][3].from_pretrained(folders[name]).eval(),
        AutoTokenizer.from_pretrained(folders[name]),
    )
    length = network.config.text_config.max_position_embeddings
    inputs = tokenizer(list(TEXTS), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    if name == "siglip":
        inputs.pop("attention_mask")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(network.get_text_features(**inputs).pooler_output, dim=1)
    found = encoders[name].embed_text(TEXTS).frames
    torch.testing.assert_close(found[:, 0], expected)
    alone = torch.cat([encoders[name].embed_text([text]).frames for text in TEXTS])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
    assert (found[0] - found[2]).abs().max() > 1e-3


@pytest.mark.parametrize("name", KINDS)
def test_promises(encoders, name):
    check_encoder(encoders[name], photos(40, 60))
    if name != "dinov2":
        check_reward(Alignment(encoders[name]), Samples(TEXTS, torch.zeros(3, 2), photos(40, 60)))


@pytest.mark.parametrize("name", KINDS)
def test_a_frame_of_a_video_is_an_image(encoders, name):
    first, second = photos(40, 60), photos(40, 60, 3)[torch.tensor([2, 0, 1])]
    found = encoders[name].embed(Video(torch.stack([first.pixels, second.pixels], 1), 8.0)).frames
    assert found.shape == (3, 2, encoders[name].dim)
    torch.testing.assert_close(found[:, 0], encoders[name].embed(first).frames[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[:, 1], encoders[name].embed(second).frames[:, 0], rtol=1e-4, atol=1e-5)


def test_patches_are_frames(encoders, folders):
    patches = Dinov2(str(folders["dinov2"]), tokens="patches")
    video = Video(torch.stack([photos(40, 60).pixels] * 2, 1), 8.0)
    found = patches.embed(video).frames
    assert found.shape == (3, 8, 16)  # of 2 x 2 patches in each of two frames
    torch.testing.assert_close(found[:, :4], found[:, 4:])
    pixels = patches.prepare(photos(40, 60).pixels)
    with torch.no_grad():
        torch.testing.assert_close(found[:, :4], patches.network(pixel_values=pixels).last_hidden_state[:, 1:])
    assert patches.digest != encoders["dinov2"].digest
    check_encoder(patches, photos(40, 60))


@pytest.mark.parametrize("name", KINDS)
def test_gradients_agree_with_differences(encoders, name):
    encoder, random = encoders[name], torch.Generator().manual_seed(3)
    pixels = (0.2 + 0.6 * torch.rand(1, 3, 40, 48, generator=random)).requires_grad_()
    way = torch.randn(encoder.dim, generator=random)

    def value(pixels):
        return (encoder.embed(Images(pixels)).frames @ way).sum()

    value(pixels).backward()
    assert pixels.grad is not None
    step = 1e-2 * pixels.grad / pixels.grad.norm()
    with torch.no_grad():
        difference = (value(pixels + step) - value(pixels - step)).item() / 2e-2
    assert pixels.grad.norm().item() == pytest.approx(difference, rel=0.02)


def test_pickscore_is_the_published_formula(folders):
    pictures = photos(60, 48)
    network: Any = CLIPModel.from_pretrained(folders["clip"]).eval()
    samples = Samples(TEXTS, torch.zeros(3, 2), pictures)
    tokens = AutoTokenizer.from_pretrained(folders["clip"])(
        list(TEXTS), padding="max_length", truncation=True, max_length=24, return_tensors="pt"
    )
    pixels = torch.from_numpy(np.stack(clip_pictures()(pillow(pictures), return_tensors="np")["pixel_values"]))
    with torch.no_grad():
        image = network.get_image_features(pixel_values=pixels).pooler_output
        text = network.get_text_features(tokens.input_ids, tokens.attention_mask).pooler_output
        expected = network.logit_scale.exp() * torch.cosine_similarity(image, text)
    reward = PickScore(str(folders["clip"]))
    torch.testing.assert_close(reward(samples), expected, rtol=0.02, atol=0.1)
    assert reward.needs_prompts
    check_reward(reward, samples)
    doubled = Samples(TEXTS, samples.latents, Video(torch.stack([pictures.pixels] * 2, 1), 8.0))
    torch.testing.assert_close(reward(doubled), reward(samples), rtol=1e-4, atol=1e-4)


def test_a_processor_of_another_checkpoint(tmp_path, folders, encoders):
    bare = save_clip(tmp_path / "bare")
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    with pytest.raises(InputError, match="preprocessor_config"):
        Clip(str(bare)).embed(photos(40, 40))
    lent = Clip(str(bare), processor=str(folders["clip"]))
    torch.testing.assert_close(lent.embed(photos(40, 40)).frames, encoders["clip"].embed(photos(40, 40)).frames)
    torch.testing.assert_close(lent.embed_text(TEXTS).frames, encoders["clip"].embed_text(TEXTS).frames)
    assert len(lent.digest) == 64


def test_older_and_odd_preprocessors():
    old = Preparation.read({"size": 8, "crop_size": 6, "do_center_crop": True, "resample": 2}, "x")
    assert old(torch.zeros(1, 3, 9, 20)).shape == (1, 3, 6, 6)
    plain = Preparation.read({"do_resize": False, "do_normalize": False, "size": {"longest_edge": 3}}, "x")
    torch.testing.assert_close(plain(torch.full((1, 3, 5, 5), 0.3)), torch.full((1, 3, 5, 5), 0.3))
    for odd in ({"resample": 1}, {"size": {"longest_edge": 8}}):
        with pytest.raises(InputError, match="bicubic"):
            Preparation.read(odd, "x")


def test_media_must_be_pictures(encoders):
    for encoder in encoders.values():
        with pytest.raises(InputError, match=r"expected images for the encoder .* got audio"):
            encoder.embed(Audio(torch.zeros(1, 1, 8), 8))

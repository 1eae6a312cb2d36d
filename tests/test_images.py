"""Images as a medium: the record, its files, folders of media, and what rewards and encoders say of other media."""

import math
import warnings

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from dragontune.data import Samples
from dragontune.encoders.log_mel import LogMel
from dragontune.errors import InputError, NonFiniteError
from dragontune.media import kinds
from dragontune.media.audio import Audio
from dragontune.media.image import Images
from dragontune.media.video import Video
from dragontune.media.video import read as read_video
from dragontune.reference import open_reference
from dragontune.rewards.clean_sound import CleanSound
from dragontune.rewards.function import Function, SetFunction
from dragontune.rewards.picture import Brightness, Sharpness
from dragontune.rewards.signal import KeyStrength, Loudness, SpectralCentroid, Tempo
from dragontune.rewards.vision_judge import VisionJudge
from dragontune.testing import check_reward
from dragontune.training import guard
from judges import picture, reply, send, serving
from paints import Shades, save_stills


def random(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def of(media):
    return Samples(("a",) * len(media), torch.zeros(len(media), 0), media)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".PNG"])
def test_what_is_written_without_loss_comes_back(tmp_path, suffix):
    made = Images(random(3, 3, 17, 23))
    made[torch.tensor([1])].write(tmp_path / f"a{suffix}")
    back = Images.read(tmp_path / f"a{suffix}")
    assert back.size == (17, 23)
    assert torch.equal((back.pixels * 255).round(), (made.pixels[1:2] * 255).round())


def test_jpeg_is_nearly_what_was_written(tmp_path):
    smooth = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    for suffix in (".jpg", ".jpeg"):
        Images(smooth).write(tmp_path / f"a{suffix}")
        assert (Images.read(tmp_path / f"a{suffix}").pixels - smooth).abs().max() < 0.03


def test_pictures_are_seen_as_viewers_show_them(tmp_path):
    grey = np.arange(12 * 10, dtype=np.uint16).reshape(12, 10) * 500
    Image.fromarray(grey).save(tmp_path / "grey16.png")
    assert torch.allclose(
        Images.read(tmp_path / "grey16.png").pixels[0, 0].double(), torch.tensor(grey / 65535), atol=3e-3
    )
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert Images.read(tmp_path / "clear.png").pixels.unique().tolist() == [1.0]
    turned = Image.new("RGB", (8, 4), "red")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert Images.read(tmp_path / "turned.jpg").size == (8, 4)
    Image.new("P", (3, 2)).save(tmp_path / "palette.png")
    assert Images.read(tmp_path / "palette.png").size == (2, 3)


@pytest.mark.parametrize(
    "pixels",
    [torch.zeros(3, 8, 8), torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 0, 8), torch.zeros(1, 3, 8, 8).to(torch.uint8)],
    ids=["no rows", "grey", "empty", "whole"],
)
def test_what_is_no_picture(pixels):
    with pytest.raises(Exception, match=r"pictures as real numbers|Type-check|type-check"):
        Images(pixels)


def test_rows_are_joined_if_they_have_one_size():
    small, large = Images(random(2, 3, 4, 5)), Images(random(1, 3, 6, 5))
    assert Images.join([small, small]).pixels.shape == (4, 3, 4, 5)
    assert len(small[torch.tensor([], dtype=torch.int64)]) == 0
    with pytest.raises(InputError, match=r"of one size to stack, got 4 x 5 and 6 x 5"):
        Images.join([small, large])


def test_what_cannot_be_written(tmp_path):
    one = Images(random(1, 3, 4, 4))
    with pytest.raises(InputError, match=r"ending in \.png, \.webp, \.jpg, \.jpeg, got a\.bmp"):
        one.write(tmp_path / "a.bmp")
    with pytest.raises(ValueError, match="one picture to write, got 2"):
        Images(random(2, 3, 4, 4)).write(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"pixels in \[0, 1\]"):
        Images(one.pixels * 255).write(tmp_path / "a.png")
    with pytest.raises(NonFiniteError, match="finite pixels"):
        Images(one.pixels * math.nan).write(tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_is_named(tmp_path):
    Images(random(1, 3, 30, 30)).write(tmp_path / "good.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "good.png").read_bytes()[:900])
    (tmp_path / "words.jpg").write_text("not a picture")
    (tmp_path / "nothing.webp").write_bytes(b"")
    for name in ("torn.png", "words.jpg", "nothing.webp"):
        with pytest.raises(InputError, match=rf"expected a readable image, got .*{name} \(.*replace or remove"):
            Images.read(tmp_path / name)
    with pytest.raises(InputError, match=r"gone\.png, which is not there"):
        Images.read(tmp_path / "gone.png")


@pytest.mark.parametrize("side", [8001, 20000])
def test_bombs_are_refused_before_they_are_decoded(tmp_path, side):
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (Images.read, read_video):
            with pytest.raises(InputError, match=r"at most 64 megapixels, got .*bomb\.png"):
                read(tmp_path / "bomb.png")


def test_bombs_of_many_frames_are_refused(tmp_path):
    first = Image.new("L", (2000, 2000))
    frames = [Image.new("L", (2000, 2000), value) for value in (9, 99)]
    first.save(tmp_path / "long.gif", save_all=True, append_images=frames, duration=[20, 650_000, 20])
    with pytest.raises(InputError, match=r"megapixels in all frames of a video, got .*long\.gif"):
        read_video(tmp_path / "long.gif")


def test_folders_tell_what_they_hold(tmp_path):
    save_stills(tmp_path / "stills", 3)
    save_stills(tmp_path / "stills" / "more", 2, ".jpeg")
    (tmp_path / "stills" / ".hidden.wav").write_bytes(b"x")
    kind, paths = kinds.folder(tmp_path / "stills")
    assert (kind, len(paths)) == (kinds.IMAGES, 5)
    assert paths == sorted(paths)

    (tmp_path / "films").mkdir()
    Video(random(1, 4, 3, 8, 8), 4.0).write(tmp_path / "films" / "b.webp")
    Video(torch.zeros(1, 4, 3, 8, 8), 4.0).write(tmp_path / "films" / "a.webp")  # nothing moves: one frame is stored
    kind, paths = kinds.folder(tmp_path / "films")
    assert (kind, [path.name for path in paths]) == (kinds.VIDEO, ["a.webp", "b.webp"])


def test_folders_of_several_kinds(tmp_path):
    save_stills(tmp_path, 2)
    for number in range(2):
        soundfile.write(tmp_path / f"{number}.wav", np.zeros(8), 8)
    with pytest.raises(InputError, match=r"one kind in .*, got audio \(0\.wav\) and images \(00\.png\); put each"):
        kinds.folder(tmp_path)
    soundfile.write(tmp_path / "2.wav", np.zeros(8), 8)
    with pytest.warns(UserWarning, match=r"left out of the 3 audio files in .*: 2 images \(00\.png\)"):
        kind, paths = kinds.folder(tmp_path)
    assert (kind, len(paths)) == (kinds.AUDIO, 3)
    Video(random(1, 4, 3, 8, 8), 4.0).write(tmp_path / "a.webp")
    with pytest.raises(InputError, match="expected media of one kind"):
        kinds.folder(tmp_path)
    for empty in (tmp_path / "nowhere", tmp_path / "00.png"):
        with pytest.raises(InputError, match="which is not a folder"):
            kinds.folder(empty)
    (tmp_path / "void").mkdir()
    with pytest.raises(
        InputError, match=r"audio, images or video in .*, got none \(audio files: \.wav,.*images: \.png"
    ):
        kinds.folder(tmp_path / "void")


def test_exemplars_may_be_images(tmp_path):
    save_stills(tmp_path, 5, ".jpg", sizes=((12, 16), (20, 9)))
    (tmp_path / "05.png").write_text("torn")
    with pytest.warns(UserWarning, match=r"left out of the exemplars: .*05\.png"):
        reference = open_reference(Shades(), tmp_path)
    assert (reference.items, reference.count, reference.modality) == (5, 20, "images")
    reference.save(tmp_path / "r.safetensors")
    assert open_reference(Shades(), tmp_path / "r.safetensors").digest == reference.digest
    with pytest.raises(InputError, match="expected audio for the encoder log-mel, got images"):
        open_reference(LogMel(), tmp_path)


def test_exemplars_may_be_videos(tmp_path):
    for number in range(2):
        Video(random(1, 4, 3, 8, 8) * (number + 1) / 2, 4.0).write(tmp_path / f"{number}.webp")
    reference = open_reference(Shades(), tmp_path)
    assert (reference.items, reference.count, reference.modality) == (2, 8, "video")
    (tmp_path / "list.m3u").write_text("0.webp\n1.webp\n")
    assert open_reference(Shades(), tmp_path / "list.m3u").count == 8


@pytest.mark.parametrize("reward", [Loudness(), SpectralCentroid(), Tempo(), KeyStrength(), CleanSound()])
def test_rewards_of_sound_say_so(reward):
    for media, name in ((Images(random(1, 3, 8, 8)), "images"), (Video(random(1, 2, 3, 8, 8), 2.0), "video")):
        with pytest.raises(InputError, match=f"expected audio for {reward.label}, got {name}; choose"):
            reward(of(media))


@pytest.mark.parametrize("reward", [Brightness(), Sharpness(), Brightness(0.5), Sharpness(0.01)])
def test_rewards_of_pixels_keep_the_contract(reward):
    check_reward(reward, of(Images(random(4, 3, 8, 9))))
    check_reward(reward, of(Video(random(4, 3, 3, 8, 9), 2.0)))
    with pytest.raises(InputError, match=f"expected images for {reward.label}, got audio"):
        reward(of(Audio(torch.zeros(1, 1, 8), 8)))


def test_brightness_and_sharpness_are_what_they_say():
    plain = torch.tensor([0.0, 0.25, 1.0]).view(3, 1, 1, 1).expand(3, 3, 8, 8)
    assert Brightness()(of(Images(plain))).tolist() == pytest.approx([0, 0.25, 1])
    assert Brightness(0.25)(of(Images(plain))).tolist() == pytest.approx([-0.25, 0, -0.75])
    assert Sharpness()(of(Images(plain))).tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    green = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert Brightness()(of(Images(green))).item() == pytest.approx(0.7152)
    dot = torch.zeros(1, 3, 7, 7)
    dot[..., 3, 3] = 1
    values = np.array([-4.0, 1, 1, 1, 1] + [0.0] * 20)  # of the Laplacian inside the edge
    assert Sharpness()(of(Images(dot))).item() == pytest.approx(values.var())
    still = Video(dot[:, None].expand(-1, 5, -1, -1, -1), 5.0)
    assert Sharpness()(of(still)).item() == pytest.approx(values.var())
    assert Sharpness()(of(Images(torch.rand(1, 3, 2, 9)))).item() == 0
    for kind in (Brightness, Sharpness):
        with pytest.raises(InputError, match="finite target"):
            kind(math.nan)


def test_functions_are_given_images():
    images, video = Images(random(2, 3, 4, 6)), Video(random(2, 3, 3, 4, 6), 3.0)
    assert Function(lambda media, prompts: media.pixels.mean((1, 2, 3)))(of(images)).shape == (2,)
    seen = []

    def trl(samples, prompts, metadata):
        seen.append((tuple(samples.shape), metadata))
        return [0.0] * len(prompts), {}

    for media in (images, video):
        Function(trl)(of(media))
    assert seen == [((2, 3, 4, 6), ({}, {})), ((2, 3, 3, 4, 6), ({"fps": 3.0}, {"fps": 3.0}))]
    reward = SetFunction(lambda media, prompts: float(media.pixels.std()))
    parts = [reward.encode(of(images)), reward.encode(of(Images(random(1, 3, 5, 6))))]
    with pytest.raises(InputError, match="got images of 4 x 6 and images of 5 x 6"):
        type(parts[0]).join(parts)


def test_a_judge_sees_the_picture_itself():
    made = Images(random(2, 3, 5, 7) * torch.tensor([0.2, 1.0]).view(2, 1, 1, 1))
    with serving() as server:
        server.always = lambda handler, body: send(handler, reply(f"{1 + 8 * picture(body).mean() / 255:.0f}"))
        judge = VisionJudge(server.endpoint, "any", workers=1)
        scores = judge(of(made))
        assert scores.tolist() == [2, 5]
        shown = [torch.from_numpy(picture(body)).permute(2, 0, 1) for body in server.seen]
        for found, asked in zip(shown, made.pixels, strict=True):
            assert torch.equal(found, (asked * 255).round().to(torch.uint8))
        assert not any("grid" in body["messages"][0]["content"] for body in server.seen)
        assert judge(of(made.pixels)) is not None
        assert judge.tally.requests == 2  # a tensor with the same pixels is the same question


def test_what_nobody_would_see():
    before = Images(torch.full((1, 3, 16, 16), 0.5))
    spot = before.pixels.clone()
    spot[..., 0, 0] = 1.0
    assert guard.unnoticed([before], [Images(before.pixels + 0.003)]) == "VISIBLE"
    assert guard.unnoticed([before], [before]) == "VISIBLE"
    assert guard.unnoticed([before], [Images(spot)]) is None
    assert guard.unnoticed([before, before], [before, Images(before.pixels + 0.1)]) is None
    assert guard.unnoticed([before], [Images(torch.full((1, 3, 8, 8), 0.5))]) is None
    assert guard.unnoticed([], []) is None
    film = Video(before.pixels[:, None], 2.0)
    assert guard.unnoticed([film], [film]) == "VISIBLE"
    hum = Audio(0.1 * torch.ones(1, 1, 80), 8)
    assert guard.unnoticed([hum], [Audio(hum.waveform * 1.005, 8)]) == "AUDIBLE"
    assert guard.unnoticed([hum], [Audio(hum.waveform * 1.1, 8)]) is None

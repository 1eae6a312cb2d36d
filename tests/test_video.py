"""Video: frames, key frames, grids, and files."""

import importlib.util
import socket
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dragontune.data import Samples
from dragontune.errors import InputError, NonFiniteError
from dragontune.media import video
from dragontune.media.image import images, pixels, png
from dragontune.media.video import Video
from dragontune.rewards.function import Function, SetFunction
from dragontune.testing import check_reward


def clips(n=2, frames=16, height=8, width=12, fps=8.0, seed=0):
    return Video(torch.rand(n, frames, 3, height, width, generator=torch.Generator().manual_seed(seed)), fps)


def counting(frames, size=8):
    """Every frame has its own number as its grey."""
    return Video(torch.arange(frames).view(1, -1, 1, 1, 1).expand(1, frames, 3, size, size) / 255, 8.0)


def test_rows():
    both = Video.join([clips(2), clips(3, seed=1)])
    assert len(both) == 5
    assert both.seconds == 2.0
    last = both[torch.tensor([4])]
    assert torch.equal(last.frames[0], clips(3, seed=1).frames[2])
    assert last.fps == 8.0
    with pytest.raises(ValueError, match="different constants"):
        Video.join([clips(), clips(fps=9.0)])


@pytest.mark.parametrize(
    ("frames", "count", "chosen"),
    [
        (16, 4, [0, 5, 10, 15]),
        (4, 4, [0, 1, 2, 3]),
        (5, 4, [0, 1, 3, 4]),
        (2, 4, [0, 0, 1, 1]),
        (1, 4, [0, 0, 0, 0]),
        (81, 4, [0, 27, 53, 80]),
        (10, 1, [0]),
        (9, 3, [0, 4, 8]),
    ],
)
def test_key_frames(frames, count, chosen):
    found = counting(frames).key_frames(count)
    assert found.shape == (1, count, 3, 8, 8)
    assert (found[0, :, 0, 0, 0] * 255).round().tolist() == chosen


def test_no_key_frames():
    with pytest.raises(InputError, match="count of key frames of 1 or more, got 0"):
        clips().key_frames(0)


def test_a_grid_has_the_first_frame_top_left_and_goes_row_by_row():
    grid = counting(16).grid()
    assert grid.shape == (1, 3, 512, 512)
    quarters = [grid[0, 0, y, x].item() * 255 for y in (128, 384) for x in (128, 384)]
    assert quarters == pytest.approx([0, 5, 10, 15], abs=1e-3)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (8, 12), (300, 200), (1, 1)])
def test_grids_of_any_size_are_square_and_keep_the_items_apart(height, width):
    three = clips(3, 5, height, width)
    grid = three.grid()
    assert grid.shape == (3, 3, 512, 512)
    torch.testing.assert_close(three[torch.tensor([2])].grid()[0], grid[2])
    assert grid.min() >= -1e-6
    assert grid.max() <= 1 + 1e-6
    torch.testing.assert_close(grid.mean((2, 3)), three.key_frames().mean((1, 3, 4)), atol=2e-2, rtol=0)


def test_a_grid_of_frames_of_half_the_size_is_the_frames_themselves():
    four = clips(1, 4, 256, 256)
    grid = four.grid()[0]
    torch.testing.assert_close(grid[:, :256, 256:], four.frames[0, 1])
    torch.testing.assert_close(grid[:, 256:, :256], four.frames[0, 2])


def test_gradients_pass_through_grids():
    one = clips(1, 4)
    frames = one.frames.requires_grad_()
    Video(frames, 8.0).grid().square().mean().backward()
    assert frames.grad is not None
    assert (frames.grad.abs().sum((2, 3, 4)) > 0).all()


@pytest.mark.parametrize(
    ("frames", "fps", "got"),
    [
        (torch.zeros(2, 3, 8, 8), 8.0, r"float32 of shape \(2, 3, 8, 8\)"),
        (torch.zeros(2, 3, 4, 8, 8), 8.0, r"shape \(2, 3, 4, 8, 8\)"),
        (torch.zeros(2, 0, 3, 8, 8), 8.0, r"shape \(2, 0, 3, 8, 8\)"),
        (torch.zeros(2, 4, 3, 8, 0), 8.0, "shape"),
        (torch.zeros(2, 4, 3, 8, 8, dtype=torch.uint8), 8.0, "uint8"),
        (torch.zeros(2, 4, 3, 8, 8), 0.0, "got 0.0"),
        (torch.zeros(2, 4, 3, 8, 8), -8.0, "got -8.0"),
        (torch.zeros(2, 4, 3, 8, 8), float("nan"), "got nan"),
        (torch.zeros(2, 4, 3, 8, 8), float("inf"), "got inf"),
    ],
)
def test_what_is_no_video(frames, fps, got):
    with pytest.raises(InputError, match=got):
        video._check(frames, fps)


def test_videos_are_checked():
    with pytest.raises(InputError, match="positive number of frames a second"):
        Video(torch.zeros(2, 4, 3, 8, 8), 0.0)
    with pytest.raises(InputError, match="expected the frames of clips"):
        Video(torch.zeros(2, 0, 3, 8, 8), 8.0)
    assert len(Video(torch.zeros(0, 4, 3, 8, 8), 8.0)) == 0


def test_pixels_round_and_refuse():
    values = torch.tensor([0.0, 0.5, 1.0, 1.0005, -0.0005]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert pixels(values)[0, 0, :, 0].tolist() == [0, 128, 255, 255, 0]
    for wrong in (1.01, -0.01, 255.0):
        with pytest.raises(InputError, match=r"expected pixels in \[0, 1\], got values from"):
            pixels(torch.full((1, 3, 2, 2), wrong))
    for wrong in (torch.nan, torch.inf):
        with pytest.raises(NonFiniteError):
            pixels(torch.full((1, 3, 2, 2), wrong))


def test_png_is_exact(tmp_path):
    picture = pixels(clips(1, 1).frames[:, 0])
    (tmp_path / "a.png").write_bytes(png(picture[0]))
    assert np.array_equal(np.array(Image.open(tmp_path / "a.png")), picture[0].numpy())
    torch.testing.assert_close(images(picture.numpy()), clips(1, 1).frames[:, 0], atol=0.5 / 255 + 1e-6, rtol=0)


@pytest.mark.parametrize("suffix", [".webp", ".png", ".WEBP"])
@pytest.mark.parametrize("fps", [8.0, 24.0, 29.97])
def test_files_are_exact(tmp_path, suffix, fps):
    one = clips(1, 16, fps=fps)
    one.write(tmp_path / f"a{suffix}")
    again = video.read(tmp_path / f"a{suffix}")
    assert np.array_equal(pixels(again.frames[0]), pixels(one.frames[0]))
    assert again.fps == pytest.approx(fps, rel=2e-3)


def test_frames_that_are_alike_are_all_there(tmp_path):
    frames = clips(1, 4).frames[:, [0, 0, 0, 1, 2, 2, 3, 3]]
    for suffix in (".webp", ".png", ".gif"):
        Video(frames, 24.0).write(tmp_path / f"a{suffix}")
        again = video.read(tmp_path / f"a{suffix}")
        assert again.frames.shape == (1, 8, 3, 8, 12), suffix
        assert again.seconds == pytest.approx(8 / 24, rel=0.03)
        if suffix != ".gif":
            assert np.array_equal(pixels(again.frames[0]), pixels(frames[0]))


def test_gifs_have_few_colours(tmp_path):
    one = counting(10)
    one.write(tmp_path / "a.gif")
    again = video.read(tmp_path / "a.gif")
    assert again.frames.shape == one.frames.shape
    torch.testing.assert_close(again.frames, one.frames, atol=2 / 255, rtol=0)
    assert again.seconds == pytest.approx(one.seconds, rel=0.01)


def test_a_still_picture_is_a_frame(tmp_path):
    (tmp_path / "a.png").write_bytes(png(pixels(clips(1, 1).frames[:, 0])[0]))
    still = video.read(tmp_path / "a.png")
    assert still.frames.shape == (1, 1, 3, 8, 12)
    assert still.seconds == 1.0


def test_transparent_and_grey_pictures_become_red_green_blue(tmp_path):
    for mode in ("L", "RGBA", "P", "1"):
        Image.new(mode, (6, 4), 1).save(tmp_path / "a.png")
        assert video.read(tmp_path / "a.png").frames.shape == (1, 1, 3, 4, 6)


@pytest.mark.parametrize("name", ["a.webp", "a.gif", "a.png"])
@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_files_that_cannot_be_read(tmp_path, name, content):
    if content is None:
        clips(1, 8, 64, 64).write(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        content = content[: len(content) // 2]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"got .*{name}") as caught:
        video.read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_names_that_cannot_be(tmp_path):
    with pytest.raises(InputError, match="which is not there"):
        video.read(tmp_path / "a.webp")
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(InputError, match=r"\.webp, \.gif, \.png, \.mp4"):
        video.read(tmp_path / "a.txt")
    with pytest.raises(InputError, match="expected a name ending in"):
        clips(1).write(tmp_path / "a.avi")
    with pytest.raises(ValueError, match="one clip to write, got 2"):
        clips(2).write(tmp_path / "a.webp")
    with pytest.raises(InputError, match=r"pixels in \[0, 1\]"):
        Video(clips(1).frames * 2, 8.0).write(tmp_path / "a.webp")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_mp4_without_pyav(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"pip install 'dragontune\[video\]'"):
        clips(1).write(tmp_path / "a.mp4")
    (tmp_path / "a.mp4").write_bytes(b"\0" * 99)
    with pytest.raises(InputError, match="expected PyAV"):
        video.read(tmp_path / "a.mp4")


@pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="the extra `video` is not installed")
def test_mp4(tmp_path):
    ramp = torch.linspace(0, 1, 64).expand(12, 3, 64, 64) * torch.linspace(0.3, 1, 12).view(12, 1, 1, 1)
    Video(ramp[None].clone(), 24.0).write(tmp_path / "a.mp4")
    again = video.read(tmp_path / "a.mp4")
    assert again.fps == 24.0
    torch.testing.assert_close(again.frames[0], ramp, atol=0.05, rtol=0)
    with pytest.raises(InputError, match="even height and width"):
        clips(1, 4, 7, 8).write(tmp_path / "b.mp4")
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:300])
    with pytest.raises(InputError, match=r"got .*b\.mp4"):
        video.read(tmp_path / "b.mp4")


@pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="the extra `video` is not installed")
def test_mp4_is_this_file_and_no_other(tmp_path, monkeypatch):
    """FFmpeg takes names for addresses, and files for lists of other files, whatever they end in."""
    monkeypatch.chdir(tmp_path)
    clips(1, 4, 16, 16).write(Path("real.mp4"))
    Path("list.mp4").write_text("ffconcat version 1.0\nfile real.mp4\n")
    Path("concat:real.mp4|real.mp4").write_bytes(b"not a video")
    heard = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=lambda: (listener.accept()[0].close(), heard.set()), daemon=True).start()
        named = Path("http:", f"127.0.0.1:{listener.getsockname()[1]}", "x.mp4")
        named.parent.mkdir(parents=True)
        named.write_bytes(b"not a video")
        for path in (Path("list.mp4"), Path("concat:real.mp4|real.mp4"), named):
            with pytest.raises(InputError, match="expected a readable video"):
                video.read(path)
        assert not heard.wait(0.3)
        socket.create_connection(listener.getsockname()).close()  # so that the thread ends


@pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="the extra `video` is not installed")
def test_damaged_mp4_is_refused_or_read(tmp_path):
    clips(1, 4, 16, 16).write(tmp_path / "real.mp4")
    content, random, refused = (tmp_path / "real.mp4").read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        damaged = bytearray(content)
        for place in random.integers(len(damaged), size=random.choice([1, 3, 20])):
            damaged[place] = random.integers(256)
        (tmp_path / "damaged.mp4").write_bytes(damaged)
        try:
            assert video.read(tmp_path / "damaged.mp4").frames.isfinite().all()
        except InputError:
            refused += 1
    assert 20 < refused < 300


def test_a_plain_function_as_a_reward():
    def brightness(media, prompts):
        assert isinstance(media, Video)
        assert (media.fps, len(prompts)) == (8.0, len(media))
        return media.frames.mean((1, 2, 3, 4))

    two = clips(4)
    samples = Samples(("a", "b", "c", "d"), torch.zeros(4, 2), two)
    check_reward(Function(brightness), samples)
    torch.testing.assert_close(Function(brightness)(samples), two.frames.mean((1, 2, 3, 4)).double())
    check_reward(SetFunction(lambda media, prompts: media.frames.std()), samples)


def test_a_function_cannot_change_the_video():
    def paints(media, prompts):
        media.frames.zero_()
        return [0.0] * len(media)

    two = clips()
    before = two.frames.clone()
    Function(paints)(Samples(("a", "b"), torch.zeros(2, 2), two))
    assert torch.equal(two.frames, before)

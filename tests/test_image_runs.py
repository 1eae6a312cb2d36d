"""The command line on models and folders of images and of video: generate, score, reference, tune, evaluate, report."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from PIL import Image

from dragontune.algorithms.dragon import Dragon
from dragontune.cli import run
from dragontune.data import Rows
from dragontune.evaluation import pictures
from dragontune.generators import pretrained
from dragontune.generators.adapters import Lora
from dragontune.media.image import Images
from dragontune.media.video import Video
from dragontune.media.video import read as read_video
from dragontune.rewards.picture import Brightness
from dragontune.sampling import Sampler
from dragontune.training.listening import Listening
from dragontune.training.loop import Loop
from dragontune.training.run_folder import RunFolder
from paints import FAMILY, save_fakes, save_stills
from tiny_stable_diffusion import save_stable_diffusion

PROMPTS = ("left", "right", "both", "either")


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The models `paints` and `films` in a working directory with prompts."""
    monkeypatch.setitem(pretrained.ADDED, FAMILY.pipeline, FAMILY)
    monkeypatch.chdir(tmp_path)
    save_fakes(tmp_path)
    Path("prompts.txt").write_text("\n".join(PROMPTS) + "\n")


def said(capsys: pytest.CaptureFixture) -> str:
    """The one sentence of a failure."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


RECIPE = {
    "model": "paints",
    "lora": {"rank": 4, "alpha": 4},
    "reward": {"class_path": "Brightness"},
    "algorithm": {"class_path": "Draft", "init_args": {"sampler": {"steps": 4}}},
    "loop": {"rounds": 3, "pairs": 16, "updates": 2, "batch": 16, "lr": 2e-2, "sample_every": 2, "sample_count": 2},
    "prompts": "prompts.txt",
    "evaluation": {
        "prompts": "prompts.txt",
        "count": 4,
        "subset": 2,
        "subsets": 5,
        "scales": [0, 1],
        "players": 2,
        "rewards": {"sharpness": {"class_path": "Sharpness"}},
    },
}


def write_recipe(name: str, **more: object) -> str:
    Path(name).write_text(yaml.safe_dump({**RECIPE, **more}))
    return name


@pytest.mark.parametrize(("model", "suffix"), [("paints", ".png"), ("films", ".webp")])
def test_generate_writes_one_file_an_item(model, suffix, capsys):
    words = ["generate", "--model", model, "--prompts", "prompts.txt", "--steps", "4"]
    assert run([*words, "--out", "out", "--count", "2"]) == 0
    paths = sorted(Path("out").glob(f"*{suffix}"))
    assert [path.name for path in paths] == sorted(
        f"{i:04d}-{prompt}-{n:02d}{suffix}" for i, prompt in enumerate(PROMPTS) for n in (1, 2)
    )
    first = read_video(paths[0]).frames[0] if suffix == ".webp" else Images.read(paths[0]).pixels
    assert first.shape[-3:] == (3, 24, 32) if suffix == ".webp" else (3, 40, 56)
    content = [path.read_bytes() for path in paths]
    assert len(set(content)) == 8
    paths[3].unlink()
    assert run([*words, "--out", "out", "--count", "2"]) == 0
    assert [path.read_bytes() for path in paths] == content

    Path("reward.yaml").write_text("class_path: Brightness\n")
    capsys.readouterr()
    assert run(["score", "out", "--reward", "reward.yaml", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["count"], [row["file"] for row in result["files"]]) == (8, [path.name for path in paths])
    if suffix == ".png":
        weights = torch.tensor([0.2126, 0.7152, 0.0722]).view(3, 1, 1)
        expected = [(Images.read(path).pixels[0] * weights).sum(0).mean().item() for path in paths]
        assert [row["score"] for row in result["files"]] == pytest.approx(expected, abs=1e-5)


def test_generate_steered_pictures(capsys):
    reward = {"class_path": "Brightness"}
    steering = {"class_path": "BestOfN", "init_args": {"reward": reward, "n": 6}}
    Path("steer.yaml").write_text(yaml.safe_dump({"steering": steering}))
    Path("reward.yaml").write_text("class_path: Brightness\n")
    words = ["generate", "--model", "paints", "--prompts", "prompts.txt", "--steps", "4"]
    assert run([*words, "--out", "steered", "--steer", "steer.yaml"]) == 0
    assert run([*words, "--out", "plain"]) == 0
    capsys.readouterr()
    means = []
    for folder in ("plain", "steered"):
        assert run(["score", folder, "--reward", "reward.yaml", "--json"]) == 0
        means.append(json.loads(capsys.readouterr().out)["score"])
    assert means[1] > means[0] + 0.02
    assert "0000-left.png" in Path("steered/scores.csv").read_text()


def test_score_names_what_it_cannot_read(capsys):
    save_stills(Path("stills"), 4, ".jpg", sizes=((12, 16), (9, 30)))
    Path("stills/bad.png").write_text("torn")
    Image.new("1", (9000, 9000)).save("stills/bomb.png")
    Path("reward.yaml").write_text("class_path: Brightness\n")
    assert run(["score", "stills", "--reward", "reward.yaml", "--json"]) == 0
    output = capsys.readouterr()
    assert output.err.count("dragontune: warning: left out: ") == 2
    assert "left out: expected a readable image, got stills/bad.png" in output.err
    assert "left out: expected at most 64 megapixels, got stills/bomb.png" in output.err
    result = json.loads(output.out)
    assert [row["score"] for row in result["files"]] == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=5e-3)
    assert run(["score", "stills", "--reward", "reward.yaml", "--prompts", "prompts.txt"]) == 2
    assert "for each of the 6 images in stills, got 4 in prompts.txt" in said(capsys)
    for path in Path("stills").glob("*.jpg"):
        path.unlink()
    assert run(["score", "stills", "--reward", "reward.yaml"]) == 2
    assert "expected at least one readable image, got none; give" in said(capsys)


def test_mixed_folders_are_one_sentence(capsys):
    save_stills(Path("mixed"), 2)
    soundfile.write("mixed/a.wav", np.zeros(800), 8000)
    for words in (
        ["score", "mixed", "--reward", "reward.yaml"],
        ["reference", "mixed", "--encoder", "encoder.yaml", "--out", "r.safetensors"],
    ):
        Path("reward.yaml").write_text("class_path: Brightness\n")
        Path("encoder.yaml").write_text("class_path: paints.Shades\n")
        assert run(words) == 2
        assert "expected media of one kind in mixed, got images (00.png) and audio (a.wav); put each" in said(capsys)
    assert not Path("r.safetensors").exists()


@pytest.mark.parametrize("name", ["SpectralCentroid", "CleanSound", "Tempo"])
def test_rewards_of_sound_refuse_pictures_with_exit_code_2(name, capsys):
    save_stills(Path("stills"), 2)
    Path("reward.yaml").write_text(f"class_path: {name}\n")
    assert run(["score", "stills", "--reward", "reward.yaml"]) == 2
    assert f"expected audio for {name}, got images; choose" in said(capsys)
    assert (
        run(
            [
                "tune",
                write_recipe("recipe.yaml", reward={"class_path": name}, algorithm={"class_path": "Dragon"}),
                "--out",
                "run",
            ]
        )
        == 2
    )
    assert f"expected audio for {name}, got images; choose" in said(capsys)


def test_encoders_of_sound_refuse_pictures_with_exit_code_2(capsys):
    save_stills(Path("stills"), 3)
    Path("encoder.yaml").write_text("class_path: LogMel\n")
    assert run(["reference", "stills", "--encoder", "encoder.yaml", "--out", "r.safetensors"]) == 2
    assert "expected audio for the encoder log-mel, got images" in said(capsys)


def test_references_of_pictures_and_set_rewards(capsys):
    save_stills(Path("stills"), 6, sizes=((12, 16), (30, 20)))
    Path("encoder.yaml").write_text("class_path: paints.Shades\n")
    assert run(["reference", "stills", "--encoder", "encoder.yaml", "--out", "r.safetensors"]) == 0
    assert "6 items (images), 24 frames, encoder shades" in capsys.readouterr().out
    frechet = {
        "class_path": "SetFrechet",
        "init_args": {"encoder": {"class_path": "paints.Shades"}, "exemplars": "stills"},
    }
    Path("reward.yaml").write_text(yaml.safe_dump(frechet))
    assert run(["score", "stills", "--reward", "reward.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == pytest.approx(0, abs=1e-6)


def shown(page: Path) -> list[tuple[str, Image.Image]]:
    """Captions and pictures of a report."""
    found = re.findall(r'<img class="shown" src="data:image/webp;base64,([^"]+)"[^>]* alt="([^"]*)"', page.read_text())
    return [(caption, Image.open(io.BytesIO(base64.b64decode(content)))) for content, caption in found]


@pytest.mark.parametrize(("model", "suffix"), [("paints", ".png"), ("films", ".webp")])
def test_a_run_on_pictures(model, suffix, capsys):
    assert run(["tune", write_recipe("recipe.yaml", model=model), "--out", "run"]) == 0
    samples = sorted(path.relative_to("run").as_posix() for path in Path("run/samples").rglob("*.*"))
    stems = ("0000-left", "0001-both")
    assert samples == [f"samples/round-{number:06d}/{stem}{suffix}" for number in (0, 2, 3) for stem in stems]
    metrics = json.loads(Path("run/report/metrics.json").read_text())
    assert metrics["rewards"]["target"]["after"] > metrics["rewards"]["target"]["before"]

    page = Path("run/report/index.html")
    text, items = page.read_text(), shown(page)
    assert len(items) == 4
    assert all(getattr(item, "is_animated", False) == (suffix == ".webp") for _, item in items)
    assert {caption.partition(" ")[0] for caption, _ in items} == {"Before", "After"}
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert "<audio" not in text
    assert "<script>" not in text
    assert ">Look<" in text
    assert ">Listen<" not in text
    assert ("Videos play" in text) == (suffix == ".webp")

    assert run(["evaluate", "run", "--out", "again"]) == 0
    assert [caption for caption, _ in shown(Path("again/index.html"))] == [caption for caption, _ in items]
    capsys.readouterr()
    words = ["generate", "--adapter", "run", "--prompt", "left"]
    assert run([*words, "--out", "tuned"]) == 0
    assert Path(f"tuned/0000-left{suffix}").exists()
    assert "VISIBLE" not in capsys.readouterr().err
    assert run([*words, "--out", "weak", "--scale", "0.0001"]) == 0
    assert "warning: THE ADAPTER CHANGES NOTHING VISIBLE: with run the first " in capsys.readouterr().err


def test_tuning_that_nobody_can_see_is_reported(tmp_path: Path):
    generator = pretrained.load("paints", Lora(rank=2), "cpu")
    algorithm = Dragon(generator, Brightness(), sampler=Sampler(steps=2))
    listening = Listening(generator, algorithm.sampler, PROMPTS[:2])
    loop = Loop(rounds=1, pairs=4, updates=1, batch=4, lr=1e-9, sample_every=1)
    with pytest.warns(UserWarning, match="THE TUNING CHANGED NOTHING VISIBLE: after 1 rounds .*one step of 8 bits"):
        loop.run(algorithm, PROMPTS, RunFolder(tmp_path / "run"), listening=listening)


def test_a_steered_model_without_a_run():
    steering = {"class_path": "Svdd", "init_args": {"reward": {"class_path": "Brightness"}, "candidates": 3}}
    sampler = {"steps": 4, "guidance": 1.0, "order": 1, "eta": 1.0}
    evaluation = {**RECIPE["evaluation"], "rewards": {"sharpness": {"class_path": "Sharpness"}}}
    del evaluation["scales"]
    Path("steer.yaml").write_text(yaml.safe_dump({"steering": steering, "sampler": sampler, "evaluation": evaluation}))
    assert run(["evaluate", "--model", "paints", "--steer", "steer.yaml", "--out", "report"]) == 0
    captions = [caption for caption, _ in shown(Path("report/index.html"))]
    assert len(captions) >= 6
    assert any(caption.startswith("Best of 3") for caption in captions)


def random(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def opened(uri: str) -> Image.Image:
    head, _, content = uri.partition(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


@pytest.mark.parametrize(
    ("media", "size", "most"),
    [
        (Images(random(1, 3, 20, 30)), (30, 20), 10_000),
        (Images(random(1, 3, 1200, 800)), (341, 512), 400_000),
        (Video(random(1, 5, 3, 700, 900), 5.0), (512, 398), 1_400_000),
        (Video(random(1, 40, 3, 512, 512), 8.0), (128, 128), 1_400_000),
    ],
    ids=["small", "large", "video", "noisy video"],
)
def test_what_the_page_shows_is_small(media: Rows, size: tuple[int, int], most: int):
    item = pictures.kept(media, 0)
    assert isinstance(item, pictures.Picture)
    uri = pictures.picture_uri(item)
    assert len(uri) <= most
    found = opened(uri)
    assert found.size == size
    if isinstance(media, Images):
        assert item.length == f"{media.size[1]} × {media.size[0]}"
    if isinstance(media, Video):
        assert getattr(found, "n_frames", 1) == media.frames.shape[1]


def test_small_pictures_are_shown_as_they_are():
    made = Images(random(1, 3, 20, 30))
    item = pictures.kept(made, 0)
    assert isinstance(item, pictures.Picture)
    found = np.array(opened(pictures.picture_uri(item)).convert("RGB"))
    assert np.array_equal(found, (made.pixels[0] * 255).round().byte().permute(1, 2, 0).numpy())
    assert pictures.kept(torch.zeros(1, 2), 0) is None


def test_a_run_on_stable_diffusion(tmp_path: Path, capsys):
    save_stable_diffusion(tmp_path / "sd")
    loop = {**RECIPE["loop"], "rounds": 2, "pairs": 4, "batch": 4}
    assert run(["tune", write_recipe("recipe.yaml", model="sd", loop=loop), "--out", "run"]) == 0
    assert len(shown(Path("run/report/index.html"))) == 4
    assert run(["generate", "--adapter", "run", "--prompt", "a fox", "--out", "tuned"]) == 0
    assert Images.read("tuned/0000-a-fox.png").size == (16, 16)
    Path("reward.yaml").write_text("class_path: Sharpness\n")
    capsys.readouterr()
    assert run(["score", "tuned", "--reward", "reward.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["score"] > 0

"""Encoders of checkpoints as users meet them: in rewards, references, recipes, the command line, and their errors."""

import json
import socket
import subprocess
import sys

import pytest
import soundfile
import torch
import yaml
from PIL import Image

import dragontune
from dragontune import cli
from dragontune.data import Samples
from dragontune.encoders import checkpoint
from dragontune.encoders.clip import Clip
from dragontune.encoders.laion_clap import Clap
from dragontune.encoders.mert import Mert
from dragontune.errors import InputError
from dragontune.generators import hub
from dragontune.media.audio import Audio
from dragontune.reference import Reference
from dragontune.rewards.frechet import SetFrechet
from dragontune.rewards.similarity import Similarity
from small_runs import make_workplace
from tiny_encoders import save_audiobox, save_clap, save_clip, save_dinov2, save_mert, save_vggish


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    return Clap(str(save_clap(tmp_path_factory.mktemp("clap"))))


def clips(count: int = 4, seconds: float = 2.0, seed: int = 0) -> Audio:
    wave = 0.2 * torch.randn(count, 1, int(4000 * seconds), generator=torch.Generator().manual_seed(seed))
    return Audio(wave, 4000)


def test_nothing_is_loaded_before_it_is_used():
    code = (
        "import sys; from dragontune import Clap, Clip, Dinov2, Encodec, Mert, Siglip, Vggish, PickScore; "
        "[kind() for kind in (Clap, Clip, Dinov2, Encodec, Mert, Siglip, PickScore)]; Vggish('x'); "
        "assert not any(name.startswith('transformers.models.clap') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_are_at_the_top():
    for name in ("Clap", "Clip", "Siglip", "Dinov2", "Mert", "Encodec", "Vggish", "PickScore", "AudioboxAesthetics"):
        assert getattr(dragontune, name).__name__ == name


def test_as_the_encoder_of_a_reference_and_of_rewards(clap, tmp_path):
    reference = Reference.build(clap, [clips(3), clips(3, seed=1)], "noise")
    assert (reference.items, reference.count, reference.modality) == (6, 12, "audio")
    reference.save(tmp_path / "noise.safetensors")
    samples = Samples(("a jig",) * 4, torch.zeros(4, 2), clips(seed=2))
    reward = SetFrechet(clap, str(tmp_path / "noise.safetensors"))
    assert reward(samples).item() < 0
    captions = Reference.build(clap, ["a jig", "a slow air"], "captions")
    assert Similarity(clap, captions)(samples).shape == (4,)
    with pytest.raises(InputError, match="made by encoder"):
        SetFrechet(Clap(str(save_clap(tmp_path / "other", seed=1))), reference)(samples)


def test_the_global_state_of_torch_is_left_alone(tmp_path):
    folder = save_clap(tmp_path)
    before, dtype = torch.get_rng_state(), torch.get_default_dtype()
    Clap(str(folder)).embed(clips(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == dtype
    assert torch.is_grad_enabled()


def test_digests_tell_weights_settings_and_words_apart(clap, tmp_path):
    assert Clap(str(save_clap(tmp_path / "same"))).digest == clap.digest
    assert Clap(str(save_clap(tmp_path / "seed", seed=1))).digest != clap.digest
    for name, change in (("preprocessor_config.json", {"padding": "repeat"}), ("tokenizer.json", {"version": "2.0"})):
        folder = save_clap(tmp_path / name)
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | change))
        assert checkpoint.contents(folder) != checkpoint.contents(clap.folder)
    folder = save_clap(tmp_path / "newer")
    for name, change in (("config.json", "transformers_version"), ("tokenizer_config.json", "name_or_path")):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | {change: "9.9"}))
    assert Clap(str(folder)).digest == clap.digest


def test_digests_tell_apart_how_texts_are_cut(clap, tmp_path):
    folder, text = save_clap(tmp_path / "shorter"), ["a b c d e f g"]
    content = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(content | {"model_max_length": 3}))
    shorter = Clap(str(folder))
    assert (shorter.embed_text(text).frames - clap.embed_text(text).frames).abs().max() > 1e-4
    assert shorter.digest != clap.digest
    for name in ("special_tokens_map.json", "added_tokens.json"):
        folder = save_clap(tmp_path / name)
        for tokens in ({"mask_token": "<mask>"}, {"mask_token": "<gap>"}):
            before = checkpoint.contents(folder)
            (folder / name).write_text(json.dumps(tokens))
            assert checkpoint.contents(folder) != before


def test_a_hub_name_without_network(monkeypatch):
    def refuse(*_):
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(InputError, match="nobody/no-such-clap-xyz, which is neither here nor to be had from the hub"):
        Clap("nobody/no-such-clap-xyz").embed(clips(1))


def test_the_hub_is_asked_for_a_pickle_only_by_its_name(monkeypatch, tmp_path):
    asked = []

    def download(model, allow_patterns, ignore_patterns):
        asked.append((model, allow_patterns))
        return str(save_mert(tmp_path / str(len(asked))))

    monkeypatch.setattr(hub, "snapshot_download", download)
    Mert("m-a-p/MERT-v1-95M", weights="pytorch_model.bin").embed(clips(1))
    Mert("m-a-p/MERT-v1-95M").embed(clips(1))
    assert "pytorch_model.bin" in asked[0][1]
    assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in asked[1][1])


def test_folders_that_are_none(tmp_path):
    for model in (str(tmp_path / "nowhere"), "just-a-name", "../a/b/c"):
        with pytest.raises(InputError, match="folder of a checkpoint or a hub name"):
            Clap(model).embed(clips(1))
    with pytest.raises(InputError, match=r"config\.json"):
        Clap(str(tmp_path)).embed(clips(1))


def test_torn_other_and_pickled_checkpoints(tmp_path):
    folder = save_clip(tmp_path / "clip")
    for name in ("preprocessor_config.json", "tokenizer.json"):
        (folder / name).rename(folder / f"{name}.kept")
    with pytest.raises(InputError, match="checkpoint of clap, got one of clip"):
        _ = Clap(str(folder)).digest
    with pytest.raises(InputError, match="expected a tokenizer"):
        Clip(str(folder)).embed_text(["a"])
    clap = save_clap(tmp_path / "clap")
    weights = clap / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="complete checkpoint"):
        Clap(str(clap)).embed(clips(1))
    weights.unlink()
    with pytest.raises(InputError, match="in safetensors, got none"):
        Clap(str(clap)).embed(clips(1))


def test_a_pickle_by_its_name(clap, tmp_path):
    folder = save_clap(tmp_path)
    torch.save(clap.network.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    named = Clap(str(folder), weights="pytorch_model.bin")
    torch.testing.assert_close(named.embed(clips(2)).frames, clap.embed(clips(2)).frames)
    assert named.digest == clap.digest


def test_a_tokenizer_whose_package_is_missing(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ImportError("SiglipTokenizer requires the SentencePiece library")

    folder = save_clip(tmp_path)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    with pytest.raises(InputError, match="run `pip install sentencepiece`"):
        Clip(str(folder)).embed_text(["a"])


@pytest.mark.parametrize("form", ["short", "class", "braces", "file"])
def test_reference_on_the_command_line(form, clap, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "songs").mkdir()
    for k, clip in enumerate(clips(3, 1.5).waveform):
        soundfile.write(tmp_path / "songs" / f"{k}.wav", clip[0].numpy(), 4000)
    arguments = {"class_path": "Clap", "init_args": {"model": clap.model}}
    (tmp_path / "encoder.yaml").write_text(yaml.safe_dump(arguments))
    named = {
        "short": f"clap:{clap.model}",
        "class": f"Clap:{clap.model}",
        "braces": f"{{class_path: Clap, init_args: {{model: {clap.model}}}}}",
        "file": "encoder.yaml",
    }[form]
    assert cli.run(["reference", "songs", "--encoder", named, "--out", "songs.safetensors"]) == 0
    assert "3 items (audio), 6 frames, encoder clap" in capsys.readouterr().out
    assert Reference.load("songs.safetensors").encoder_digest == clap.digest


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("clap:nowhere", "folder of a checkpoint"),
        ("{class_path: Clap", "no YAML"),
        ("vggish", "model in encoder"),
        ("clapp:x", "did you mean Clap"),
    ],
)
def test_wrong_encoders_on_the_command_line(named, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "songs").mkdir()
    soundfile.write(tmp_path / "songs" / "a.wav", clips(1).waveform[0, 0].numpy(), 4000)
    assert cli.run(["reference", "songs", "--encoder", named, "--out", "songs.safetensors"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_pictures_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    random = torch.Generator().manual_seed(0)
    for k in range(3):
        pixels = torch.randint(0, 256, (40 + k, 50, 3), generator=random, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "pictures" / f"{k}.png")
    save_dinov2(tmp_path / "dino")
    assert cli.run(["reference", "pictures", "--encoder", "dinov2:dino", "--out", "p.safetensors"]) == 0
    assert "3 items" in capsys.readouterr().out
    save_clip(tmp_path / "clip")
    recipe = {"class_path": "PickScore", "init_args": {"model": "clip"}}
    (tmp_path / "reward.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "words.txt").write_text("a\nb\nc\n")
    arguments = ["score", "pictures", "--reward", "reward.yaml", "--prompts", "words.txt", "--json"]
    assert cli.run(arguments) == 0
    assert len(json.loads(capsys.readouterr().out)["files"]) == 3


def test_a_recipe_with_clap_vggish_and_audiobox(tmp_path, monkeypatch):
    """Tuned for a set reward of CLAP frames and, by gradients, for Audiobox; judged by VGGish too."""
    workplace = make_workplace(tmp_path)
    monkeypatch.chdir(workplace)
    save_clap(workplace / "clap")
    save_vggish(workplace / "vggish.safetensors")
    save_audiobox(workplace / "audiobox")
    recipe = yaml.safe_load((workplace / "recipe.yaml").read_text())
    encoder = {"class_path": "Clap", "init_args": {"model": "clap"}}
    recipe["reward"] = {"class_path": "SetFrechet", "init_args": {"encoder": encoder, "exemplars": "real"}}
    other = {"class_path": "Vggish", "init_args": {"model": "vggish.safetensors"}}
    rewards = {"vggish": {"class_path": "Vendi", "init_args": {"encoder": other}}}
    rewards["audiobox"] = {"class_path": "AudioboxAesthetics", "init_args": {"model": "audiobox", "axis": "CE"}}
    recipe["evaluation"]["rewards"] = rewards
    (workplace / "real.yaml").write_text(yaml.safe_dump(recipe))
    assert cli.run(["tune", "real.yaml", "--loop.rounds", "1"]) == 0
    report = json.loads((workplace / "runs/real/report/metrics.json").read_text())
    assert {"vggish", "audiobox"} <= set(report["rewards"])

"""The worked example of docs/extend.md: it is short, it runs, and it is right."""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from diffusers.models.transformers.auraflow_transformer_2d import AuraFlowTransformer2DModel
from diffusers.pipelines.aura_flow.pipeline_aura_flow import AuraFlowPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from transformers import UMT5Config, UMT5EncoderModel

from dragontune import cli
from dragontune.errors import InputError
from dragontune.generators import pretrained
from dragontune.generators.adapters import Lora
from dragontune.generators.pretrained import load
from dragontune.rewards import source
from dragontune.sampling import Sampler
from dragontune.seeding import Key
from dragontune.testing import check_generator
from tiny_models import WORDS, tokenizer
from tiny_stable_diffusion import image_vae

PROMPTS = ["a reel in G major", "a jig for flute"]
PAGE = Path(__file__).parent.parent / "docs" / "extend.md"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The file of the page, and a folder of the model that it opens."""
    place = tmp_path_factory.mktemp("extend")
    (code,) = re.findall(r"`aura_flow\.py`.*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (place / "aura_flow.py").write_text(code)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = UMT5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        transformer = AuraFlowTransformer2DModel(
            sample_size=8,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pos_embed_max_size=64,
        )
        scheduler = FlowMatchEulerDiscreteScheduler(shift=1.73)
        parts = (tokenizer(), UMT5EncoderModel(text), image_vae(), transformer, scheduler)
        AuraFlowPipeline(*parts).save_pretrained(place / "aura")  # pyright: ignore[reportArgumentType]
    return place


@pytest.fixture
def family(place, monkeypatch):
    monkeypatch.setattr(pretrained, "ADDED", {})
    pretrained.add(source.find(f"{place / 'aura_flow.py'}:FAMILY"))  # pyright: ignore[reportArgumentType]


def test_the_example_is_short(place):
    assert len((place / "aura_flow.py").read_text().splitlines()) <= 60


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_its_sampling_is_the_pipelines(place, family, guidance):
    generator = load(str(place / "aura"), device="cpu")
    sampler = Sampler(steps=6, order=1, guidance=guidance)
    pipeline = AuraFlowPipeline.from_pretrained(place / "aura")
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        PROMPTS,
        height=16,
        width=16,
        num_inference_steps=6,
        guidance_scale=guidance,
        latents=sampler.noise(generator, Key(0), torch.arange(2)),
        output_type="latent",
        return_dict=False,
    )[0]
    ours = sampler.sample(generator, PROMPTS, Key(0), decode=False).latents
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    check_generator(load(str(place / "aura"), Lora(rank=2), device="cpu"), PROMPTS)


def test_a_recipe_tunes_it_and_its_run_generates(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrained, "ADDED", {})
    monkeypatch.chdir(tmp_path)
    recipe = {
        "model": str(place / "aura"),
        "family": "aura_flow.py",  # beside the recipe
        "size": {"height": 32},
        "prompts": "prompts.txt",
        "reward": {
            "class_path": "Vendi",
            "init_args": {"encoder": {"class_path": "Latents", "init_args": {"model": str(place / "aura")}}},
        },
        "algorithm": {"class_path": "Dragon", "init_args": {"sampler": {"steps": 2}, "beta": 50.0}},
        "loop": {"rounds": 1, "pairs": 2, "batch": 2, "updates": 1, "sample_count": 1},
        "lora": {"rank": 2},
    }
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert cli.run(["tune", str(place / "recipe.yaml"), "--out", "run"]) == 0, capsys.readouterr().err
    pretrained.ADDED.clear()
    make = ["generate", "--adapter", "run", "--prompt", "a reel", "--out", "pictures", "--steps", "2"]
    assert cli.run(make) == 2  # a run that was handed on must not name code that is run
    assert "add --family" in capsys.readouterr().err
    assert cli.run([*make, "--family", str(place / "aura_flow.py")]) == 0
    pretrained.ADDED.clear()
    assert cli.run(["generate", "--model", str(place / "aura"), "--prompt", "a", "--out", "more"]) == 2
    said = capsys.readouterr().err
    assert "AuraFlowPipeline" in said
    assert "docs/extend.md" in said
    sys.path[:] = [entry for entry in sys.path if entry != str(place)]


def test_a_family_that_is_none_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.py").write_text("FAMILY = 3\n")
    options = ["generate", "--model", "tiny-music", "--prompt", "a", "--out", "out", "--family"]
    assert cli.run([*options, "wrong.py"]) == 2
    assert "expected a Family" in capsys.readouterr().err
    assert cli.run([*options, "gone.py"]) == 2
    assert "gone.py" in capsys.readouterr().err


def test_a_pipeline_that_is_not_known_is_named_with_those_that_are(place):
    with pytest.raises(InputError, match=r"StableAudioPipeline.*got AuraFlowPipeline.*docs/extend\.md"):
        load(str(place / "aura"), device="cpu")

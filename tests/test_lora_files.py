"""LoRA files of diffusers and of other trainers, as a start: the change they make is exact, whatever their layout."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from dragontune import cli
from dragontune.errors import InputError
from dragontune.generators.adapters import CONFIG_FILE, Lora
from dragontune.generators.lora_files import FILE
from dragontune.generators.pipeline import PipelineGenerator
from dragontune.generators.pretrained import load
from dragontune.seeding import Key
from tiny_stable_diffusion import save_stable_diffusion

pytestmark = pytest.mark.filterwarnings("ignore")
ATTENTION = ("to_q", "to_out.0", "ff.net.2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_stable_diffusion(tmp_path_factory.mktemp("models") / "sd")


def opened(folder: Path, lora: Lora | None = None) -> PipelineGenerator:
    generator = load(str(folder), lora, device="cpu")
    assert isinstance(generator, PipelineGenerator)
    return generator


def estimate(generator: PipelineGenerator) -> torch.Tensor:
    noisy = Key(1).normal(range(2), generator.latent_shape)
    with torch.no_grad():
        return generator.denoise(noisy, torch.full((2,), 0.5), generator.encode_prompts(["a reel", "a jig"]))


def layers(network: nn.Module, convolutions: bool) -> dict[str, Any]:
    return {
        name: module
        for name, module in network.named_modules()
        if (isinstance(module, nn.Linear) and name.endswith(ATTENTION))
        or (convolutions and isinstance(module, nn.Conv2d) and "resnets" in name)
    }


def kohya(folder: Path, file: Path, alphas: list[float | None], convolutions: bool, text: bool) -> PipelineGenerator:
    """A file in kohya's layout, and the model with its changes put into the weights."""
    generator, weights = opened(folder), {}
    for i, (name, module) in enumerate(layers(generator.network, convolutions).items()):
        rank, alpha, key = 2 + 2 * (i % 2), alphas[i % len(alphas)], f"lora_unet_{name.replace('.', '_')}"
        shape = module.weight.shape
        down = 0.3 * Key(i).normal([0], (rank, *shape[1:]))[0]
        up = 0.3 * Key(i).normal([1], (shape[0], rank, *[1] * (len(shape) - 2)))[0]
        weights |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        if alpha is not None:
            weights[f"{key}.alpha"] = torch.tensor(float(alpha))
        change = torch.einsum("or,r...->o...", up.flatten(1), down)
        with torch.no_grad():
            module.weight.add_(change * ((alpha or rank) / rank))
    if text:
        key = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
        weights |= {f"{key}.lora_down.weight": torch.ones(2, 16), f"{key}.lora_up.weight": torch.ones(16, 2)}
        weights[f"{key}.alpha"] = torch.tensor(1.0)
    save_file(weights, file)
    return generator


@pytest.mark.parametrize("alphas", [[1.0], [1.0, 2.0, 3.0], [None], [1.0, None]], ids=str)
@pytest.mark.parametrize(("convolutions", "text"), [(False, False), (True, False), (False, True)])
def test_kohyas_files_change_what_they_say(folder, tmp_path, alphas, convolutions, text):
    """Also with an alpha for each layer, of which diffusers 0.42 itself loses some."""
    merged = kohya(folder, tmp_path / "style.safetensors", alphas, convolutions, text)
    started = opened(folder)
    started.load_adapter(str(tmp_path / "style.safetensors"))
    torch.testing.assert_close(estimate(started), estimate(merged), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(estimate(merged), estimate(opened(folder)), atol=1e-2)


CONFIGS = {
    "plain": LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"]),
    "ranks": LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], rank_pattern={"mid_block.*to_q": 3}),
    "dora": LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], use_dora=True),
    "bias": LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], lora_bias=True),
    "convolutions": LoraConfig(r=2, lora_alpha=2, target_modules=["conv1", "to_k"]),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("metadata", [False, True])
@pytest.mark.parametrize("text", [False, True])
def test_what_diffusers_saves_is_loaded_as_it_loads_it(folder, tmp_path, name, metadata, text):
    """As its training scripts do, with `--train_text_encoder` or without."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder)
    parts: dict[str, nn.Module] = {"unet": pipeline.unet}
    pipeline.unet.add_adapter(CONFIGS[name])
    if text:
        pipeline.text_encoder.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"]))
        parts["text_encoder"] = pipeline.text_encoder
    for part in parts.values():
        with torch.no_grad():
            for i, (key, weight) in enumerate(part.named_parameters()):
                if "lora_" in key and "magnitude" not in key:
                    weight.copy_(0.3 * Key(i).normal([0], weight.shape)[0])
    weights = {f"{part}_lora_layers": get_peft_model_state_dict(module) for part, module in parts.items()}
    said = _collate_lora_metadata(parts) if metadata else {}
    StableDiffusionPipeline.save_lora_weights(str(tmp_path), **weights, **said)
    expected = opened(folder)
    plain: Any = expected.pipeline
    plain.load_lora_weights(str(tmp_path))
    plain.text_encoder.disable_adapters() if text else None
    started = opened(folder)
    started.load_adapter(str(tmp_path))
    torch.testing.assert_close(estimate(started), estimate(expected), atol=1e-5, rtol=1e-5)
    started.save_adapter(str(tmp_path / "saved"))  # and out again
    again = opened(folder)
    again.pipeline.load_lora_weights(str(tmp_path / "saved"))
    torch.testing.assert_close(estimate(again), estimate(expected), atol=1e-5, rtol=1e-5)


def test_a_run_is_a_start(folder, tmp_path):
    tuned = opened(folder, Lora(rank=2))
    with torch.no_grad():
        for weight in tuned.parameters():
            weight.add_(0.1)
    tuned.save_adapter(str(tmp_path / "run" / "adapter"))
    started = opened(folder)
    started.load_adapter(str(tmp_path / "run"))
    assert torch.equal(estimate(started), estimate(tuned))


def test_pickles_are_refused(folder, tmp_path):
    (tmp_path / "style.bin").write_bytes(b"anything")
    for source in (tmp_path, tmp_path / "style.bin"):
        with pytest.raises(InputError, match=r"in safetensors, got .*style\.bin"):
            opened(folder).load_adapter(str(source))


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 64])
def test_a_torn_file_is_named(folder, tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(InputError, match=FILE):
        opened(folder).load_adapter(str(tmp_path))


def test_weights_that_are_no_lora_are_refused(folder, tmp_path):
    save_file({"unet.conv_in.weight": torch.zeros(2, 2)}, tmp_path / FILE)
    with pytest.raises(InputError, match="expected a LoRA for this model"):
        opened(folder).load_adapter(str(tmp_path))
    save_file({"text_encoder.q_proj.lora_A.weight": torch.zeros(2, 2)}, tmp_path / FILE)
    with pytest.raises(InputError, match="expected a LoRA for this model"):
        opened(folder).load_adapter(str(tmp_path))


RECIPE = """
model: {folder}
start: style.safetensors
reward: Brightness
algorithm: {{class_path: Draft, init_args: {{sampler: {{steps: 2}}}}}}
prompts: prompts.txt
loop: {{rounds: 2, pairs: 2, batch: 2, updates: 1, sample_every: 0}}
evaluation: {{prompts: prompts.txt, count: 2, subset: 1, players: 1}}
"""


def test_a_run_keeps_the_start_that_it_had(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kohya(folder, tmp_path / "style.safetensors", [1.0, 2.0], False, False)
    Path("prompts.txt").write_text("a reel\na jig\n")
    Path("recipe.yaml").write_text(RECIPE.format(folder=folder))
    assert cli.run(["tune", "recipe.yaml", "--out", "run", "--loop.rounds", "1"]) == 0, capsys.readouterr().err
    Path("style.safetensors").unlink()
    assert cli.run(["tune", "recipe.yaml", "--out", "run", "--resume"]) == 0, capsys.readouterr().err
    assert (tmp_path / "run" / "adapter" / CONFIG_FILE).is_file()
    assert cli.run(["evaluate", "run", "--out", "report"]) == 0, capsys.readouterr().err
    assert cli.run(["tune", "recipe.yaml", "--out", "other"]) == 2
    assert "style.safetensors" in capsys.readouterr().err


def test_generate_takes_a_file_and_mixes_it(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kohya(folder, tmp_path / "style.safetensors", [1.0], False, False)
    options = ["generate", "--model", str(folder), "--prompt", "a reel", "--steps", "2", "--adapter"]
    assert cli.run([*options, "style.safetensors", "--out", "one"]) == 0, capsys.readouterr().err
    assert cli.run([*options, "style.safetensors:0.5", "style.safetensors:0.5", "--out", "two"]) == 0
    assert len(list(Path("one").glob("*.png"))) == len(list(Path("two").glob("*.png"))) == 1

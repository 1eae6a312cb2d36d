"""Checkpoints of encoders of the real classes with tiny random weights, for tests."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    EncodecConfig,
    EncodecFeatureExtractor,
    EncodecModel,
    HubertConfig,
    HubertModel,
    RobertaTokenizer,
    SiglipConfig,
    SiglipModel,
    WavLMConfig,
    WavLMModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from dragontune.encoders.audiobox import AXES
from dragontune.encoders.vggish import VggishNetwork
from tiny_models import tokenizer as words

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
CLIP_WORDS = {token: i for i, token in enumerate([*LETTERS, *(f"{x}</w>" for x in LETTERS), "<|startoftext|>"])}
CLIP_WORDS |= {"<|endoftext|>": len(CLIP_WORDS)}
ROBERTA_WORDS = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *LETTERS, "<mask>"])}


def seeded(make: Any, seed: int) -> Any:
    """A network with weights that differ from 0 everywhere, so that nothing is equal by chance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make()
        for name, value in network.named_buffers():
            if "running" in name:  # of a batch norm
                torch.nn.init.uniform_(value, 0.5, 1.5)
        for name, weight in network.named_parameters():
            if weight.ndim == 1 and "logit_scale" not in name:
                torch.nn.init.normal_(weight, 1.0 if "norm" in name and "weight" in name else 0.0, 0.1)
    return network.eval()


def save_clap(folder: Path, seed: int = 0, fusion: bool = False) -> Path:
    """16 mel bands of 0.64 s at 4 kHz."""
    config = ClapConfig(
        text_config={
            "vocab_size": len(ROBERTA_WORDS),
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": 34,
        },
        audio_config={
            "window_size": 2,
            "num_mel_bins": 16,
            "spec_size": 32,
            "patch_size": 4,
            "patch_stride": [4, 4],
            "depths": [1, 1],
            "num_attention_heads": [1, 2],
            "patch_embeds_hidden_size": 8,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "enable_fusion": fusion,
            "fusion_type": "aff_2d" if fusion else None,
        },
        projection_dim=8,
    )
    seeded(lambda: ClapModel(config), seed).save_pretrained(folder)
    clap_sound(fusion).save_pretrained(folder)
    RobertaTokenizer(vocab=ROBERTA_WORDS, merges=[], model_max_length=32).save_pretrained(folder)
    return folder


def clap_sound(fusion: bool = False) -> ClapFeatureExtractor:
    return ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=4000,
        hop_length=64,
        max_length_s=1,
        fft_window_size=256,
        frequency_min=50,
        frequency_max=1900,
        truncation="fusion" if fusion else "rand_trunc",
        padding="repeatpad",
    )


def save_clip(folder: Path, seed: int = 0) -> Path:
    """Pictures of 32 x 32 pixels in patches of 8."""
    tower = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": len(CLIP_WORDS),
            "max_position_embeddings": 24,
            "bos_token_id": CLIP_WORDS["<|startoftext|>"],
            "eos_token_id": CLIP_WORDS["<|endoftext|>"],
            "pad_token_id": CLIP_WORDS["<|endoftext|>"],
        },
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    seeded(lambda: CLIPModel(config), seed).save_pretrained(folder)
    clip_pictures().save_pretrained(folder)
    CLIPTokenizer(vocab=CLIP_WORDS, merges=[], model_max_length=24).save_pretrained(folder)
    return folder


def clip_pictures() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def save_siglip(folder: Path, seed: int = 0) -> Path:
    tower = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = SiglipConfig(
        text_config={**tower, "vocab_size": 32, "max_position_embeddings": 8, "projection_size": 16},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
    )
    seeded(lambda: SiglipModel(config), seed).save_pretrained(folder)
    siglip_pictures().save_pretrained(folder)
    words(8).save_pretrained(folder)
    return folder


def siglip_pictures() -> SiglipImageProcessorPil:
    return SiglipImageProcessorPil(size={"height": 32, "width": 32})


def save_dinov2(folder: Path, seed: int = 0) -> Path:
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    seeded(lambda: Dinov2Model(config), seed).save_pretrained(folder)
    dino_pictures().save_pretrained(folder)
    return folder


def dino_pictures() -> BitImageProcessorPil:
    return BitImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 28, "width": 28},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )


SPEECH = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}


def save_mert(folder: Path, seed: int = 0, normalise: bool = True, **settings: Any) -> Path:
    """As on the hub: a `mert_model` with a preprocessor, its weights in a pickle beside the safetensors."""
    network = seeded(lambda: HubertModel(HubertConfig(**SPEECH)), seed)
    folder.mkdir(parents=True, exist_ok=True)
    config = network.config.to_dict() | {"model_type": "mert_model", "deepnorm": False, "attention_relax": -1.0}
    (folder / "config.json").write_text(json.dumps(config | {"feature_extractor_cqt": False} | settings))
    sound = {"sampling_rate": 24000, "do_normalize": normalise, "feature_size": 1, "padding_value": 0.0}
    (folder / "preprocessor_config.json").write_text(json.dumps(sound))
    state = {
        name.replace("parametrizations.weight.original0", "weight_g"): v for name, v in network.state_dict().items()
    }
    state = {name.replace("parametrizations.weight.original1", "weight_v"): v for name, v in state.items()}
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def mert_twin(seed: int = 0) -> HubertModel:
    return seeded(lambda: HubertModel(HubertConfig(**SPEECH)), seed)


def save_encodec(folder: Path, seed: int = 0, stereo: bool = False) -> Path:
    """24 kHz mono, or 48 kHz stereo in chunks of 0.05 s with levels."""
    chunks = {"normalize": True, "chunk_length_s": 0.05, "overlap": 0.01} if stereo else {}
    config = EncodecConfig(
        sampling_rate=48000 if stereo else 24000,
        audio_channels=2 if stereo else 1,
        num_filters=4,
        hidden_size=8,
        codebook_dim=8,
        codebook_size=16,
        upsampling_ratios=[5, 4, 4],
        num_lstm_layers=1,
        use_causal_conv=not stereo,
        norm_type="time_group_norm" if stereo else "weight_norm",
        **chunks,
    )
    seeded(lambda: EncodecModel(config), seed).save_pretrained(folder)
    EncodecFeatureExtractor(
        feature_size=2 if stereo else 1,
        sampling_rate=config.sampling_rate,
        chunk_length_s=config.chunk_length_s,
        overlap=config.overlap,
    ).save_pretrained(folder)
    return folder


def save_vggish(path: Path, seed: int = 0) -> Path:
    """A quarter of the layers' widths and less; a file whose suffix says what it is."""
    network = seeded(lambda: VggishNetwork((4, 8, 12, 16), 24, 10), seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(2)  # as drawn, hardly anything comes through
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pth":
        torch.save(network.state_dict(), path)
    else:
        save_file(network.state_dict(), path)
    return path


def save_audiobox(folder: Path, seed: int = 0) -> Path:
    """As released: the names of WavLM's authors, one head an axis, the settings in `config.json`."""
    trunk = seeded(lambda: WavLMModel(WavLMConfig(**SPEECH)), seed)
    state = {f"wavlm_model.{_as_released(name)}": value for name, value in trunk.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        for axis in AXES:
            state[f"layer_weights.{axis}"] = torch.randn(3)
            for name, shape in {"0": (16, 16), "1": (16,), "3": (1, 16)}.items():
                state[f"proj_layer.{axis}.{name}.weight"] = torch.randn(shape)
                state[f"proj_layer.{axis}.{name}.bias"] = torch.randn(shape[0])
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    target = {axis: {"mean": 5.0 + k, "std": 1.0 + k / 4} for k, axis in enumerate(AXES)}
    settings = {"proj_num_layer": 2, "proj_ln": True, "proj_act_fn": "gelu", "proj_dropout": 0.0, "nth_layer": 3}
    settings |= {"use_weighted_layer_sum": True, "normalize_embed": True, "target_transform": target}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def _as_released(name: str) -> str:
    if name == "masked_spec_embed":
        return "mask_emb"
    for other, own in (
        ("conv_layers.0.layer_norm.", "conv_layers.0.2."),
        (".conv.weight", ".0.weight"),
        ("feature_projection.layer_norm.", "layer_norm."),
        ("feature_projection.projection.", "post_extract_proj."),
        ("pos_conv_embed.conv.parametrizations.weight.original0", "pos_conv.0.weight_g"),
        ("pos_conv_embed.conv.parametrizations.weight.original1", "pos_conv.0.weight_v"),
        ("pos_conv_embed.conv.bias", "pos_conv.0.bias"),
        ("attention.gru_rel_pos_const", "self_attn.grep_a"),
        ("attention.gru_rel_pos_linear", "self_attn.grep_linear"),
        ("attention.rel_attn_embed", "self_attn.relative_attention_bias"),
        (".attention.", ".self_attn."),
        ("feed_forward.intermediate_dense", "fc1"),
        ("feed_forward.output_dense", "fc2"),
    ):
        name = name.replace(other, own)
    parts = name.split(".")
    if parts[:2] == ["encoder", "layers"] and parts[3] == "layer_norm":
        parts[3] = "self_attn_layer_norm"
    return ".".join(parts)

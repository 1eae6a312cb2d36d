"""A byte-level BPE tokenizer for captions: small, and no text is foreign to it."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from music import Facts, caption

LENGTH = 32


class Words:
    """Texts to padded token ids and masks, by the tokenizer that ships."""

    def __init__(self, build: Path, facts: list[Facts]) -> None:
        file = build / "tokenizer.json"
        if not file.exists():
            rng = random.Random(2)
            texts = [caption(f, rng, rng.random() > 0.15) for f in facts if f.split == "train" for _ in range(3)]
            tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
            tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
            tokenizer.decoder = decoders.ByteLevel()
            trainer = trainers.BpeTrainer(
                vocab_size=768,
                special_tokens=["<pad>", "</s>", "<unk>"],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            )
            tokenizer.train_from_iterator(texts, trainer)
            tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
            tokenizer.save(str(file))
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(file), pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=LENGTH
        )
        self.size = 768

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask (n, tokens)."""
        batch = self.tokenizer(list(texts), padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        return batch["input_ids"], batch["attention_mask"].to(torch.long)

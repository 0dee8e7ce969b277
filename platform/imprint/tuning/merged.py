"""A pipeline that holds a concept: its weights added to the backbone's, its words in the tokenizers."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imprint.backbone import Backbone
from imprint.backbone.saving import save_pipeline
from imprint.methods.low_rank import merged_weights
from imprint.methods.portable import Portable
from imprint.methods.shells import shell, trainable_parts
from imprint.methods.weight_deltas import add_deltas


def save_merged(backbone: Backbone, portable: Portable, folder: Path) -> None:
    """Write the backbone with a concept merged into it as a diffusers folder, with `trigger.json` beside the parts.

    Raises:
        ConceptError: the concept does not fit the backbone.
        OSError: the disk is full or may not be written.
    """
    save_pipeline(merged_backbone(backbone, portable), folder)
    (folder / "trigger.json").write_text(json.dumps({"triggers": list(portable.triggers)}, indent=1) + "\n")


def merged_backbone(backbone: Backbone, portable: Portable) -> Backbone:
    """The backbone with a concept's weights and words; everything else is shared.

    Raises:
        ConceptError: the concept does not fit the backbone.
    """
    # Factors and whole changes of one weight add up: factors are merged on top of what the changes made.
    changed = shell(backbone, add_deltas(backbone, portable.deltas, trainable_parts(backbone)))
    merged = shell(changed, merged_weights(changed, portable.lora))
    if not portable.words:
        return merged
    encoders, tokenizers = [], []
    for number, (encoder, tokenizer) in enumerate(zip(merged.text_encoders, merged.tokenizers, strict=True)):
        own = {trigger: vectors[number] for trigger, vectors in portable.words.items()}
        wider, taught = with_words(encoder, tokenizer, own)
        encoders.append(wider)
        tokenizers.append(taught)
    return dataclasses.replace(merged, text_encoders=tuple(encoders), tokenizers=tuple(tokenizers))


@torch.no_grad()
def with_words(encoder: nn.Module, tokenizer: Any, words: Mapping[str, Tensor]) -> tuple[nn.Module, Any]:
    """Copies of a text encoder and its tokenizer that know more words.

    A word of several positions becomes several tokens, WORD, WORD_1, WORD_2, ..., which diffusers' pipelines put where
    a prompt says WORD, as for embeddings that `load_textual_inversion` read.
    """
    encoder, tokenizer = copy.deepcopy(encoder), copy.deepcopy(tokenizer)
    rows = {
        word if number == 0 else f"{word}_{number}": vector
        for word, vectors in words.items()
        for number, vector in enumerate(vectors)
    }
    tokenizer.add_tokens(list(rows))
    # The rows before keep their values; the mean that others would start from is overwritten at once.
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = encoder.get_input_embeddings().weight
    for token, vector in rows.items():
        table[tokenizer.convert_tokens_to_ids(token)] = vector.to(table)
    _pool_at_end(encoder, tokenizer)
    return encoder, tokenizer


def _pool_at_end(encoder: nn.Module, tokenizer: Any) -> None:
    """CLIP's old configs say end token 2, which makes transformers pool at the largest id: now a new word's."""
    for module in encoder.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = tokenizer.eos_token_id
    encoder.config.eos_token_id = tokenizer.eos_token_id

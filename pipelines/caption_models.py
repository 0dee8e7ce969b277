"""Captioners that run a model: zero-shot phrases of CLIP, and any image-to-text model of transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from imprint.errors import DataError
from imprint.features.clip import ClipFeatures
from imprint.pipelines.captions import Columns
from imprint.training.batches import to_pixel_values

# Zero-shot groups: at most one phrase of each is taken. None of them says who the subject is.
PHRASES: Mapping[str, Sequence[str]] = {
    "background": tuple(
        f"on a {colour} background"
        for colour in ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "gray", "black", "brown")
    ),
    "expression": ("smiling", "laughing", "sad", "serious", "screaming", "with closed eyes", "winking"),
    "glasses": ("with round glasses", "with glasses", "with sunglasses", "without glasses"),
}
_UNSAID = frozenset({"without glasses"})  # an alternative that CLIP may choose, but no caption mentions
_LOGIT_SCALE = 100.0  # CLIP's own temperature at the end of its training, arXiv:2103.00020 section 2.5
_CONFIDENT = 0.5


def zero_shot_phrases(
    images: Float[Tensor, "b d"], phrases: Sequence[str], texts: Float[Tensor, "p d"]
) -> list[str | None]:
    """For each picture the phrase with more than half of the softmax over the group, or None.

    `images` and `texts` are normalised CLIP embeddings.
    """
    share, best = (_LOGIT_SCALE * images @ texts.T).softmax(dim=1).max(dim=1)
    return [phrases[i] if s > _CONFIDENT else None for i, s in zip(best.tolist(), share.tolist(), strict=True)]


class ClipCaptioner:
    """`<class noun>, <phrase>, <phrase>`: one zero-shot phrase a group, where CLIP is sure of it."""

    def __init__(self, clip: ClipFeatures, groups: Mapping[str, Sequence[str]] = PHRASES) -> None:
        self.clip = clip
        self.groups = {
            name: (phrases, clip.encode_text([f"a person {phrase}" for phrase in phrases]))
            for name, phrases in groups.items()
        }

    @torch.no_grad()
    def contexts(self, images: UInt8[np.ndarray, "b h w 3"]) -> list[str]:
        """Comma-separated phrases for each picture."""
        embedded = self.clip.encode_image(to_pixel_values(images).to(self.clip.device))
        chosen = [zero_shot_phrases(embedded, phrases, texts) for phrases, texts in self.groups.values()]
        return [
            ", ".join(phrase for phrase in row if phrase and phrase not in _UNSAID) for row in zip(*chosen, strict=True)
        ]

    def __call__(self, batch: Columns) -> tuple[list[str], list[str]]:
        contexts = self.contexts(np.stack(list(batch["image"])))
        nouns = [json.loads(document).get("class_noun", "") for document in batch["json"]]
        captions = [
            ", ".join(part for part in (f"a {noun}" if noun else "a picture", context) if part)
            for noun, context in zip(nouns, contexts, strict=True)
        ]
        return captions, contexts


class TransformersCaptioner:
    """An image-to-text model of transformers (BLIP, GIT and others) from a local folder or hub id, safetensors only."""

    def __init__(self, model: str, max_new_tokens: int, device: str) -> None:
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

        try:
            self.processor = AutoProcessor.from_pretrained(model)
            try:
                self.model = AutoModelForImageTextToText.from_pretrained(model, use_safetensors=True)
            except ValueError:  # GIT is registered as a causal language model
                self.model = AutoModelForCausalLM.from_pretrained(model, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise DataError(
                f"loading the captioner {model}: {error}; expected a transformers image-to-text model with safetensors"
            ) from error
        self.model.to(device).eval()
        self.max_new_tokens, self.device = max_new_tokens, device

    @torch.no_grad()
    def __call__(self, batch: Columns) -> tuple[list[str], list[str]]:
        inputs = self.processor(images=list(batch["image"]), return_tensors="pt").to(self.device)
        tokens = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        captions = [text.strip() for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]
        return captions, [""] * len(captions)

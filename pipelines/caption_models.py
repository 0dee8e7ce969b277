"""Captioners that run a model: zero-shot phrases of CLIP, an attribute reader, image-to-text models of transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from imprint.config.data import CaptionerSpec
from imprint.errors import DataError
from imprint.evaluation.attributes import AttributeReader
from imprint.features.clip import ClipFeatures
from imprint.pipelines.attribute_phrases import attribute_phrases
from imprint.pipelines.captions import Columns, Written
from imprint.pipelines.shapes import by_shape
from imprint.training.batches import to_pixel_values

# Zero-shot groups: at most one phrase of each is taken.
PHRASES: Mapping[str, Sequence[str]] = {
    "background": tuple(
        f"on a {colour} background"
        for colour in ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "gray", "black", "brown")
    ),
    "expression": ("smiling", "laughing", "sad", "serious", "screaming", "with closed eyes", "winking"),
    "glasses": ("with round glasses", "with glasses", "with sunglasses", "without glasses"),
    "hair": tuple(f"with {colour} hair" for colour in ("black", "brown", "blond", "red", "silver", "pink")),
    "facial_hair": ("with a beard", "with a moustache", "without a beard"),
}
# What an embedded CLIP reads right: on 400 held-out faces the background 0.99, hair 0.41, glasses 0.38, others less.
RELIABLE: Mapping[str, Sequence[str]] = {"imprint-tiny-clip": ("background",)}
NOUNS = ("person", "man", "animal", "plant", "food", "vehicle", "building", "tool")
_UNSAID = "without "  # an alternative that CLIP may choose, but no caption mentions
_UNKNOWN = "picture"
_LOGIT_SCALE = 100.0  # CLIP's own temperature at the end of its training, arXiv:2103.00020 section 2.5
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TASKS = {"florence2": "<CAPTION>"}  # families whose models do nothing without being told what


def zero_shot_phrases(
    images: Float[Tensor, "b d"], phrases: Sequence[str], texts: Float[Tensor, "p d"], confidence: float = 0.5
) -> list[str | None]:
    """For each picture the phrase with more than `confidence` of the softmax over the group, or None.

    `images` and `texts` are normalised CLIP embeddings.
    """
    share, best = (_LOGIT_SCALE * images @ texts.T).softmax(dim=1).max(dim=1)
    return [phrases[i] if s > confidence else None for i, s in zip(best.tolist(), share.tolist(), strict=True)]


def default_phrases(clip: str) -> Mapping[str, Sequence[str]]:
    """The zero-shot groups that a CLIP of this name is asked where a job file has none."""
    return {name: PHRASES[name] for name in RELIABLE.get(clip, PHRASES)}


class ClipCaptioner:
    """`a <class noun>`, and one zero-shot phrase a group where CLIP is sure of it.

    The noun is the one that the sample's json names as `class_noun`, else the likeliest of `nouns`.
    """

    def __init__(
        self,
        clip: ClipFeatures,
        spec: CaptionerSpec | None = None,
        *,
        coarse: bool = True,
        fine: bool = True,
    ) -> None:
        self.clip, self.spec, self.coarse = clip, spec or CaptionerSpec(kind="clip"), coarse
        nouns = self.spec.nouns or NOUNS
        self.nouns = (nouns, clip.encode_text([f"a picture of {_with_article(noun)}" for noun in nouns]))
        subject = _with_article(self.spec.subject)
        groups = (self.spec.phrases or default_phrases(clip.name)) if fine else {}
        self.groups = {
            name: (phrases, clip.encode_text([f"{subject} {phrase}" for phrase in phrases]))
            for name, phrases in groups.items()
        }

    @classmethod
    def load(cls, spec: CaptionerSpec, name: str, *, coarse: bool = True, fine: bool = True) -> ClipCaptioner:
        """With the CLIP of that name.

        Raises:
            BackboneError: it cannot be loaded.
        """
        return cls(ClipFeatures.load(name, device=spec.device), spec, coarse=coarse, fine=fine)

    @torch.no_grad()
    def embed(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> Float[Tensor, "b d"]:
        """Joint embeddings of pictures of any sizes, in their order."""
        found: dict[int, Tensor] = {}
        for places, stack in by_shape(images, self.spec.batch_size):
            found |= dict(zip(places, self.clip.encode_image(to_pixel_values(stack)), strict=True))
        return torch.stack([found[i] for i in range(len(images))])

    def __call__(self, batch: Columns) -> list[Written]:
        nouns = [str(json.loads(document).get("class_noun", "")) for document in batch["json"]]
        if not self.groups and all(nouns):
            return [Written(coarse=_with_article(noun)) for noun in nouns]
        embedded = self.embed(batch["image"])
        if self.coarse and not all(nouns):
            seen = zero_shot_phrases(embedded, *self.nouns, self.spec.confidence)
            nouns = [own or found or _UNKNOWN for own, found in zip(nouns, seen, strict=True)]
        said = {
            name: zero_shot_phrases(embedded, phrases, texts, self.spec.confidence)
            for name, (phrases, texts) in self.groups.items()
        }
        return [
            Written(
                _with_article(noun) if self.coarse else "",
                self._joined(said, i, identity=True),
                self._joined(said, i, identity=False),
            )
            for i, noun in enumerate(nouns)
        ]

    def _joined(self, said: Mapping[str, list[str | None]], i: int, *, identity: bool) -> str:
        phrases = [found[i] for name, found in said.items() if (name in self.spec.identity) == identity]
        return ", ".join(phrase for phrase in phrases if phrase and not phrase.startswith(_UNSAID))


class AttributeCaptioner:
    """Fine phrases f_a of an attribute reader, where it is sure."""

    def __init__(self, reader: AttributeReader, spec: CaptionerSpec) -> None:
        self.reader, self.spec = reader, spec

    @classmethod
    def load(cls, spec: CaptionerSpec) -> AttributeCaptioner:
        """With the reader that the spec names, or the embedded one of faces.

        Raises:
            BackboneError: it cannot be loaded.
        """
        reader = AttributeReader.load(spec.fine_model or "face-attributes")
        reader.net.to(spec.device)
        return cls(reader, spec)

    def __call__(self, batch: Columns) -> list[Written]:
        found: dict[int, Written] = {}
        for places, stack in by_shape(batch["image"], self.spec.batch_size):
            pixels = to_pixel_values(stack).to(self.spec.device)
            read = self.reader.read_sure(pixels, self.spec.confidence)
            for row, place in enumerate(places):
                values = {name: column[row] for name, column in read.items()}
                found[place] = attribute_phrases(values, self.spec.identity)
        return [found[i] for i in range(len(batch["image"]))]


class TransformersCaptioner:
    """An image-to-text model of transformers (BLIP, BLIP-2, GIT, Florence-2 and others): a local folder or hub id.

    Weights are safetensors and no code comes with them. A prompt is read before the caption and left out of it.
    """

    def __init__(self, spec: CaptionerSpec) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        try:
            self.processor = AutoProcessor.from_pretrained(spec.model, trust_remote_code=False)
            self.model = AutoModelForImageTextToText.from_pretrained(
                spec.model, use_safetensors=True, trust_remote_code=False, dtype=_PRECISIONS[spec.precision]
            )
        except Exception as error:  # of many kinds, for folders that lack a file or are of no known class
            raise DataError(
                f"loading the captioner {spec.model}: {_first_line(error)}; expected an image-to-text model of "
                "transformers, with its processor and safetensors"
            ) from error
        self.model.to(spec.device).eval()
        self.spec = spec
        self.prompt = spec.prompt or _TASKS.get(self.model.config.model_type, "")
        if hasattr(self.processor, "tokenizer"):
            self.processor.tokenizer.padding_side = "left"

    def __call__(self, batch: Columns) -> list[Written]:
        images = list(batch["image"])
        size = self.spec.batch_size
        parts = [self.describe(images[start : start + size]) for start in range(0, len(images), size)]
        return [Written(coarse=text) for part in parts for text in part]

    @torch.no_grad()
    def describe(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> list[str]:
        """A caption for each picture, by greedy or beam search."""
        inputs = self._inputs(images)
        tokens = self.model.generate(
            **inputs, max_new_tokens=self.spec.max_new_tokens, num_beams=self.spec.beams, do_sample=False
        )
        given = inputs.get("input_ids")
        if given is not None and torch.equal(
            tokens[:, : given.shape[1]], given
        ):  # decoders repeat what they were given
            tokens = tokens[:, given.shape[1] :]
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return [text.strip().removeprefix(self.prompt.lower()).removeprefix(self.prompt).strip() for text in texts]

    def _inputs(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> dict[str, Any]:
        prompts = [self.prompt] * len(images) if self.prompt else None
        inputs = self.processor(images=list(images), text=prompts, return_tensors="pt")
        if self.model.config.model_type == "git" and prompts:
            # GIT goes on after [CLS] prompt; its tokenizer would end the text with [SEP].
            tokenizer = self.processor.tokenizer
            ids = [tokenizer.cls_token_id, *tokenizer(self.prompt, add_special_tokens=False)["input_ids"]]
            inputs["input_ids"] = torch.tensor([ids] * len(images))
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            inputs.pop("token_type_ids", None)
        return dict(inputs.to(self.spec.device, _PRECISIONS[self.spec.precision]))


def _with_article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

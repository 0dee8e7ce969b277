"""Captioners: what is kept, what is replaced, and zero-shot phrases against a computation by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from imprint.config.data import CaptionerSpec
from imprint.errors import DataError
from imprint.features.clip import ClipFeatures
from imprint.pipelines.caption_models import PHRASES, ClipCaptioner, TransformersCaptioner, zero_shot_phrases
from imprint.pipelines.captions import CaptionStage, Columns, caption_rows, load_captioner


def batch(captions: list[str]) -> Columns:
    generator = np.random.default_rng(0)
    documents = [json.dumps({"class_noun": "person", "caption_context": f"own {i}"}) for i in range(len(captions))]
    return {
        "image": generator.integers(0, 255, (len(captions), 16, 16, 3), np.uint8),
        "caption": np.array(captions),
        "json": np.array(documents),
    }


def test_keep_takes_the_samples_own_words() -> None:
    found = CaptionStage(CaptionerSpec(kind="keep"))(batch(["a", "", "c"]))
    assert found["caption"].tolist() == ["a", "", "c"]
    assert found["context"].tolist() == ["own 0", "own 1", "own 2"]


def test_a_sample_without_json_has_no_context() -> None:
    rows = {**batch(["a"]), "json": np.array(["{}"])}
    assert caption_rows(rows, None, missing_only=True)["context"].tolist() == [""]


@pytest.mark.parametrize(("missing_only", "expected"), [(True, "a,new 1,c"), (False, "new 0,new 1,new 2")])
def test_a_captioner_sees_the_samples_that_want_one(missing_only: bool, expected: str) -> None:
    def captioner(rows: Columns) -> tuple[list[str], list[str]]:
        own = [json.loads(document)["caption_context"][-1] for document in rows["json"]]
        return [f"new {i}" for i in own], [f"context {i}" for i in own]

    found = caption_rows(batch(["a", "", "c"]), captioner, missing_only=missing_only)
    assert ",".join(found["caption"]) == expected
    contexts = ["own 0", "context 1", "own 2"] if missing_only else ["context 0", "context 1", "context 2"]
    assert found["context"].tolist() == contexts


def test_zero_shot_takes_a_phrase_with_more_than_half_of_the_softmax() -> None:
    texts = torch.eye(3)
    sure = torch.tensor([0.0, 1.0, 0.0])
    unsure = torch.tensor([1.0, 1.0, 1.0]) / 3**0.5
    # two phrases 0.001 apart: a logit gap of 0.1, a share of 1 / (1 + exp(-0.1)) = 0.525 of the two
    near = torch.tensor([0.7001, 0.6991, 0.0])
    found = zero_shot_phrases(torch.stack([sure, unsure, near]), ["x", "y", "z"], texts)
    assert found == ["y", None, "x"]


def test_clip_writes_a_noun_and_at_most_one_phrase_of_each_group(tiny_clip: Path) -> None:
    clip = ClipFeatures.load(tiny_clip)
    captions, contexts = ClipCaptioner(clip)(batch(["", ""]))
    for caption, context in zip(captions, contexts, strict=True):
        assert caption == ", ".join(part for part in ("a person", context) if part)
        phrases = [phrase for phrase in context.split(", ") if phrase]
        groups = [name for phrase in phrases for name, members in PHRASES.items() if phrase in members]
        assert len(groups) == len(phrases) == len(set(groups))


def test_clip_recognises_the_texts_it_is_shown(tiny_clip: Path) -> None:
    """With pictures' embeddings put in place of texts, the right phrase of each group is found."""
    clip = ClipFeatures.load(tiny_clip)
    captioner = ClipCaptioner(clip, {"g": ("smiling", "sad")})
    rows = batch(["", ""])
    from imprint.training.batches import to_pixel_values

    embedded = clip.encode_image(to_pixel_values(rows["image"]))
    captioner.groups = {"g": (("smiling", "sad"), torch.stack([embedded[1], embedded[0]]))}
    apart = float(1 - embedded[0] @ embedded[1])
    expected = ["sad", "smiling"] if 1 / (1 + np.exp(-100 * apart)) > 0.5 else ["", ""]
    assert captioner.contexts(rows["image"]) == expected


def test_a_model_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="loading the captioner"):
        load_captioner(CaptionerSpec(kind="transformers", model=str(tmp_path)))


def test_an_image_to_text_model_of_transformers_writes_captions(tmp_path: Path) -> None:
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "photo"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BlipConfig(
        text_config={
            **small, "vocab_size": len(tokenizer), "encoder_hidden_size": 16, "bos_token_id": 2, "sep_token_id": 3,
            "pad_token_id": 0, "max_position_embeddings": 16,
        },
        vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=8,
    )  # fmt: skip
    folder = tmp_path / "blip"
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 16, "width": 16}), tokenizer).save_pretrained(folder)
    captioner = TransformersCaptioner(str(folder), max_new_tokens=4, device="cpu")
    captions, contexts = captioner(batch(["", ""]))
    assert len(captions) == 2
    assert contexts == ["", ""]
    assert captioner(batch(["", ""]))[0] == captions

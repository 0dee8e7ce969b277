"""From rows to a batch: what is taken of a sample's json."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from imprint.training.batches import collate


def row(**said: Any) -> dict[str, Any]:
    return {"image": np.zeros((4, 4, 3), np.uint8), "caption": "a cat", "__key__": "a", "json": json.dumps(said)}


def test_contexts_and_class_nouns_are_the_samples_own() -> None:
    batch = collate([row(class_noun="cat", caption_context="on a mat"), row(class_noun="red cup")])
    assert batch["contexts"] == ["on a mat", ""]
    assert batch["class_nouns"] == ["cat", "red cup"]


def test_class_nouns_are_there_where_every_sample_names_one() -> None:
    assert "class_nouns" not in collate([row(class_noun="cat"), row()])
    assert "class_nouns" not in collate([row(class_noun=None)])
    assert "class_nouns" not in collate([{**row(), "json": ""}])


def test_a_context_that_was_written_stands_before_the_samples_own() -> None:
    assert collate([{**row(caption_context="on a mat"), "context": "in a box"}])["contexts"] == ["in a box"]

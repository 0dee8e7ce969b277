"""The identifier: rare, short, and the same tokens again from its own text."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from imprint.backbone import Backbone
from imprint.config.methods import IdentifierSpec
from imprint.errors import ConfigError
from imprint.methods.rare_tokens import find_identifier, rare_words, subject_seed


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    """The real vocabulary that ships with the package."""
    return Backbone.load("imprint-tiny")


def test_rare_words_are_short_rare_and_come_back_as_their_token(tiny: Backbone) -> None:
    tokenizer = tiny.tokenizers[0]
    words = rare_words(tiny, 0.5)
    assert len(words) > 50
    for word in words:
        (index,) = tokenizer(word, add_special_tokens=False)["input_ids"]
        assert 2 <= len(word) <= 3 and word.isalpha()
        assert (len(tokenizer) - 2) / 2 - 1 <= index < len(tokenizer) - 2
        assert tokenizer.decode([index]).strip() == word
    assert len(rare_words(tiny, 0.1)) < len(words)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_identifier_of_k_tokens(tiny: Backbone, count: int) -> None:
    identifier = find_identifier(tiny, IdentifierSpec(tokens=count), seed=3)
    assert len(tiny.tokenizers[0](identifier, add_special_tokens=False)["input_ids"]) == count
    assert len(set(identifier.split())) == count


def test_it_depends_on_the_seed_and_the_pictures_and_on_nothing_else(tiny: Backbone) -> None:
    torch.manual_seed(1)
    first = find_identifier(tiny, IdentifierSpec(), seed=3)
    torch.manual_seed(2)
    assert find_identifier(tiny, IdentifierSpec(), seed=3) == first
    assert len({find_identifier(tiny, IdentifierSpec(), seed=seed) for seed in range(20)}) > 10
    images = torch.zeros(1, 3, 4, 4)
    assert subject_seed(images, 0) == subject_seed(images.clone(), 0)
    assert len({subject_seed(images, 0), subject_seed(images, 1), subject_seed(images + 1, 0)}) == 3


def test_words_of_the_prompts_are_left_out(tiny: Backbone) -> None:
    words = rare_words(tiny, 0.5)
    assert find_identifier(tiny, IdentifierSpec(), seed=0, avoid=words[1:]) == words[0]


def test_ones_own_identifier(tiny: Backbone) -> None:
    assert find_identifier(tiny, IdentifierSpec(text="sks"), seed=0) == "sks"


def test_it_must_be_a_token_for_every_text_encoder(tiny_sdxl: Path, tiny: Backbone) -> None:
    backbone = Backbone.load(tiny_sdxl)
    both = rare_words(backbone, 1.0)
    mixed = dataclasses.replace(backbone, tokenizers=(backbone.tokenizers[0], tiny.tokenizers[0]))
    own = set(rare_words(tiny, 1.0))
    assert set(rare_words(mixed, 1.0)) == set(both) & own


def test_a_vocabulary_without_rare_words(sd15: Backbone) -> None:
    words = rare_words(sd15, 1.0)
    with pytest.raises(ConfigError, match=r"raise identifier\.rare_share, or give identifier\.text"):
        find_identifier(sd15, IdentifierSpec(rare_share=1.0), seed=0, avoid=words)

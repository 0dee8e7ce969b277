"""Several concepts in one: what adds up, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from imprint.backbone import Backbone
from imprint.config.methods import DreamBoothTuneSpec, E4TTuneSpec, LoraTuneSpec, SampleSpec, TextualInversionTuneSpec
from imprint.errors import ConceptError, ConfigError
from imprint.methods.base import Learned, Pictures
from imprint.methods.low_rank import merged_weights, read_factors
from imprint.methods.shells import shell
from imprint.sampling.draw import draw_prompts
from imprint.tuning import Concept, merge_concepts, personalize, sample_concept

SAMPLING = SampleSpec(steps=2)


@pytest.fixture
def backbone(tiny_sd15: Path) -> Backbone:
    return Backbone.load(tiny_sd15)


def concept(backbone: Backbone, spec: Any, seed: int, noun: str = "cat") -> Concept:
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return personalize(backbone, Pictures(images), spec, class_noun=noun, seed=seed)


def lora(text: str, **more: Any) -> LoraTuneSpec:
    return LoraTuneSpec(steps=1, batch_size=2, lora={"learning_rate": 0.05}, identifier={"text": text}, **more)


def word() -> TextualInversionTuneSpec:
    return TextualInversionTuneSpec(steps=1, batch_size=2, learning_rate=0.1)


def test_lora_changes_are_summed_with_their_weights(backbone: Backbone, tmp_path: Path) -> None:
    first, second = concept(backbone, lora("zz"), 0), concept(backbone, lora("qq"), 1, noun="face")
    merged = Concept.load(merge_concepts([first, second], [1.0, 0.5]).save(tmp_path / "both"))
    assert merged.learned.placeholders == ("<concept-1>", "<concept-2>")
    assert merged.learned.class_noun == "cat and face"
    own = dict(backbone.unet.named_parameters())
    alone = [merged_weights(backbone, read_factors(one.learned.tensors)) for one in (first, second)]
    weights = {
        name: own[name.removeprefix("unet.")]
        + (alone[0][name] - own[name.removeprefix("unet.")])
        + 0.5 * (alone[1][name] - own[name.removeprefix("unet.")])
        for name in alone[0]
    }
    expected = draw_prompts(shell(backbone, weights), ["a zz cat beside a qq face"], SAMPLING, seeds=[3])
    got = sample_concept(backbone, merged, ["<concept-1> beside <concept-2>"], SAMPLING, seeds=[3])
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_three_merged_in_two_goes_are_three_subjects(backbone: Backbone) -> None:
    one, two, three = (concept(backbone, lora(text), n) for n, text in enumerate(("zz", "qq", "xx")))
    merged = merge_concepts([merge_concepts([one, two]), three])
    assert merged.learned.settings["phrases"] == ["a zz cat", "a qq cat", "a xx cat"]
    at_once = merge_concepts([one, two, three])
    for name, pair in read_factors(merged.learned.tensors).items():
        torch.testing.assert_close(pair.product(), read_factors(at_once.learned.tensors)[name].product())


def test_words_stand_side_by_side(backbone: Backbone) -> None:
    first, second = concept(backbone, word(), 0), concept(backbone, word(), 1, noun="face")
    merged = merge_concepts([first, second])
    assert torch.equal(merged.learned.tensors["word.1.0"], second.learned.tensors["word.0.0"])
    both = sample_concept(backbone, merged, ["a photo of <concept-2>"], SAMPLING, seeds=[3])
    alone = sample_concept(backbone, second, ["a photo of <concept>"], SAMPLING, seeds=[3])
    torch.testing.assert_close(both, alone)
    together = sample_concept(backbone, merged, ["<concept-1> and <concept-2>"], SAMPLING, seeds=[3])
    assert not torch.allclose(together, alone)
    with pytest.raises(ConfigError, match="write <concept-1> or <concept-2> in it"):
        sample_concept(backbone, merged, ["a photo of <concept>"], SAMPLING)


def test_what_does_not_merge_says_why(backbone: Backbone) -> None:
    one, two = concept(backbone, lora("zz"), 0), concept(backbone, lora("qq"), 1)
    new_word = concept(backbone, word(), 0)
    full = DreamBoothTuneSpec(steps=1, batch_size=1, prior={"enabled": False}, identifier={"text": "zz"})
    dense = concept(backbone, full, 0)
    e4t = dataclasses.replace(one, learned=Learned("e4t", "person", {}, {"tune": E4TTuneSpec().model_dump()}))
    elsewhere = dataclasses.replace(two, backbone_fingerprint="0" * 64)
    cases: list[tuple[list[Concept], type[Exception], str]] = [
        ([one], ConfigError, "got 1, expected two or more"),
        ([one, new_word], ConceptError, "of the methods lora, textual_inversion; expected one method"),
        ([one, elsewhere], ConceptError, "learned on different backbones"),
        ([dense, dense], ConceptError, "tune it again with LoRA"),
        ([e4t, e4t], ConceptError, "methods that merge: .*lora"),
        ([one, one], ConfigError, "two subjects are called 'a zz cat'"),
    ]
    for concepts, error, message in cases:
        with pytest.raises(error, match=message):
            merge_concepts(concepts)
    with pytest.raises(ConfigError, match="got 1 for 2 concepts"):
        merge_concepts([one, two], [1.0])
    with pytest.raises(ConfigError, match="have no weight"):
        merge_concepts([new_word, new_word], [1.0, 0.5])

"""Textual inversion: one row of embeddings, and nothing else, is learned."""

from __future__ import annotations

from typing import Any

import torch

from imprint.backbone import Backbone, TokenReplacements
from imprint.config.methods import SampleSpec, TextualInversionTuneSpec
from imprint.methods.base import Pictures
from imprint.methods.textual_inversion import sample, tune
from imprint.methods.textual_inversion.tune import initial_word
from imprint.sampling.draw import draw_prompts


def pictures() -> Pictures:
    return Pictures(torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1)


def spec(**more: Any) -> TextualInversionTuneSpec:
    return TextualInversionTuneSpec(**({"steps": 2, "batch_size": 2, "learning_rate": 0.1} | more))


def test_it_touches_only_one_embedding_row(backbone: Backbone) -> None:
    """The loss reaches one row for each text encoder: no network, no table, no other word's embedding."""
    tables = [encoder.get_input_embeddings().weight for encoder in backbone.text_encoders]
    before = [table.detach().clone() for table in tables]
    fingerprint = backbone.fingerprint()
    learned = tune(backbone, pictures(), spec(), class_noun="cat")
    assert set(learned.tensors) == {f"word.0.{n}" for n in range(len(tables))}
    assert [tuple(learned.tensors[f"word.0.{n}"].shape) for n in range(len(tables))] == [
        (1, width) for width in backbone.embedding_widths
    ]
    assert all(torch.equal(table, old) for table, old in zip(tables, before, strict=True))
    assert backbone.fingerprint() == fingerprint
    start = initial_word(backbone, "cat", 1)
    moved = [float((learned.tensors[f"word.0.{n}"] - word.detach()).abs().max()) for n, word in enumerate(start)]
    assert all(0 < change <= 0.3 for change in moved)  # two steps of Adam at a rate of 0.1


def test_steps_0_is_the_class_noun(backbone: Backbone) -> None:
    """The initial word is the class noun's embedding, so it draws what the noun draws, bit for bit."""
    learned = tune(backbone, pictures(), spec(steps=0), class_noun="cat")
    sampling = SampleSpec(steps=2)
    drawn = sample(backbone, learned, ["a photo of a <concept> on blue"], sampling, seeds=[3])
    expected = draw_prompts(backbone, ["a photo of a cat on blue"], sampling, seeds=[3])
    torch.testing.assert_close(drawn, expected, rtol=1e-5, atol=1e-5)


def test_an_initial_word_of_several_tokens_is_their_mean(sd15: Backbone) -> None:
    (several,) = sd15.word_embedding("xyz")
    assert len(several) > 1
    (word,) = initial_word(sd15, "xyz", 1)
    torch.testing.assert_close(word, several.mean(0, keepdim=True))


def test_a_word_of_several_vectors_learns_each(sd15: Backbone) -> None:
    learned = tune(sd15, pictures(), spec(vectors=3, initializer="red"), class_noun="cat")
    word = learned.tensors["word.0.0"]
    assert word.shape == (3, 16)
    assert float(torch.pdist(word).min()) > 0
    assert sample(sd15, learned, ["<concept>"], SampleSpec(steps=1)).shape == (1, 3, 16, 16)


def test_the_gradient_of_a_step_is_that_of_eq_2_of_textual_inversion(sd15: Backbone) -> None:
    """One step of Adam moves every number by the learning rate, against the sign of an independent gradient."""
    from imprint.methods.few_steps import prepared
    from imprint.methods.subject_batch import SubjectBatches

    one = spec(steps=1, learning_rate=0.01)
    learned = tune(sd15, pictures(), one, class_noun="cat", seed=7)
    (start,) = initial_word(sd15, "cat", 1)
    batch = SubjectBatches(sd15, one, prepared(sd15, pictures())).draw(torch.Generator().manual_seed(7 * 1_000_003))

    def loss(word: torch.Tensor) -> torch.Tensor:
        text = sd15.encode_text(batch.prompts, TokenReplacements((word[None],)))
        return (sd15.denoise(batch.xt, batch.timesteps, text) - batch.target).square().mean()

    (gradient,) = torch.autograd.grad(loss(start), start)
    step = learned.tensors["word.0.0"] - start.detach()
    torch.testing.assert_close(step, -0.01 * gradient.sign(), rtol=1e-2, atol=1e-4)

"""Tuning of textual inversion: the embedding of one new word, by the denoising loss of a frozen model.

Source: arXiv:2208.01618, section 4, Eq. 2: v* = argmin_v E || eps - eps_theta(z_t, t, c_theta(y)) ||^2.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone, TokenReplacements
from imprint.config.methods import TextualInversionTuneSpec
from imprint.methods.base import Learned, Pictures, TuneCallback
from imprint.methods.few_steps import adamw, check_tuning, prepared, require_class_noun, run_steps
from imprint.methods.subject_batch import SubjectBatches
from imprint.methods.weight_deltas import STORAGE
from imprint.methods.words import word_tensors


def tune(
    backbone: Backbone,
    pictures: Pictures,
    spec: TextualInversionTuneSpec,
    *,
    class_noun: str | None = None,
    seed: int = 0,
    callback: TuneCallback | None = None,
) -> Learned:
    """Learn a word for the subject of a few pictures; it starts from `spec.initializer`, or the class noun.

    Raises:
        ConfigError: there is no class noun, or templates, masks or contexts do not fit.
        BackboneError: the initial word has no tokens.
        TrainingError: the loss is not finite.
    """
    noun = require_class_noun(class_noun, spec.method)
    check_tuning(pictures, spec)
    word = initial_word(backbone, spec.initializer or noun, spec.vectors)
    batches = SubjectBatches(backbone, spec, prepared(backbone, pictures), seed)

    def loss(generator: torch.Generator) -> Float[Tensor, ""]:
        batch = batches.draw(generator)
        replacement = TokenReplacements(tuple(vector[None] for vector in word))
        output = backbone.denoise(batch.xt, batch.timesteps, backbone.encode_text(batch.prompts, replacement))
        return batch.loss(output, backbone.schedule)

    optimizer = adamw([(word, spec.learning_rate)], weight_decay=spec.weight_decay)
    run_steps(loss, optimizer, spec, seed=seed, device=backbone.device, callback=callback)
    settings = {"subjects": 1, "tune": spec.model_dump(mode="json"), "seed": seed}
    return Learned(spec.method, noun, word_tensors(0, word, STORAGE[spec.storage]), settings)


def initial_word(backbone: Backbone, text: str, vectors: int) -> list[Float[Tensor, "k width"]]:
    """v_0 for each text encoder: the mean embedding of the word's tokens, at each of the new word's positions."""
    return [
        embedding.float().mean(0, keepdim=True).repeat(vectors, 1).requires_grad_()
        for embedding in backbone.word_embedding(text)
    ]

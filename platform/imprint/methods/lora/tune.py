"""Tuning of plain LoRA on one subject: the denoising loss on its pictures, and nothing else."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import LoraTuneSpec
from imprint.methods.base import Learned, Pictures, TuneCallback
from imprint.methods.few_steps import adamw, check_tuning, prepared, require_class_noun, run_steps
from imprint.methods.phrases import phrase_concept, phrase_of, spell
from imprint.methods.subject_batch import SubjectBatches
from imprint.methods.trained import train_low_rank


def tune(
    backbone: Backbone,
    pictures: Pictures,
    spec: LoraTuneSpec,
    *,
    class_noun: str | None = None,
    seed: int = 0,
    callback: TuneCallback | None = None,
) -> Learned:
    """Adapt the attentions of the UNet, and of the text encoders where asked, to the subject of a few pictures.

    Raises:
        ConfigError: there is no class noun or no rare word, or templates, masks or contexts do not fit.
        TrainingError: the loss is not finite.
    """
    noun = require_class_noun(class_noun, spec.method)
    check_tuning(pictures, spec)
    phrase = phrase_of(backbone, pictures, spec, noun, seed)
    trained = train_low_rank(backbone, spec.lora, text_encoders=spec.text_encoder, seed=seed)
    model = trained.backbone
    batches = SubjectBatches(model, spec, prepared(backbone, pictures), seed)

    def loss(generator: torch.Generator) -> Float[Tensor, ""]:
        batch = batches.draw(generator)
        output = model.denoise(batch.xt, batch.timesteps, model.encode_text(spell(batch.prompts, phrase)))
        return batch.loss(output, model.schedule, spec.min_snr_gamma)

    optimizer = adamw(trained.groups, weight_decay=spec.weight_decay)
    run_steps(loss, optimizer, spec, seed=seed, device=backbone.device, callback=callback)
    return phrase_concept(spec.method, phrase, noun, trained.pack(backbone, spec.storage), spec, seed)

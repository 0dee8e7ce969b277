"""Tuning of the domain-agnostic method: the encoder's prediction starts a LoRA run of a few steps, pulled back to it.

Source: arXiv:2307.06925, section 4.4. Neither the backbone nor the pretrained parts are touched.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.config.methods import DomainAgnosticTuneSpec
from imprint.methods.base import Learned, Pictures, TuneCallback
from imprint.methods.batched_low_rank import BatchedLowRank
from imprint.methods.domain_agnostic.dual_path import DualPath
from imprint.methods.domain_agnostic.learned import pack
from imprint.methods.domain_agnostic.parts import DomainAgnosticParts, Prediction, prompts_with, prompts_with_tokens
from imprint.methods.few_steps import adamw, check_tuning, prepared, run_steps
from imprint.methods.low_rank import fresh_down
from imprint.methods.pretraining import concept_pictures
from imprint.methods.subject_batch import SubjectBatches


def tune(
    parts: DomainAgnosticParts,
    pictures: Pictures,
    spec: DomainAgnosticTuneSpec,
    *,
    class_noun: str | None = None,
    seed: int = 0,
    callback: TuneCallback | None = None,
) -> Learned:
    """Tune the predicted word and factors on one or a few pictures; zero steps keeps the prediction.

    The method needs no class noun; where one is given the concept is filed under it.

    Raises:
        ConfigError: a template has no placeholder, or masks or contexts do not fit the pictures.
        TrainingError: the loss is not finite.
    """
    check_tuning(pictures, spec)
    backbone = parts.backbone
    pictures = prepared(backbone, pictures)
    batches = SubjectBatches(backbone, spec, pictures, seed)
    first = predict(parts, pictures.images, concept_pictures(parts.spec, pictures.images, pictures.masks), seed)
    tokens = parts.nearest_tokens(first.words)
    dual = spec.dual_path or parts.spec.dual_path
    alpha = dual.alpha_blend if dual.enabled else None
    path = DualPath(backbone, alpha)
    now = Prediction(
        tuple(word.clone() for word in first.words),
        {name: BatchedLowRank(pair.down.clone(), pair.up.clone()) for name, pair in first.factors.items()},
    )

    def loss(generator: torch.Generator) -> Float[Tensor, ""]:
        batch = batches.draw(generator)
        soft = prompts_with(backbone, batch.prompts, now.words)
        hard = None if alpha is None else prompts_with_tokens(backbone, batch.prompts, tokens)
        output = path.denoise(batch.xt, batch.timesteps, soft, hard, now.factors)
        return batch.loss(output, backbone.schedule) + pull(now, first, spec)

    trained = [*now.words, *(half for pair in now.factors.values() for half in pair)]
    optimizer = adamw([(trained, spec.learning_rate)], weight_decay=spec.weight_decay)
    run_steps(loss, optimizer, spec, seed=seed, device=backbone.device, callback=callback)
    return pack(
        backbone, now.words, now.factors, [int(ids[0]) for ids in tokens], alpha, spec,
        class_noun=class_noun, seed=seed,
    )  # fmt: skip


@torch.no_grad()
def predict(
    parts: DomainAgnosticParts, images: Float[Tensor, "n 3 h w"], seen: Float[Tensor, "n 3 h w"], seed: int
) -> Prediction:
    """One word and one set of factors of a concept, by a single forward pass over its pictures; CLIP reads `seen`.

    The trunk's vectors are averaged over the pictures. Without a hypernetwork the factors start as LoRA's own do, A at
    random and B at zero.
    """
    generator = torch.Generator().manual_seed(seed)
    prediction = parts.heads(parts.one_pass(images, generator, seen).mean(0, keepdim=True))
    if parts.hypernetwork is not None:
        return prediction
    spec, device, factors = parts.spec.hypernetwork, parts.backbone.device, {}
    for projection in parts.backbone.attention_projections():
        if projection.role in spec.roles:
            out, into = projection.shape
            down = fresh_down(spec.rank, into, generator).to(device)[None]
            factors[projection.name] = BatchedLowRank(down, torch.zeros(1, out, spec.rank, device=device))
    return Prediction(prediction.words, factors)


def pull(now: Prediction, first: Prediction, spec: DomainAgnosticTuneSpec) -> Float[Tensor, ""]:
    """The L2 term towards the encoder's prediction: squared distances of the word, and of A and B."""
    word = torch.stack([(a - b).square().sum() for a, b in zip(now.words, first.words, strict=True)]).sum()
    factors = [
        (a - b).square().sum()
        for name, pair in now.factors.items()
        for a, b in zip(pair, first.factors[name], strict=True)
    ]
    return spec.word_pull * word + spec.factor_pull * torch.stack(factors).sum()

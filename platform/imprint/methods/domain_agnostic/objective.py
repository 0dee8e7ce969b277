"""Pretraining of the domain-agnostic encoder: it learns any concept, the backbone stays as it is.

Source: arXiv:2307.06925, sections 4.2, 4.3 and 5.1.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import DomainAgnosticSpec
from imprint.errors import DataError
from imprint.features.clip import ClipFeatures
from imprint.methods.batched_low_rank import squared_norm
from imprint.methods.domain_agnostic.dual_path import DualPath
from imprint.methods.domain_agnostic.loss import contrastive_over_ranks, noun_distance, word_norm
from imprint.methods.domain_agnostic.parts import DomainAgnosticParts, prompts_with, prompts_with_tokens
from imprint.methods.pretraining import EncoderObjective, pretraining_batch, reference_pictures
from imprint.objective import Batch, StepOutput


class DomainAgnosticObjective(EncoderObjective):
    """The diffusion loss (Eq. 1) through the dual path (Eq. 5), the contrastive loss (Eq. 3) over all ranks, and both
    L2 terms: of the word (Eq. 4) and of the weight offsets (section 4.1). With `noun_pull`, which is not the paper's,
    the word's distance from the picture's class noun as well."""

    def __init__(self, backbone: Backbone, spec: DomainAgnosticSpec, clip: ClipFeatures | None = None) -> None:
        """See `EncoderObjective`."""
        super().__init__(DomainAgnosticParts.build, backbone, spec, clip)
        parts: DomainAgnosticParts = self.parts
        self.spec = spec
        self.encoder = parts.encoder
        self.hypernetwork = parts.hypernetwork
        self._held += (DualPath(backbone, spec.dual_path.alpha_blend if spec.dual_path.enabled else None),)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The encoder, and the hypernetwork at its own share of the learning rate (1e-4 and 1e-5, section 5.1)."""
        groups = [{"params": list(self.encoder.parameters()), "lr_scale": 1.0}]
        if self.hypernetwork is not None:
            scale = self.spec.hypernetwork.lr_scale
            groups.append({"params": list(self.hypernetwork.parameters()), "lr_scale": scale})
        return groups

    def forward(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        """The loss of one micro-batch; metrics are its terms.

        Raises:
            DataError: the spec asks for masks or class nouns and the batch has none.
        """
        parts: DomainAgnosticParts = self.parts
        path: DualPath = self._held[1]
        backbone, spec = parts.backbone, self.spec
        images = batch["pixel_values"].to(backbone.device)
        noisy = pretraining_batch(backbone, spec, batch, images, generator)
        seen = reference_pictures(spec, batch, images)
        prediction = parts.heads(parts.features(seen, noisy.xt, noisy.timesteps))
        soft = prompts_with(backbone, noisy.prompts, prediction.words).sized(noisy.time_ids)
        hard = None
        if spec.dual_path.enabled:
            hard = prompts_with_tokens(backbone, noisy.prompts, parts.nearest_tokens(prediction.words))
        output = path.denoise(noisy.xt, noisy.timesteps, soft, hard, prediction.factors)
        diffusion = noisy.loss(output, backbone.schedule, spec.min_snr_gamma)
        terms: dict[str, tuple[float, Tensor]] = {"diffusion": (1.0, diffusion)}
        terms["norm"] = (spec.regularization, word_norm(prediction.words))
        if spec.contrastive.enabled:
            loss = contrastive_over_ranks(prediction.words, parts.vocabularies, spec.contrastive)
            terms["contrastive"] = (spec.contrastive.weight, loss)
        if spec.noun_pull:
            terms["noun"] = (spec.noun_pull, noun_distance(prediction.words, self._nouns(batch)))
        if self.hypernetwork is not None:
            norm = squared_norm(prediction.factors.values())
            terms["offsets"] = (spec.hypernetwork.regularization, norm)
        total = torch.stack([weight * value for weight, value in terms.values()]).sum()
        metrics = {f"loss_{name}": value.detach() for name, (_, value) in terms.items()}
        return StepOutput(total, metrics, noisy.by_timestep(output, backbone.schedule))

    def _nouns(self, batch: Batch) -> list[Float[Tensor, "b width"]]:
        """The word embedding of each picture's class noun, or the mean of its tokens', for each text encoder."""
        nouns = batch.get("class_nouns")
        if nouns is None:
            raise DataError("noun_pull: the samples have no class_noun in their json; add it, or set noun_pull: 0")
        embedded = [self.parts.backbone.word_embedding(noun) for noun in nouns]
        return [torch.stack([tokens.float().mean(0) for tokens in each]) for each in zip(*embedded, strict=True)]

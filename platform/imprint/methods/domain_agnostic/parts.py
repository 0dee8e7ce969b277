"""Backbone, CLIP, encoder and hypernetwork put together: from a picture to a word and low-rank changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from imprint.backbone import Backbone, TextConditioning, TokenReplacements
from imprint.config.methods import DomainAgnosticSpec
from imprint.features.clip import ClipFeatures
from imprint.features.unet_taps import UNetTaps
from imprint.methods.batched_low_rank import BatchedLowRank
from imprint.methods.diffusion_loss import random_noise
from imprint.methods.domain_agnostic.encoder import DomainAgnosticEncoder, HyperNetwork
from imprint.methods.vocabulary import Vocabulary


class Prediction(NamedTuple):
    """What the encoder says of each row: a word for each text encoder, and factors by projection (none without
    the hypernetwork)."""

    words: tuple[Float[Tensor, "b width"], ...]
    factors: dict[str, BatchedLowRank]


@dataclass(frozen=True, eq=False)
class DomainAgnosticParts:
    """A frozen backbone and CLIP with an encoder and, where the spec has it, a hypernetwork."""

    backbone: Backbone
    spec: DomainAgnosticSpec
    clip: ClipFeatures
    encoder: DomainAgnosticEncoder
    hypernetwork: HyperNetwork | None
    taps: UNetTaps
    vocabularies: tuple[Vocabulary, ...]

    @classmethod
    def build(cls, backbone: Backbone, spec: DomainAgnosticSpec, clip: ClipFeatures) -> DomainAgnosticParts:
        """Freshly initialised parts that fit a backbone, on its device."""
        taps = UNetTaps(backbone)
        vocabularies = Vocabulary.each_of(backbone)
        encoder = DomainAgnosticEncoder(
            spec.encoder, clip_width=clip.width, tap_width=taps.widths[-1], vocabularies=vocabularies
        ).to(backbone.device)
        hypernetwork = None
        if spec.hypernetwork.enabled:
            projections = backbone.attention_projections()
            hypernetwork = HyperNetwork(projections, spec.hypernetwork, encoder.width).to(backbone.device)
        return cls(backbone, spec, clip, encoder, hypernetwork, taps, vocabularies)

    def networks(self) -> dict[str, nn.Module]:
        """The encoder, and the hypernetwork where there is one."""
        return {"encoder": self.encoder} | ({} if self.hypernetwork is None else {"hypernetwork": self.hypernetwork})

    def features(
        self,
        images: Float[Tensor, "b 3 h w"],
        xt: Float[Tensor, "b c h2 w2"],
        timesteps: Int[Tensor, "b"],
    ) -> Float[Tensor, "b hidden"]:
        """The trunk's vector of each picture beside its noisy latents; it carries gradients."""
        clip_map = self.clip.patches(images).to(self.backbone.device)
        return self.encoder.features(clip_map, self.taps.spatial(xt, timesteps))

    def heads(self, features: Float[Tensor, "b hidden"]) -> Prediction:
        """What both heads make of the trunk's vector."""
        factors = self.hypernetwork(features) if self.hypernetwork is not None else {}
        return Prediction(self.encoder.words(features), factors)

    @torch.no_grad()
    def one_pass(
        self,
        images: Float[Tensor, "b 3 h w"],
        generator: torch.Generator,
        seen: Float[Tensor, "b 3 h w"] | None = None,
    ) -> Float[Tensor, "b hidden"]:
        """The trunk's vector of each picture by a single forward pass, its latents noised to `predict_at`.

        `seen` is what CLIP reads in place of the pictures, such as the subjects alone.
        """
        schedule = self.backbone.schedule
        x0 = self.backbone.encode_images(images)
        timestep = round(self.spec.predict_at * (schedule.num_timesteps - 1))
        timesteps = torch.full((len(x0),), timestep, device=x0.device)
        # One draw for all: what a picture predicts must not depend on its neighbours.
        noise = random_noise(x0[:1], generator).expand_as(x0)
        return self.features(images if seen is None else seen, schedule.add_noise(x0, noise, timesteps), timesteps)

    def nearest_tokens(self, words: Sequence[Float[Tensor, "b width"]]) -> tuple[Int[Tensor, "b"], ...]:
        """The hard token of each word, by its id, for each text encoder."""
        pairs = zip(words, self.vocabularies, strict=True)
        return tuple(vocabulary.ids[vocabulary.nearest(word)[:, 0]] for word, vocabulary in pairs)


def prompts_with(
    backbone: Backbone, prompts: Sequence[str], words: Sequence[Float[Tensor, "b width"]]
) -> TextConditioning:
    """The prompts with each row's word, or one for all, at `<concept>`."""
    return backbone.encode_text(prompts, TokenReplacements(tuple(word[:, None] for word in words)))


@torch.no_grad()
def prompts_with_tokens(
    backbone: Backbone, prompts: Sequence[str], tokens: Sequence[Int[Tensor, "b"]]
) -> TextConditioning:
    """The prompts with each row's hard token at `<concept>`: C_h of Eq. 5."""
    tables = [encoder.get_input_embeddings().weight for encoder in backbone.text_encoders]
    return prompts_with(backbone, prompts, [table[ids] for table, ids in zip(tables, tokens, strict=True)])

"""Backbone, CLIP and PromptNet put together: from a reference picture and (x_t, t) to a prompt's conditioning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from imprint.backbone import Backbone, TextConditioning, TokenReplacements
from imprint.config.methods import ProFusionSpec
from imprint.features.clip import ClipFeatures
from imprint.methods.profusion.encoder import PromptNet


class Reference(NamedTuple):
    """What PromptNet sees of each row's subject: its latents, and its CLIP image embedding at unit variance."""

    latents: Float[Tensor, "b c h w"]
    embedding: Float[Tensor, "b 1 width"]

    def rows(self, rows: slice) -> Reference:
        """Some rows of a batch."""
        return Reference(self.latents[rows], self.embedding[rows])

    def expand(self, count: int) -> Reference:
        """One subject for `count` rows."""
        return Reference(self.latents.expand(count, -1, -1, -1), self.embedding.expand(count, -1, -1))


@dataclass(frozen=True, eq=False)
class ProFusionParts:
    """A frozen backbone and CLIP with PromptNet; `clip` is None where references are at hand, as in a concept."""

    backbone: Backbone
    spec: ProFusionSpec
    clip: ClipFeatures | None
    promptnet: PromptNet

    @classmethod
    def build(cls, backbone: Backbone, spec: ProFusionSpec, clip: ClipFeatures) -> ProFusionParts:
        """Freshly initialised parts that fit a backbone, on its device."""
        return cls.shaped(backbone, spec, clip.joint_width, clip)

    @classmethod
    def shaped(
        cls, backbone: Backbone, spec: ProFusionSpec, image_width: int, clip: ClipFeatures | None = None
    ) -> ProFusionParts:
        """As `build`, from the width of the image embedding alone."""
        network = PromptNet(backbone, spec.encoder, image_width, spec.domain_word).to(backbone.device)
        return cls(backbone, spec, clip, network)

    def networks(self) -> dict[str, nn.Module]:
        """PromptNet."""
        return {"promptnet": self.promptnet}

    @torch.no_grad()
    def reference(self, images: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None) -> Reference:
        """What PromptNet sees of pictures in [-1, 1]."""
        assert self.clip is not None
        embedding = self.clip.encode_image(images).to(self.backbone.device)
        # CLIP's embeddings are of unit length; attention was made for features of unit variance.
        embedding = embedding * embedding.shape[-1] ** 0.5
        return Reference(self.backbone.encode_images(images, generator), embedding[:, None])

    def condition(
        self,
        reference: Reference,
        xt: Float[Tensor, "b c h w"],
        timesteps: Int[Tensor, "b"],
        prompts: Sequence[str],
    ) -> TextConditioning:
        """The conditioning of each prompt with S* for `<concept>`; it carries gradients."""
        words = self.promptnet(reference.latents, xt, timesteps, reference.embedding)
        return self.backbone.encode_text(prompts, TokenReplacements(words))

"""The network of the Taming Encoder: a backbone whose UNet attends to objects, and the frozen encoder of objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone, TextConditioning
from imprint.backbone.base import modules_fingerprint
from imprint.config.methods import TamingSpec
from imprint.features.clip import ClipFeatures
from imprint.methods.shells import shell
from imprint.methods.taming.attention import ObjectAttentions
from imprint.methods.taming.encoder import object_embedding, object_width


class NetworkSource(NamedTuple):
    """Where a trained network lies, and what it was when it was loaded from there."""

    path: str
    fingerprint: str


@dataclass(frozen=True, eq=False)
class TamingParts:
    """`backbone` is a shell whose UNet has the `attentions` in it; a trained network has a `source`."""

    backbone: Backbone
    spec: TamingSpec
    attentions: ObjectAttentions
    clip: ClipFeatures
    source: NetworkSource | None = None

    @classmethod
    def build(cls, backbone: Backbone, spec: TamingSpec, clip: ClipFeatures) -> TamingParts:
        """Fresh attentions in a shell that shares every weight with `backbone`, which itself gets none.

        Raises:
            BackboneError: the UNet has no place for them.
        """
        own = shell(backbone)
        attentions = ObjectAttentions(own.unet, object_width(clip, spec.object_encoder))
        return cls(own, spec, attentions.requires_grad_(False), clip)

    def embed(self, images: Float[Tensor, "b 3 h w"], masks: Float[Tensor, "b 1 h w"] | None) -> Float[Tensor, "b m e"]:
        """The object embedding of each picture, on the backbone's device."""
        device = self.backbone.device
        own = None if masks is None else masks.to(device)
        return object_embedding(self.clip, self.spec.object_encoder, images.to(device), own).to(device)

    @torch.no_grad()
    def condition(self, prompts: Sequence[str], objects: Float[Tensor, "b m e"]) -> TextConditioning:
        """What the network attends to: each prompt, and an object for each; the text encoders are frozen."""
        text = self.backbone.encode_text(prompts)
        return replace(text, objects=objects.to(text.hidden))

    def fingerprint(self) -> str:
        """sha256 of the UNet's and the attentions' weights, whatever precision they are loaded in."""
        return modules_fingerprint((self.backbone.unet, self.attentions))

"""Guidance by an object and by a text, each with a weight of its own, all branches in one forward.

Legend: eps(c, o) the raw output for caption c and object o, eps(0, phi) that for neither; w_o and w_t the weights.

    eps(0, phi) + w_o (eps(0, o) - eps(0, phi)) + w_t (eps(c, o) - eps(0, o))

For w_o = w_t = w that is Eq. 2 of the Taming Encoder over both conditions at once, and for w_o = 1 it is Eq. 2 over
the text with the object always there. In either case one of the three branches falls out and is not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.backbone import TextConditioning
from imprint.config.methods import SampleSpec
from imprint.methods.taming.attention import null_objects
from imprint.methods.taming.parts import TamingParts
from imprint.sampling.denoiser import Denoised, denoised


@dataclass(frozen=True)
class ObjectGuidedDenoiser:
    """Raw outputs of several conditionings, summed by weights that sum to one.

    As with the guidance of one condition, summing raw outputs is the same as summing eps, for v and x_0 too.
    """

    parts: TamingParts
    branches: Sequence[tuple[float, TextConditioning]]

    @classmethod
    def of(
        cls, parts: TamingParts, prompts: Sequence[str], objects: Float[Tensor, "b m e"], spec: SampleSpec
    ) -> ObjectGuidedDenoiser:
        """For each prompt its object; a negative prompt stands in for the empty text."""
        text_weight = spec.guidance_scale
        object_weight = text_weight if spec.object_guidance_scale is None else spec.object_guidance_scale
        empty = [spec.negative_prompt] * len(prompts)
        weighted = [
            (1 - object_weight, empty, null_objects(objects)),
            (object_weight - text_weight, empty, objects),
            (text_weight, list(prompts), objects),
        ]
        branches = [(weight, parts.condition(texts, own)) for weight, texts, own in weighted if weight != 0]
        return cls(parts, branches)

    @torch.no_grad()
    def __call__(self, xt: Float[Tensor, "b c h w"], timesteps: Int[Tensor, "b"]) -> Denoised:
        backbone, count = self.parts.backbone, len(self.branches)
        latents = xt.to(backbone.dtype).repeat(count, 1, 1, 1)
        conditioning = TextConditioning.cat([branch for _, branch in self.branches])
        outputs = backbone.denoise(latents, timesteps.repeat(count), conditioning).to(xt.dtype).chunk(count)
        summed = sum(weight * output for (weight, _), output in zip(self.branches, outputs, strict=True))
        assert isinstance(summed, Tensor)
        return denoised(backbone, summed, xt, timesteps)

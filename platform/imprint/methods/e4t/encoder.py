"""The E4T encoder: a concept image, and the noisy latents, to an offset from a domain's word embedding.

Source: E4T, arXiv:2302.12228, section 3.1. Legend: I_c the concept image, E(I_c) the predicted offset, e_domain the
embedding of the domain's coarse word, s the scale, e_c the concept's embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imprint.config.methods import E4TEncoderSpec


def concept_embedding(
    domain: Float[Tensor, "k width"], offset: Float[Tensor, "b width"], scale: float
) -> Float[Tensor, "b k width"]:
    """e_c = e_domain + s E(I_c); E4T Eq. 1.

    A domain word of k tokens keeps its k positions in the prompt, and each of its embeddings moves by the same
    offset: for k = 1 that is Eq. 1 itself.
    """
    return domain[None] + scale * offset[:, None]


def embedding_regularization(offsets: Sequence[Float[Tensor, "b width"]]) -> Float[Tensor, ""]:
    """L_reg = ||E(I_c)||^2 (E4T Eq. 2), summed over the heads and averaged over the batch."""
    return torch.stack([offset.float().square().sum(-1) for offset in offsets]).sum(0).mean()


class E4TEncoder(nn.Module):
    """One linear layer for each feature vector, their average, LeakyReLU, and a last linear layer for each head.

    The feature vectors are the [CLS] tokens of every second CLIP layer and, with refinement, the pooled features of
    every block of the UNet's encoder. There is one head for each text encoder of the backbone.
    """

    def __init__(
        self,
        spec: E4TEncoderSpec,
        *,
        clip_layers: int,
        clip_width: int,
        tap_widths: Sequence[int],
        embedding_widths: Sequence[int],
    ) -> None:
        super().__init__()
        self.spec = spec
        hidden = spec.hidden_width or max(embedding_widths)
        self.clip_projections = nn.ModuleList(nn.Linear(clip_width, hidden) for _ in range(clip_layers))
        taps = tap_widths if spec.refinement else ()
        self.tap_projections = nn.ModuleList(nn.Linear(width, hidden) for width in taps)
        self.heads = nn.ModuleList(nn.Linear(hidden, width) for width in embedding_widths)
        for head in self.heads:
            # E(I) starts at a tenth of a default linear layer's output: near the domain word, yet not at zero,
            # where no gradient would reach the layers before the head.
            nn.init.normal_(head.weight, std=0.1 * hidden**-0.5)
            nn.init.zeros_(head.bias)

    def forward(
        self,
        clip_features: Sequence[Float[Tensor, "b clip_width"]],
        taps: Sequence[Float[Tensor, "b tap_width"]] | None,
    ) -> tuple[Float[Tensor, "b width"], ...]:
        """E(I_c) for each text encoder; `taps` are those of (x_t, t), ignored without refinement."""
        sources = [*zip(self.clip_projections, clip_features, strict=True)]
        if self.spec.refinement:
            assert taps is not None, "refinement needs the taps of (x_t, t)"
            sources += zip(self.tap_projections, taps, strict=True)
        projected = [layer(self._prepare(feature, layer)) for layer, feature in sources]
        pooled = F.leaky_relu(torch.stack(projected).mean(0), self.spec.negative_slope)
        return tuple(head(pooled) for head in self.heads)

    def _prepare(self, feature: Tensor, layer: nn.Module) -> Tensor:
        if self.spec.normalize_features:
            feature = F.layer_norm(feature.float(), feature.shape[-1:])
        return feature.to(layer.weight.dtype)

"""The domain-agnostic encoder: a convolutional trunk over two feature maps, a token head and a hypernetwork.

Source: arXiv:2307.06925, section 4.1. Legend: I_c the concept's picture, v* = E(I_c) its predicted word, A and B the
low-rank factors of a projection W, dW = A B.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imprint.backbone import AttentionProjection
from imprint.config.methods import DomainAgnosticEncoderSpec, HyperNetworkSpec
from imprint.methods.batched_low_rank import BatchedLowRank
from imprint.methods.vocabulary import Vocabulary, WordHead


class DomainAgnosticEncoder(nn.Module):
    """CLIP's and the UNet encoder's last features, each through a 1x1 convolution and summed on the UNet's grid.

    Convolutions of stride 2 and a mean over space make one vector of them, which both heads share; there is one token
    head for each text encoder.
    """

    def __init__(
        self,
        spec: DomainAgnosticEncoderSpec,
        *,
        clip_width: int,
        tap_width: int,
        vocabularies: Sequence[Vocabulary],
    ) -> None:
        super().__init__()
        self.spec = spec
        widths = [vocabulary.embeddings.shape[1] for vocabulary in vocabularies]
        self.width = spec.hidden_width or max(widths)
        self.clip_projection = nn.Conv2d(clip_width, self.width, 1)
        self.tap_projection = nn.Conv2d(tap_width, self.width, 1) if spec.refinement else None
        self.trunk = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(self.width, self.width, 3, stride=2, padding=1),
                nn.GroupNorm(1, self.width),
                nn.LeakyReLU(spec.negative_slope),
            )
            for _ in range(spec.blocks)
        )
        self.heads = nn.ModuleList(WordHead(self.width, vocabulary) for vocabulary in vocabularies)

    def features(
        self, clip_map: Float[Tensor, "b clip_width h w"], tap: Float[Tensor, "b tap_width h2 w2"]
    ) -> Float[Tensor, "b hidden"]:
        """What both heads read; `tap` is that of (x_t, t), and without refinement lends its grid alone."""
        size = tap.shape[-2:]
        resized = F.interpolate(_unit_variance(clip_map), size, mode="bilinear", antialias=True, align_corners=False)
        hidden = self.clip_projection(resized)
        if self.tap_projection is not None:
            hidden = hidden + self.tap_projection(_unit_variance(tap))
        for block in self.trunk:
            hidden = block(hidden)
        return hidden.mean(dim=(2, 3))

    def words(self, features: Float[Tensor, "b hidden"]) -> tuple[Float[Tensor, "b width"], ...]:
        """v* for each text encoder, in fp32."""
        return tuple(head(features) for head in self.heads)


def _unit_variance(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Each place's features at zero mean and unit variance: norms differ by far between CLIP and the UNet."""
    return F.layer_norm(maps.movedim(1, -1), maps.shape[1:2]).movedim(-1, 1)


class HyperNetwork(nn.Module):
    """A and B of every chosen attention projection from the trunk's vector, Eq. 2.

    Predicting them straight from the trunk would take `hidden` numbers for each of theirs; so each projection has a
    narrow layer of its own first.
    """

    def __init__(self, projections: Sequence[AttentionProjection], spec: HyperNetworkSpec, hidden: int) -> None:
        super().__init__()
        self.spec = spec
        self.projections = [projection for projection in projections if projection.role in spec.roles]
        self.narrow = nn.ModuleList(nn.Linear(hidden, spec.width) for _ in self.projections)
        self.to_down = nn.ModuleList(nn.Linear(spec.width, spec.rank * p.shape[1]) for p in self.projections)
        self.to_up = nn.ModuleList(nn.Linear(spec.width, spec.rank * p.shape[0]) for p in self.projections)
        for projection, down, up in zip(self.projections, self.to_down, self.to_up, strict=True):
            # A starts at the scale of LoRA's own, B at zero: dW is exactly zero at step 0 (section 4.1).
            nn.init.normal_(down.weight, std=(spec.width * projection.shape[1]) ** -0.5)
            nn.init.normal_(down.bias, std=projection.shape[1] ** -0.5)
            nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)

    def forward(self, features: Float[Tensor, "b hidden"]) -> dict[str, BatchedLowRank]:
        """The factors by the projection's name, in fp32, with the constant scale alpha / rank in B."""
        rank, rows = self.spec.rank, len(features)
        scale = (self.spec.alpha or rank) / rank
        factors = {}
        for index, projection in enumerate(self.projections):
            out, into = projection.shape
            narrow = F.leaky_relu(self.narrow[index](features), 0.01)
            down = self.to_down[index](narrow).float().view(rows, rank, into)
            up = scale * self.to_up[index](narrow).float().view(rows, out, rank)
            factors[projection.name] = BatchedLowRank(down, up)
        return factors

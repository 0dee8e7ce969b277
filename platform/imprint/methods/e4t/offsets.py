"""Weight offsets: a small network as a prior over relative changes of the attention projections.

Source: E4T, arXiv:2302.12228, section 3.2 and Eq. 3, W' = W_0 (1 + dW), elementwise. For W of M x N: a learned vector
v_0, two linear layers to v_y (M) and v_x (N), their outer product, a linear layer over each row (N x N) and one over
each column (M x M).

Memory: the row and column layers hold N^2 + M^2 numbers for each matrix, as the paper has them. Over the q, k, v of all
attentions of Stable Diffusion 1.5 that makes about 143 million parameters, 0.57 GB in fp32 and 2.3 GB with gradients
and Adam's moments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imprint.backbone import AttentionProjection, Backbone
from imprint.config.methods import WeightOffsetsSpec

ROLES = ("q", "k", "v")


class ShapeOffsets(nn.Module):
    """The offset networks of all matrices of one shape, stacked: `count` networks in one batched product."""

    def __init__(self, count: int, rows: int, columns: int, vector_width: int) -> None:
        super().__init__()
        self.v0 = nn.Parameter(torch.randn(count, vector_width))
        self.to_y = nn.Parameter(_uniform(count, rows, vector_width))
        self.to_y_bias = nn.Parameter(torch.zeros(count, rows))
        self.to_x = nn.Parameter(_uniform(count, columns, vector_width))
        self.to_x_bias = nn.Parameter(torch.zeros(count, columns))
        self.row_weight = nn.Parameter(_uniform(count, columns, columns))
        self.row_bias = nn.Parameter(torch.zeros(count, columns))
        # The last projection starts at zero, so that dW is exactly zero at step 0 and W' is W_0 bit for bit.
        self.column_weight = nn.Parameter(torch.zeros(count, rows, rows))
        self.column_bias = nn.Parameter(torch.zeros(count, rows))

    def forward(self) -> Float[Tensor, "count rows columns"]:
        """dW of every matrix."""
        v_y = torch.einsum("krd,kd->kr", self.to_y, self.v0) + self.to_y_bias
        v_x = torch.einsum("kcd,kd->kc", self.to_x, self.v0) + self.to_x_bias
        matrix = v_y[:, :, None] * v_x[:, None, :]
        matrix = matrix @ self.row_weight.mT + self.row_bias[:, None, :]
        return self.column_weight @ matrix + self.column_bias[:, :, None]


def _uniform(count: int, out: int, into: int) -> Tensor:
    """nn.Linear's own initialisation, for a stack of layers."""
    return torch.empty(count, out, into).uniform_(-(into**-0.5), into**-0.5)


class WeightOffsets(nn.Module):
    """Offsets for the q, k and v projections of every self- and cross-attention of a UNet."""

    def __init__(self, projections: Sequence[AttentionProjection], spec: WeightOffsetsSpec) -> None:
        super().__init__()
        self.names_by_shape: dict[str, list[str]] = {}
        shapes: dict[str, tuple[int, int]] = {}
        for projection in projections:
            if projection.role in ROLES:
                key = "x".join(map(str, projection.shape))
                shapes[key] = projection.shape
                self.names_by_shape.setdefault(key, []).append(projection.name)
        self.shapes = nn.ModuleDict(
            {
                key: ShapeOffsets(len(names), *shapes[key], spec.vector_width)
                for key, names in self.names_by_shape.items()
            }
        )

    @classmethod
    def of(cls, backbone: Backbone, spec: WeightOffsetsSpec) -> WeightOffsets:
        """Offsets for all attentions of a backbone."""
        return cls(backbone.attention_projections(), spec)

    @property
    def names(self) -> list[str]:
        """The parameters of the UNet that are offset."""
        return [name for names in self.names_by_shape.values() for name in names]

    def forward(self, base: Mapping[str, Float[Tensor, "rows columns"]]) -> dict[str, Float[Tensor, "rows columns"]]:
        """W' = W_0 (1 + dW) of every offset parameter (Eq. 3), by name, for `Backbone.denoise(weights=...)`.

        `base` gives W_0 by name. The product is formed in fp32, since 1 + dW in bf16 would round every weight by up to
        0.4 %, and returned in the precision of W_0.
        """
        weights = {}
        for key, names in self.names_by_shape.items():
            for name, delta in zip(names, self.shapes[key](), strict=True):
                weights[name] = (base[name].float() * (1 + delta.float())).to(base[name].dtype)
        return weights

    @torch.no_grad()
    def bake(self, base: Mapping[str, Float[Tensor, "rows columns"]]) -> dict[str, Float[Tensor, "rows columns"]]:
        """The merged weights, computed once for sampling; no gradient."""
        return self(base)

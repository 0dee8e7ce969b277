"""The dual path: every attention block twice, personalized and as it was, blended.

Source: arXiv:2307.06925, section 4.3, Eq. 5: out = alpha B(f, C, W_delta) + (1 - alpha) B(f, C_h, 0). Legend: B a
transformer block of the UNet, f its feature map, C the prompt with the predicted word, C_h with its nearest hard token,
W_delta the low-rank changes, alpha the blend.

A block is one of the UNet's transformers, which alone read text and hold attention projections ("each attention branch
is repeated twice", Figure 2). Between them both paths have the same feature map, so only they run on a batch of twice
the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from imprint.backbone import Backbone, TextConditioning
from imprint.methods.batched_low_rank import BatchedLowRank, Factors
from imprint.methods.shells import shell


@dataclass(frozen=True)
class _Call:
    """What the hooks need to know of the call that is under way."""

    hard: Tensor | None
    factors: Factors


class DualPath:
    """A shell of a backbone, whose modules and weights it never touches, with hooks that run Eq. 5.

    `alpha` is the share of the personalized path; None runs that path alone.
    """

    def __init__(self, backbone: Backbone, alpha: float | None) -> None:
        self.backbone = shell(backbone)
        self.alpha = alpha
        self._call: _Call | None = None
        modules = dict(self.backbone.unet.named_modules())
        for projection in backbone.attention_projections():
            modules[projection.name.removesuffix(".weight")].register_forward_hook(self._add_change(projection.name))
        for module in modules.values():
            if isinstance(module, Transformer2DModel):
                module.register_forward_pre_hook(self._double, with_kwargs=True)
                module.register_forward_hook(self._blend)

    def denoise(
        self,
        latents: Float[Tensor, "b c h w"],
        timesteps: Int[Tensor, "b"],
        soft: TextConditioning,
        hard: TextConditioning | None,
        factors: Factors,
    ) -> Float[Tensor, "b c h w"]:
        """One call of the UNet: its raw output. `factors` have a row for each of the latents, or one for all.

        `hard` is not needed where the personalized path runs alone.
        """
        if self.alpha is not None:
            assert hard is not None, "the dual path needs the prompts with hard tokens"
            soft = self._blended_pooled(soft, hard)
        self._call = _Call(None if self.alpha is None or hard is None else hard.hidden, factors)
        try:
            return self.backbone.denoise(latents, timesteps, soft)
        finally:
            self._call = None

    def _blended_pooled(self, soft: TextConditioning, hard: TextConditioning) -> TextConditioning:
        """SDXL's pooled text reaches the time embedding, outside of all blocks; it is blended alike."""
        if soft.pooled is None or hard.pooled is None:
            return soft
        return replace(soft, pooled=self.alpha * soft.pooled + (1 - self.alpha) * hard.pooled)

    def _double(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._call is None or self._call.hard is None:
            return None
        features, *rest = args
        text = torch.cat([kwargs["encoder_hidden_states"], self._call.hard.to(kwargs["encoder_hidden_states"])])
        return (torch.cat([features, features]), *rest), kwargs | {"encoder_hidden_states": text}

    def _blend(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._call is None or self._call.hard is None:
            return None
        personal, plain = output[0].chunk(2)
        return (self.alpha * personal + (1 - self.alpha) * plain,)

    def _add_change(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            call = self._call
            pair: BatchedLowRank | None = None if call is None else call.factors.get(name)
            if pair is None:
                return None
            if call.hard is None:
                return output + pair.change(args[0])
            rows = len(output) // 2
            return torch.cat([output[:rows] + pair.change(args[0][:rows]), output[rows:]])

        return hook

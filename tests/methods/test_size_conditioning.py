"""An SDXL backbone is trained on the sizes and crops that come with a batch, whatever the method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from imprint.backbone import Backbone
from imprint.config.methods import DomainAgnosticSpec, E4TSpec, ProFusionSpec, TamingSpec
from imprint.features.clip import ClipFeatures
from imprint.methods.domain_agnostic import DomainAgnosticObjective
from imprint.methods.e4t import E4TObjective
from imprint.methods.profusion import ProFusionObjective
from imprint.methods.taming import TamingObjective, TripletBatch
from imprint.objective import Objective
from imprint.training.objectives.denoising import DenoisingObjective

TIME_IDS = torch.tensor(
    [[480, 400, 5, 0, 16, 16], [16, 16, 0, 0, 16, 16], [64, 32, 8, 0, 16, 16], [20, 40, 0, 8, 16, 16]]
)
OBJECTIVES: dict[str, Callable[[Backbone, ClipFeatures], Objective]] = {
    "e4t": lambda backbone, clip: E4TObjective(backbone, E4TSpec(), clip),
    "domain_agnostic": lambda backbone, clip: DomainAgnosticObjective(backbone, DomainAgnosticSpec(), clip),
    "profusion": lambda backbone, clip: ProFusionObjective(backbone, ProFusionSpec(), clip),
    "taming": lambda backbone, clip: TamingObjective(backbone, TamingSpec(), clip),
    "denoising": lambda backbone, clip: DenoisingObjective(backbone),
}


@pytest.mark.parametrize("method", OBJECTIVES)
def test_the_unet_is_told_the_sizes_of_the_batch(
    tiny_sdxl: Path, clip: ClipFeatures, triplets: TripletBatch, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Backbone.load(tiny_sdxl)
    torch.manual_seed(0)
    objective = OBJECTIVES[method](backbone, clip)
    seen: list[torch.Tensor] = []

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["added_cond_kwargs"]["time_ids"])
        return original(self, *args, **kwargs)

    original = UNet2DConditionModel.forward  # of the class: some methods call a copy of the module
    monkeypatch.setattr(UNet2DConditionModel, "forward", forward)

    mean, std = backbone.latent_moments(triplets["pixel_values"])
    batch: Any = {**triplets, **({"latent_mean": mean, "latent_std": std} if method == "denoising" else {})}
    losses = [float(objective({**batch, **sizes}, torch.Generator().manual_seed(0)).loss.detach())
              for sizes in ({"time_ids": TIME_IDS}, {})]  # fmt: skip
    assert torch.equal(seen[0], TIME_IDS.to(seen[0]))
    assert torch.equal(seen[1], torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 4))
    assert losses[0] != losses[1]

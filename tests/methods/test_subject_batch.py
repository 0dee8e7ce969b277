"""A batch of one subject: each prompt speaks of the picture that it stands beside."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import LoraTuneSpec
from imprint.methods.augment import spread_evenly
from imprint.methods.base import Pictures
from imprint.methods.subject_batch import SubjectBatches


def test_contexts_stay_with_their_pictures(sd15: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three plain pictures, each with its shade for a context; the latents are the shade itself."""
    shades = [-0.9, 0.0, 0.9]
    images = torch.stack([torch.full((3, 16, 16), shade) for shade in shades])
    spec = LoraTuneSpec(batch_size=6, templates=("<concept>",))
    monkeypatch.setattr(Backbone, "latent_moments", plain_moments)
    batches = SubjectBatches(sd15, spec, Pictures(images, contexts=[str(shade) for shade in shades]))
    orders = set()
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        batch = batches.draw(generator)
        contexts = [float(prompt.removeprefix("<concept>, ")) for prompt in batch.prompts]
        x0 = sd15.schedule.to_x0(batch.target, batch.xt, batch.timesteps)  # what a perfect network would give
        shown = x0.mean(dim=(1, 2, 3)).tolist()
        assert shown == pytest.approx(contexts, abs=0.02)
        assert sorted(contexts) == sorted(shades * 2)
        orders.add(tuple(contexts))
    assert len(orders) > 1


def plain_moments(backbone: Backbone, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The picture itself for a latent, without spread."""
    return pixels, torch.zeros_like(pixels)


def clean(backbone: Backbone, batches: SubjectBatches, seed: int) -> Tensor:
    """x_0 of a batch, by its noise taken off again."""
    batch = batches.draw(torch.Generator().manual_seed(seed))
    return backbone.schedule.to_x0(batch.target, batch.xt, batch.timesteps)


def test_kept_crops_are_encoded_once_and_shown_in_turn(sd15: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []

    def counting(backbone: Backbone, pixels: Tensor) -> tuple[Tensor, Tensor]:
        encoded.append(len(pixels))
        return plain_moments(backbone, pixels)

    monkeypatch.setattr(Backbone, "latent_moments", counting)
    ramp = torch.linspace(-1, 1, 16 * 16).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    spec = LoraTuneSpec(batch_size=2, crops=6, crop_scale=0.5, timestep_logits=(-3.0, 0.1), templates=("<concept>",))
    kept = SubjectBatches(sd15, spec, Pictures(ramp), seed=1)
    seen = {round(crop.mean().item(), 1) for seed in range(12) for crop in clean(sd15, kept, seed)}
    assert encoded == [6]
    assert 3 <= len(seen) <= 6
    fresh = SubjectBatches(sd15, spec.model_copy(update={"crops": None}), Pictures(ramp), seed=1)
    more = {round(crop.mean().item(), 2) for seed in range(12) for crop in clean(sd15, fresh, seed)}
    assert encoded == [6] + [2] * 12
    assert len(more) > 12


def test_kept_crops_keep_their_masks_and_contexts(sd15: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backbone, "latent_moments", plain_moments)
    shades = torch.tensor([-0.5, 0.5])
    images = shades.view(2, 1, 1, 1).expand(2, 3, 16, 16)
    pictures = Pictures(images, masks=(images[:, :1] + 1) / 2, contexts=["-0.5", "0.5"])
    spec = LoraTuneSpec(batch_size=4, crops=8, mask_loss=True, templates=("<concept>",))
    batch = SubjectBatches(sd15, spec, pictures).draw(torch.Generator().manual_seed(0))
    own = [float(prompt.removeprefix("<concept>, ")) for prompt in batch.prompts]
    assert batch.masks is not None
    assert batch.masks.mean(dim=(1, 2, 3)).tolist() == pytest.approx([(shade + 1) / 2 for shade in own])
    x0 = sd15.schedule.to_x0(batch.target, batch.xt, batch.timesteps)
    assert x0.mean(dim=(1, 2, 3)).tolist() == pytest.approx(own, abs=0.02)


def test_timesteps_follow_the_density_that_is_asked_for(sd15: Backbone) -> None:
    pictures = Pictures(torch.zeros(1, 3, 16, 16))
    early = LoraTuneSpec(batch_size=8, templates=("<concept>",), timestep_logits=(-3.0, 0.1))
    batch = SubjectBatches(sd15, early, pictures).draw(torch.Generator().manual_seed(0))
    assert batch.timesteps.max() < 70  # 1000 / (1 + exp(3 - 3 * 0.1)) is 63
    uniform = early.model_copy(update={"timestep_logits": None})
    everywhere = SubjectBatches(sd15, uniform, pictures).draw(torch.Generator().manual_seed(0))
    assert sorted((everywhere.timesteps // 125).tolist()) == list(range(8))


def test_views_are_spread_evenly() -> None:
    order = spread_evenly(3, 7, torch.Generator().manual_seed(0)).tolist()
    assert sorted(order.count(picture) for picture in range(3)) == [2, 2, 3]

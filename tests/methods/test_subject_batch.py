"""A batch of one subject: each prompt speaks of the picture that it stands beside."""

from __future__ import annotations

import pytest
import torch

from imprint.backbone import Backbone
from imprint.config.methods import LoraTuneSpec
from imprint.methods.augment import spread_evenly
from imprint.methods.subject_batch import subject_batch


def test_contexts_stay_with_their_pictures(sd15: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three plain pictures, each with its shade for a context; the latents are the shade itself."""
    shades = [-0.9, 0.0, 0.9]
    images = torch.stack([torch.full((3, 16, 16), shade) for shade in shades])
    spec = LoraTuneSpec(batch_size=6, templates=("<concept>",))
    monkeypatch.setattr(Backbone, "encode_images", lambda self, pixels, generator: pixels)
    orders = set()
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        batch = subject_batch(sd15, spec, images, None, [str(shade) for shade in shades], generator)
        contexts = [float(prompt.removeprefix("<concept>, ")) for prompt in batch.prompts]
        x0 = sd15.schedule.to_x0(batch.target, batch.xt, batch.timesteps)  # what a perfect network would give
        shown = x0.mean(dim=(1, 2, 3)).tolist()
        assert shown == pytest.approx(contexts, abs=0.02)
        assert sorted(contexts) == sorted(shades * 2)
        orders.add(tuple(contexts))
    assert len(orders) > 1


def test_timesteps_follow_the_density_that_is_asked_for(sd15: Backbone) -> None:
    images = torch.zeros(1, 3, 16, 16)
    early = LoraTuneSpec(batch_size=8, templates=("<concept>",), timestep_logits=(-3.0, 0.1))
    batch = subject_batch(sd15, early, images, None, None, torch.Generator().manual_seed(0))
    assert batch.timesteps.max() < 70  # 1000 / (1 + exp(3 - 3 * 0.1)) is 63
    everywhere = subject_batch(
        sd15, early.model_copy(update={"timestep_logits": None}), images, None, None, torch.Generator().manual_seed(0)
    )
    assert sorted((everywhere.timesteps // 125).tolist()) == list(range(8))


def test_views_are_spread_evenly() -> None:
    order = spread_evenly(3, 7, torch.Generator().manual_seed(0)).tolist()
    assert sorted(order.count(picture) for picture in range(3)) == [2, 2, 3]

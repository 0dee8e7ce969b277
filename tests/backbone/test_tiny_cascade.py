"""The embedded second stage, imprint-tiny-x4, on people that no training saw."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.backbone import Backbone
from imprint.backbone.super_resolution import SuperResolution
from imprint.config.jobs.prepare import PrepareFaces
from imprint.config.methods import SuperResolutionSampler
from imprint.methods.cascade import shrink
from imprint.pipelines.datasets.compositing import composite
from imprint.pipelines.datasets.face_identity import draw_identities
from imprint.pipelines.datasets.faces import FaceItem, render_item
from imprint.sampling.super_resolution import upscale
from imprint.training.batches import to_pixel_values


@pytest.fixture(scope="module")
def model() -> SuperResolution:
    return SuperResolution.load("imprint-tiny-x4")


@pytest.fixture(scope="module")
def faces() -> Tensor:
    """Two held-out people at 256 px, drawn by another seed than the training's."""
    spec = PrepareFaces(job="prepare_faces", name="test", seed=11, out_dir="none", backgrounds={"photo": 0})
    found = []
    for number, identity in enumerate(draw_identities(spec.seed, 0, 2)["heldout"]):
        drawn = render_item(spec, FaceItem("heldout", number, 0, identity), 256)
        found.append(composite(drawn.subject, drawn.background))
    return to_pixel_values(torch.stack([torch.from_numpy(one) for one in found]).numpy())


def psnr(one: Tensor, two: Tensor) -> float:
    return float(-10 * ((one - two) / 2).square().mean(dim=(1, 2, 3)).log10().mean())


def test_it_fits_the_first_stage(model: SuperResolution) -> None:
    backbone = Backbone.load("imprint-tiny")
    assert model.image_size == model.factor * backbone.image_size == 256


def test_it_knows_faces_better_than_bicubic_does(model: SuperResolution, faces: Tensor) -> None:
    small = shrink(faces, 4)
    drawn = upscale(model, small, ["a photo of a person"] * 2, SuperResolutionSampler(steps=8))
    bicubic = F.interpolate(small, (256, 256), mode="bicubic", align_corners=False).clamp(-1, 1)
    assert psnr(drawn, faces) > psnr(bicubic, faces) + 1

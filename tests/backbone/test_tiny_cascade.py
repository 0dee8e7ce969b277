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


def test_it_fits_the_first_stage(model: SuperResolution) -> None:
    backbone = Backbone.load("imprint-tiny")
    assert model.image_size == model.factor * backbone.image_size == 256


def test_it_draws_what_bicubic_lacks_of_faces(model: SuperResolution, faces: Tensor) -> None:
    """What it adds to the enlarged picture correlates with what is missing there; noise or a blur would not."""
    small = shrink(faces, 4)
    drawn = upscale(model, small, ["a photo of a person"] * 2, SuperResolutionSampler(steps=8))
    bicubic = F.interpolate(small, (256, 256), mode="bicubic", align_corners=False).clamp(-1, 1)
    added, missing = (drawn - bicubic).flatten(1), (faces - bicubic).flatten(1)
    assert float(F.cosine_similarity(added, missing).min()) > 0.3

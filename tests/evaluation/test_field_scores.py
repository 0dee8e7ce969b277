"""The field's metrics over whole columns, on pictures whose scores are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from imprint.config.jobs.metrics import MetricsSpec
from imprint.errors import ConfigError
from imprint.evaluation.field_scores import Drawings, FieldNetworks, Real, field_scores, prior_drift

SUBJECTS, OTHERS, COPIES = 3, 4, 2


@pytest.fixture(scope="module")
def spec(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> MetricsSpec:
    """Untrained networks of the real classes, from files."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", pretrained=False).state_dict(), folder / "vit.safetensors")
    trunk = torchvision.models.squeezenet1_1(weights=None).features.state_dict(prefix="features.")
    save_file(dict(trunk), folder / "squeeze.safetensors")
    return MetricsSpec(
        clip=str(tiny_clip), dino=f"timm:test_vit:{folder / 'vit.safetensors'}",
        lpips={"trunk": "squeeze", "file": str(folder / "squeeze.safetensors")},
    )  # fmt: skip


@pytest.fixture(scope="module")
def networks(spec: MetricsSpec) -> FieldNetworks:
    return FieldNetworks.load(spec)


def pictures(*shape: int, seed: int = 0) -> Tensor:
    """Coarse noise: what networks of random weights still tell apart."""
    coarse = torch.rand(*shape, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return coarse.repeat_interleave(8, -1).repeat_interleave(8, -2)


@pytest.fixture(scope="module")
def real() -> Real:
    return Real(pictures(SUBJECTS, seed=1), list(pictures(SUBJECTS, OTHERS, seed=2)))


def column(images: Tensor) -> Drawings:
    return Drawings(images, ["a photo of a cat", "a photo of a face", "a photo of a person"])


def test_a_column_of_copies_and_one_of_the_subjects_other_pictures(
    networks: FieldNetworks, spec: MetricsSpec, real: Real
) -> None:
    columns = {
        "input": column(real.inputs[:, None].expand(-1, COPIES, -1, -1, -1)),
        "others": column(torch.stack([images[:COPIES] for images in real.others])),
    }
    scores = field_scores(networks, real, columns, spec)
    assert set(scores.each) == {"CLIP-I", "CLIP-T", "DINO", "DIV", "copies"}
    assert all(value.shape == (SUBJECTS,) for each in scores.each.values() for value in each.values())
    assert scores.each["copies"]["input"].tolist() == [1, 1, 1]
    assert scores.each["copies"]["others"].mean() < 0.5
    np.testing.assert_allclose(scores.each["DIV"]["input"], 0, atol=1e-6)
    assert scores.each["DIV"]["others"].min() > 1e-3
    assert scores.kid["others"].mean < scores.kid["input"].mean


def test_each_metric_is_of_its_own_network_subject_and_prompt(
    networks: FieldNetworks, spec: MetricsSpec, real: Real
) -> None:
    drawn = column(pictures(SUBJECTS, COPIES, seed=7))
    each = field_scores(networks, real, {"x": drawn}, spec).each
    assert networks.clip is not None and networks.dino is not None
    for n in range(SUBJECTS):
        for metric, network in (("CLIP-I", networks.clip.encode_image), ("DINO", networks.dino)):
            pairs = network(drawn.images[n]) @ network(real.others[n]).T
            assert each[metric]["x"][n] == pytest.approx(float(pairs.mean()), abs=1e-5)
        text = networks.clip.encode_image(drawn.images[n]) @ networks.clip.encode_text([drawn.prompts[n]])[0]
        assert each["CLIP-T"]["x"][n] == pytest.approx(float(text.mean()), abs=1e-5)


def test_a_copied_background_makes_a_copy(networks: FieldNetworks, spec: MetricsSpec, real: Real) -> None:
    """Another subject in front of the input's own background, which masks alone can tell."""
    repainted = real.inputs.clone()
    repainted[..., 8:24, 8:24] = pictures(SUBJECTS, seed=9)[..., 8:24, 8:24]
    drawn = {"x": column(repainted[:, None])}

    def masks(images: Tensor) -> Tensor:
        mask = torch.zeros(len(images), 1, 32, 32)
        mask[..., 8:24, 8:24] = 1
        return mask

    strict = spec.model_copy(update={"copy_quantile": 0.999999, "kid": False})
    assert field_scores(networks, real, drawn, strict, masks=masks).each["copies"]["x"].tolist() == [1, 1, 1]
    elsewhere = {"x": column(pictures(SUBJECTS, 1, seed=11))}
    assert field_scores(networks, real, elsewhere, strict, masks=masks).each["copies"]["x"].tolist() == [0, 0, 0]


def test_prior_drift_is_what_tuning_added(networks: FieldNetworks, real: Real) -> None:
    """A model whose class has become the subject draws the subject when asked for the class."""
    of_class, subject = pictures(6, seed=5), real.others[0]
    collapsed = prior_drift(networks, subject, of_class, subject)
    kept = prior_drift(networks, of_class, of_class, subject)
    assert kept.drift == 0 and kept.div == kept.div_before
    assert collapsed.drift > 0.01 and collapsed.pres > collapsed.pres_before
    same = prior_drift(networks, subject[:1].expand(4, -1, -1, -1), of_class, subject)
    assert same.div == pytest.approx(0, abs=1e-6) and (same.div_before or 0) > 1e-3


def test_without_networks(real: Real) -> None:
    with pytest.raises(ConfigError, match="neither clip nor dino is named"):
        field_scores(FieldNetworks(), real, {}, MetricsSpec())

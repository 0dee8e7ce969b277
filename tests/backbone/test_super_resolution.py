"""Second stages of a cascade: diffusers' two classes, against diffusers' own pipelines."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, IFSuperResolutionPipeline, StableDiffusionUpscalePipeline
from torch import Tensor

from imprint.backbone.super_resolution import SuperResolution
from imprint.config.methods import SuperResolutionSampler
from imprint.errors import BackboneError
from imprint.sampling.super_resolution import SuperResolutionDenoiser, upscale

BOTH = pytest.mark.parametrize("name", ["tiny_x4", "tiny_if"])


def small(count: int = 1, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(9)) * 2 - 1


def first_noise(model: SuperResolution, seed: int) -> tuple[Tensor, Tensor]:
    """The noise that one picture starts from, and what is added to the small picture after it."""
    generator = torch.Generator().manual_seed(seed)
    _, _, height, width = model.condition_shape(small())
    return (
        torch.randn(1, model.channels, height, width, generator=generator),
        torch.randn(1, 3, height, width, generator=generator),
    )


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("level", [0, 20])
def test_the_x4_upscaler_draws_as_its_own_pipeline(tiny_x4: Path, scale: float, level: int) -> None:
    model = SuperResolution.load(tiny_x4)
    pipeline = StableDiffusionUpscalePipeline.from_pretrained(tiny_x4)
    pipeline.set_progress_bar_config(disable=True)
    variance = 1 - float(pipeline.low_res_scheduler.alphas_cumprod[level])
    spec = SuperResolutionSampler(steps=4, guidance_scale=scale, noise_augmentation=variance)
    got = upscale(model, small(), ["a cat on blue"], spec, seeds=[5])
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(1, 4, 16, 16, generator=generator)  # ours draws this first, the pipeline the small's noise
    expected = pipeline(
        "a cat on blue", (small() + 1) / 2, num_inference_steps=4, guidance_scale=scale, noise_level=level,
        latents=latents, generator=generator, output_type="pt",
    ).images  # fmt: skip
    assert got.shape == (1, 3, 64, 64)
    torch.testing.assert_close((got + 1) / 2, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("level", [0, 250])
def test_deepfloyd_if_denoises_as_its_own_pipeline(
    tiny_if: Path, scale: float, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    """One step of it from t = 300, where DDPM's last step leaves x_0."""
    model = SuperResolution.load(tiny_if)
    with caplog.at_level(logging.ERROR):
        pipeline = IFSuperResolutionPipeline.from_pretrained(tiny_if, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "a cat", image=small(), timesteps=[300], guidance_scale=scale, noise_level=level,
        generator=torch.Generator().manual_seed(5), output_type="pt",
    ).images  # fmt: skip
    noise, augmentation = first_noise(model, 5)
    variance = 1 - pipeline.image_noising_scheduler.alphas_cumprod[level]
    text, empty = model.encode_text(["A cat "]), model.encode_text([""])
    denoiser = SuperResolutionDenoiser(
        model, model.condition(small(), variance.view(1), augmentation), torch.tensor([level]), text,
        None if scale == 1 else empty, scale,
    )  # fmt: skip
    got = denoiser(noise, torch.tensor([300])).x0
    assert got.shape == (1, 3, 64, 64) and float((got.abs() == 1).float().mean()) < 0.9
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


@BOTH
def test_it_says_what_it_is(name: str, request: pytest.FixtureRequest) -> None:
    model = SuperResolution.load(request.getfixturevalue(name))
    assert (model.kind, model.channels) == (("latent", 4) if name == "tiny_x4" else ("pixel", 3))
    assert (model.factor, model.image_size) == (4, 64)
    assert not any(p.requires_grad for module in model.modules() for p in module.parameters())
    assert model.fingerprint() == SuperResolution.load(request.getfixturevalue(name), dtype=torch.float16).fingerprint()


@BOTH
def test_a_picture_does_not_depend_on_its_neighbours(name: str, request: pytest.FixtureRequest) -> None:
    model = SuperResolution.load(request.getfixturevalue(name))
    spec = SuperResolutionSampler(steps=2, batch_size=2)
    three = upscale(model, small(3), ["a cat", "a face", "a photo"], spec, seeds=[1, 2, 3])
    alone = upscale(model, small(3)[2:], ["a photo"], spec, seeds=[3])
    assert three.shape == (3, 3, 64, 64)
    torch.testing.assert_close(three[2:], alone, rtol=0, atol=1e-5)


@BOTH
def test_the_noise_on_small_pictures_is_the_schedulers(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    model = SuperResolution.load(folder)
    part = "low_res_scheduler" if name == "tiny_x4" else "image_noising_scheduler"
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder=part)
    _, noise = first_noise(model, 1)
    clean = model.condition(small(), torch.zeros(1), None)
    for level in (0, 7, 120):
        variance = 1 - scheduler.alphas_cumprod[level]
        expected = scheduler.add_noise(clean, noise, torch.tensor([level]))
        torch.testing.assert_close(model.condition(small(), variance.view(1), noise), expected, rtol=0, atol=1e-6)
        assert model.noise_level(float(variance)) == level
        assert float(model.level_variances(torch.tensor([level]))) == pytest.approx(float(variance), rel=1e-4)


def test_the_papers_levels_and_too_much(tiny_x4: Path) -> None:
    """1e-5 lies below the first level, 1 - abar_0 = 1e-4; 1e-3 is the eighth of this schedule, by hand."""
    model = SuperResolution.load(tiny_x4)
    betas = torch.linspace(0.0001**0.5, 0.02**0.5, 1000, dtype=torch.float64) ** 2
    variances = 1 - torch.cumprod(1 - betas, 0)
    nearest = min(range(1000), key=lambda level: abs(float(variances[level].log()) - torch.tensor(1e-3).log().item()))
    assert model.noise_level(1e-5) == 0 and model.noise_level(1e-3) == nearest > 0
    with pytest.raises(BackboneError, match="was trained with at most"):
        model.noise_level(0.9)


def test_another_class_and_a_missing_part_are_refused(tiny_sd15: Path, tiny_if: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="it is a StableDiffusionPipeline, expected one of"):
        SuperResolution.load(tiny_sd15)
    with pytest.raises(BackboneError, match="found no model_index"):
        SuperResolution.load(tmp_path / "nothing")
    folder = shutil.copytree(tiny_if, tmp_path / "if")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"text_encoder": [None, None]}))
    with pytest.raises(BackboneError, match="it has no text_encoder"):
        SuperResolution.load(folder)
    (folder / "model_index.json").write_text(json.dumps(index | {"unet": ["os", "system"]}))
    with pytest.raises(BackboneError, match="unet is a system of os"):
        SuperResolution.load(folder)

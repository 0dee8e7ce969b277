"""Tuning of a super-resolution model on a subject, DreamBooth section 4.3, and its two ablations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from imprint.backbone import Backbone
from imprint.backbone.super_resolution import SuperResolution
from imprint.config.methods import DreamBoothTuneSpec, SampleSpec, SuperResolutionSampler, SuperResolutionTuneSpec
from imprint.errors import ConceptError, ConfigError
from imprint.methods.base import Pictures
from imprint.methods.cascade import noisy_pair, random_crops, shrink
from imprint.methods.dreambooth.super_resolution import tune_super_resolution, with_tuned_weights
from imprint.sampling.super_resolution import upscale
from imprint.tuning import Concept, merge_concepts, personalize, sample_concept
from imprint.tuning.export import export_concept

BOTH = pytest.mark.parametrize("name", ["tiny_x4", "tiny_if"])


@pytest.fixture
def model(request: pytest.FixtureRequest, name: str) -> SuperResolution:
    return SuperResolution.load(request.getfixturevalue(name))


def pictures(size: int = 64, count: int = 2) -> Pictures:
    return Pictures(torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(5)) * 2 - 1)


def second(path: Path | str, **more: Any) -> SuperResolutionTuneSpec:
    return SuperResolutionTuneSpec(**({"model": str(path), "steps": 2, "batch_size": 2, "storage": "fp32"} | more))


def fixed_loss(model: SuperResolution, images: Tensor, variance: float = 1e-5) -> float:
    """The loss over noise of all strengths, the same for every model."""
    generator = torch.Generator().manual_seed(3)
    views = images.repeat(8, 1, 1, 1)
    level = torch.full((len(views),), model.noise_level(variance))
    with torch.no_grad():
        x0, low = model.encode_images(views), shrink(views, model.factor)
        pair = noisy_pair(model, x0, low, torch.full((len(views),), variance), level, generator)
        return float(pair.loss(model, model.encode_text(["a zzq cat"]).repeat(len(views))))


@BOTH
def test_tuning_learns_the_subject_and_leaves_the_model_alone(model: SuperResolution, name: str) -> None:
    before = model.fingerprint()
    spec = second(model.path, steps=12, batch_size=4, learning_rate=2e-3)
    tensors = tune_super_resolution(model, pictures(), spec, "a zzq cat", low_size=16)
    assert model.fingerprint() == before
    names = {name for name, _ in model.unet.named_parameters()}
    assert {key.removeprefix("super_resolution.") for key in tensors} == names
    tuned = with_tuned_weights(model, tensors)
    assert model.fingerprint() == before != tuned.fingerprint()
    assert fixed_loss(tuned, pictures().images) < 0.97 * fixed_loss(model, pictures().images)


@BOTH
def test_ablation_without_super_resolution_tuning(model: SuperResolution, name: str) -> None:
    assert tune_super_resolution(model, pictures(), second(model.path, enabled=False), "a cat", low_size=16) == {}


@BOTH
@pytest.mark.parametrize("variance", [1e-5, 1e-3])
def test_low_and_high_noise_augmentation(
    model: SuperResolution, name: str, variance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the network sees in tuning has noise of just this variance on the small pictures, and is told its level."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    original = SuperResolution.condition

    def watch(self: SuperResolution, low: Tensor, variances: Tensor, noise: Tensor | None) -> Tensor:
        condition = original(self, low, variances, noise)
        seen.append((condition, original(self, low, variances, None), variances))
        return condition

    levels: list[int] = []
    denoise = SuperResolution.denoise

    def watch_levels(self: SuperResolution, *arguments: Any) -> Tensor:
        levels.extend(arguments[3].tolist())
        return denoise(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(SuperResolution, "condition", watch)
        patch.setattr(SuperResolution, "denoise", watch_levels)
        spec = second(model.path, steps=1, batch_size=16, noise_augmentation=variance)
        tune_super_resolution(model, pictures(), spec, "a cat", low_size=16)
    ((condition, clean, told),) = seen
    assert told.tolist() == pytest.approx([variance] * 16)
    measured = float((condition - (1 - variance) ** 0.5 * clean).square().mean())
    assert measured == pytest.approx(variance, rel=0.1)
    assert levels == [model.noise_level(variance)] * 16
    if variance == 1e-3:
        assert levels[0] > model.noise_level(1e-5)


def test_pairs_are_one_picture_in_two_sizes() -> None:
    """Each small picture holds the means of 4 x 4 squares of its large one, cut on the grid of the small whole."""
    high = torch.arange(64.0).view(1, 1, 1, 64).expand(1, 3, 64, 64)
    crops = random_crops(high, 50, 32, 4, torch.Generator().manual_seed(0))
    starts = crops[:, 0, 0, 0]
    assert set(starts.tolist()) <= {4.0 * n for n in range(9)} and len(set(starts.tolist())) == 9
    expected = starts[:, None] + 4 * torch.arange(8) + 1.5
    torch.testing.assert_close(shrink(crops, 4)[:, 1, 3], expected)


@pytest.mark.parametrize("name", ["tiny_x4"])
def test_pictures_without_detail_and_crops_that_do_not_fit(model: SuperResolution, name: str) -> None:
    with pytest.raises(ConfigError, match="the pictures are 16 px and the first stage draws 16 px"):
        tune_super_resolution(model, pictures(16), second(model.path), "a cat", low_size=16)
    with pytest.raises(ConfigError, match="expected a multiple of 8"):
        tune_super_resolution(model, pictures(), second(model.path, crop_size=12), "a cat", low_size=16)
    tensors = tune_super_resolution(model, pictures(30), second(model.path, steps=1), "a cat", low_size=16)
    assert tensors  # 30 px: crops of 24


def dreambooth(path: Path, cache: Path, **more: Any) -> DreamBoothTuneSpec:
    return DreamBoothTuneSpec(
        steps=1, batch_size=2, identifier={"text": "zzq"}, storage="fp32",
        prior={"images": 2, "cache_dir": str(cache), "sampling": {"steps": 1}},
        super_resolution=second(path, learning_rate=1e-2, **more),
    )  # fmt: skip


def draw(backbone: Backbone, concept: Concept, **second_stage: Any) -> Tensor:
    spec = SampleSpec(steps=1, super_resolution={"steps": 2, **second_stage})
    return sample_concept(backbone, concept, ["a photo of <concept>"] * 2, spec, seeds=[3, 4])


def test_a_concept_draws_large_with_its_own_second_stage(
    tiny_sd15: Path, tiny_x4: Path, tiny_if: Path, tmp_path: Path
) -> None:
    backbone = Backbone.load(tiny_sd15)
    made = personalize(backbone, pictures(), dreambooth(tiny_x4, tmp_path / "cache"), class_noun="cat")
    concept = Concept.load(made.save(tmp_path / "concept"))
    own = concept.learned.settings["super_resolution"]
    assert own["fingerprint"] == SuperResolution.load(tiny_x4).fingerprint() and own["noise_augmentation"] == 1e-5
    small = draw(backbone, concept, enabled=False)
    large = draw(backbone, concept)
    assert small.shape == (2, 3, 16, 16) and large.shape == (2, 3, 64, 64)
    model = SuperResolution.load(tiny_x4)
    sampler = SuperResolutionSampler(steps=2, noise_augmentation=1e-5)
    prompts = ["a photo of a zzq cat"] * 2
    tuned = with_tuned_weights(model, concept.learned.tensors)
    torch.testing.assert_close(large, upscale(tuned, small, prompts, sampler, seeds=[3, 4]), rtol=0, atol=1e-5)
    untuned = draw(backbone, concept, tuned=False)
    torch.testing.assert_close(untuned, upscale(model, small, prompts, sampler, seeds=[3, 4]), rtol=0, atol=1e-5)
    assert float((large - untuned).abs().max()) > 1e-2
    assert draw(backbone, concept, model=str(tiny_if), tuned=False).shape == (2, 3, 64, 64)
    with pytest.raises(ConceptError, match="has other weights"):
        draw(backbone, concept, model=str(tiny_if))


def test_the_ablation_keeps_a_concept_small_and_its_second_stage_as_it_came(
    tiny_sd15: Path, tiny_x4: Path, tmp_path: Path
) -> None:
    backbone = Backbone.load(tiny_sd15)
    spec = dreambooth(tiny_x4, tmp_path / "cache", enabled=False)
    concept = personalize(backbone, pictures(), spec, class_noun="cat")
    assert not any(name.startswith("super_resolution.") for name in concept.learned.tensors)
    assert draw(backbone, concept).shape == (2, 3, 64, 64)
    assert torch.equal(draw(backbone, concept), draw(backbone, concept, tuned=False))


def test_the_first_stage_alone_is_merged_and_exported(tiny_sd15: Path, tiny_x4: Path, tmp_path: Path) -> None:
    backbone = Backbone.load(tiny_sd15)
    spec = dreambooth(tiny_x4, tmp_path / "cache").model_copy(update={"train": "lora"})
    first = personalize(backbone, pictures(), spec, class_noun="cat")
    other = spec.model_copy(update={"identifier": spec.identifier.model_copy(update={"text": "qqz"})})
    merged = merge_concepts([first, personalize(backbone, pictures(), other, class_noun="cat")])
    assert not any(name.startswith("super_resolution.") for name in merged.learned.tensors)
    assert "super_resolution" not in merged.learned.settings
    (file,), _ = export_concept(backbone, first, "diffusers-lora", tmp_path / "lora")
    assert file.is_file()


def test_tensors_of_another_model_do_not_fit(tiny_x4: Path) -> None:
    model = SuperResolution.load(tiny_x4)
    name, parameter = next(iter(model.unet.named_parameters()))
    wrong = {f"super_resolution.{name}": torch.zeros(*parameter.shape, 1)}
    with pytest.raises(ConceptError, match="does not fit the super-resolution model"):
        with_tuned_weights(model, wrong)
    assert with_tuned_weights(model, {"unet.conv_in.weight": torch.zeros(1)}) is model

"""DreamBooth: class images and their cache, what the prompts say, and the ablations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from imprint.backbone import Backbone
from imprint.config.methods import AncestralSampleSpec, DreamBoothTuneSpec, PriorSpec, SampleSpec
from imprint.methods.base import Pictures
from imprint.methods.dreambooth import class_images, sample, tune
from imprint.methods.dreambooth.prior import cache_key
from imprint.sampling.draw import draw_prompts


@pytest.fixture
def prior(tmp_path: Path) -> PriorSpec:
    return PriorSpec(images=3, cache_dir=str(tmp_path / "cache"), sampling=AncestralSampleSpec(steps=2))


def pictures() -> Pictures:
    return Pictures(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1)


def spec(prior: PriorSpec, **more: Any) -> DreamBoothTuneSpec:
    keys = {"steps": 1, "batch_size": 2, "prior": prior, "identifier": {"text": "zzq"}, "storage": "fp32"}
    return DreamBoothTuneSpec(**(keys | more))


def prompts_of(backbone: Backbone, spec: DreamBoothTuneSpec, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that tuning encodes, without those of drawing class images."""
    seen: list[list[str]] = []
    original = Backbone.encode_text
    if spec.prior.enabled:
        class_images(backbone, spec.prior, "cat")
    with monkeypatch.context() as patch:
        patch.setattr(
            Backbone, "encode_text", lambda self, prompts, *rest: seen.append(list(prompts)) or original(self, prompts)
        )
        tune(backbone, pictures(), spec, class_noun="cat")
    (only,) = seen
    return only


def test_class_images_are_the_frozen_models_own_of_the_class(sd15: Backbone, prior: PriorSpec) -> None:
    images = class_images(sd15, prior, "cat")
    assert images.dtype == torch.uint8 and images.shape == (3, 3, 16, 16)
    expected = draw_prompts(sd15, ["a cat"] * 3, prior.sampling, seeds=[0, 1, 2])
    assert float((images.float() / 127.5 - 1 - expected).abs().max()) <= 0.5 / 127.5 + 1e-5
    assert prior.sampling.sampler == PriorSpec().sampling.sampler == "ddpm"


def test_the_cache_spares_drawing_again(sd15: Backbone, prior: PriorSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    images = class_images(sd15, prior, "cat")
    with monkeypatch.context() as patch:
        patch.setattr("imprint.methods.dreambooth.prior.draw_prompts", lambda *_, **__: pytest.fail("drawn again"))
        assert torch.equal(class_images(sd15, prior, "cat"), images)
        fewer = prior.model_copy(update={"images": 2})
        assert torch.equal(class_images(sd15, fewer, "cat"), images[:2])
    more = class_images(sd15, prior.model_copy(update={"images": 5}), "cat")
    assert torch.equal(more[:3], images) and len(more) == 5
    assert not list(Path(prior.cache_dir).glob(".*"))


def test_the_cache_is_by_model_prompt_and_sampler(sd15: Backbone, tiny_sd21: Path, prior: PriorSpec) -> None:
    key = cache_key(sd15, prior, "a cat")
    slower = prior.model_copy(update={"sampling": prior.sampling.model_copy(update={"steps": 3})})
    larger_batch = prior.model_copy(update={"sampling": prior.sampling.model_copy(update={"batch_size": 2})})
    assert cache_key(Backbone.load(tiny_sd21), prior, "a cat") != key
    assert cache_key(sd15, prior, "a dog") != key
    assert cache_key(sd15, slower, "a cat") != key
    assert cache_key(sd15, larger_batch, "a cat") == key


def test_a_broken_cache_is_drawn_anew(sd15: Backbone, prior: PriorSpec) -> None:
    images = class_images(sd15, prior, "cat")
    (file,) = Path(prior.cache_dir).rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-7])
    assert torch.equal(class_images(sd15, prior, "cat"), images)


def test_the_prompts_are_the_papers(sd15: Backbone, prior: PriorSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prompts_of(sd15, spec(prior), monkeypatch) == ["a zzq cat"] * 2 + ["a cat"] * 2


@pytest.mark.parametrize(("noun", "subject"), [("red", "a zzq red"), ("", "a zzq")])
def test_ablation_of_the_class_noun(
    sd15: Backbone, prior: PriorSpec, monkeypatch: pytest.MonkeyPatch, noun: str, subject: str
) -> None:
    assert prompts_of(sd15, spec(prior, noun=noun), monkeypatch) == [subject] * 2 + ["a cat"] * 2


def test_ablation_of_prior_preservation(sd15: Backbone, prior: PriorSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    off = prior.model_copy(update={"enabled": False})
    assert prompts_of(sd15, spec(off), monkeypatch) == ["a zzq cat"] * 2
    assert not Path(prior.cache_dir).exists()


def test_the_prior_term_pulls_the_weights_elsewhere(sd15: Backbone, prior: PriorSpec) -> None:
    with_, without = (
        tune(sd15, pictures(), spec(prior.model_copy(update={"enabled": on})), class_noun="cat") for on in (True, False)
    )
    assert any(not torch.equal(value, without.tensors[name]) for name, value in with_.tensors.items())


def test_prompts_say_the_phrase_when_drawing(sd15: Backbone, prior: PriorSpec) -> None:
    """Without any change of the weights a concept draws what its phrase draws."""
    learned = tune(sd15, pictures(), spec(prior, learning_rates={"unet": 0}), class_noun="cat")
    assert not learned.tensors
    sampling = SampleSpec(steps=2)
    got = sample(sd15, learned, ["a photo of <concept> on blue"], sampling, seeds=[4])
    assert torch.equal(got, draw_prompts(sd15, ["a photo of a zzq cat on blue"], sampling, seeds=[4]))


def test_full_tuning_moves_every_weight_of_the_unet(sd15: Backbone, prior: PriorSpec) -> None:
    learned = tune(sd15, pictures(), spec(prior, steps=2, text_encoder=True), class_noun="cat")
    names = {f"unet.{name}" for name, _ in sd15.unet.named_parameters()}
    assert {name for name in learned.tensors if name.startswith("unet.")} == names
    text = {name for name in learned.tensors if name.startswith("text_encoder.")}
    assert text and not any("embedding" in name for name in text)
    moved = [name for name, value in learned.tensors.items() if float(value.abs().max()) > 0]
    assert len(moved) > 0.9 * len(learned.tensors)

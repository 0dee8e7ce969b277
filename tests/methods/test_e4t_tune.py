"""Tuning on one concept: what it changes, what it must not, and what sampling makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from imprint.backbone import Backbone
from imprint.config.methods import E4TEncoderSpec, E4TSpec, E4TTuneSpec, LearningRates, SampleSpec
from imprint.errors import ConfigError, TrainingError
from imprint.features.clip import ClipFeatures
from imprint.methods.augment import random_views
from imprint.methods.base import Pictures
from imprint.methods.e4t import E4TParts, sample, sample_features, tune
from imprint.methods.e4t.learned import unpack
from imprint.methods.e4t.tune import concept_features

FAST = LearningRates(encoder=1e-3, offsets=1e-3, unet=1e-3)


def parts_of(backbone: Backbone, clip: ClipFeatures, **spec: Any) -> E4TParts:
    torch.manual_seed(0)
    parts = E4TParts.build(backbone, E4TSpec(**spec), clip)
    if parts.offsets is not None:
        with torch.no_grad():
            for stack in parts.offsets.shapes.values():
                stack.column_bias.normal_(std=0.1)
    return parts


def pictures(count: int = 1, **more: Any) -> Pictures:
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1
    return Pictures(images, **more)


def spec(**more: Any) -> E4TTuneSpec:
    return E4TTuneSpec(**({"steps": 2, "batch_size": 4, "learning_rates": FAST, "storage": "fp32"} | more))


def state(parts: E4TParts) -> dict[str, torch.Tensor]:
    modules = {"encoder": parts.encoder, "offsets": parts.offsets}
    return {f"{k}.{n}": v.clone() for k, m in modules.items() if m is not None for n, v in m.state_dict().items()}


def test_tuning_leaves_backbone_and_parts_as_they_were(backbone: Backbone, clip: ClipFeatures) -> None:
    parts = parts_of(backbone, clip)
    before, fingerprint = state(parts), backbone.fingerprint()
    learned = tune(parts, pictures(), spec())
    assert backbone.fingerprint() == fingerprint
    assert all(torch.equal(value, before[name]) for name, value in state(parts).items())
    assert not any(p.requires_grad for m in backbone.modules() for p in m.parameters())
    assert any(name.startswith("unet.") and float(v.abs().max()) > 0 for name, v in learned.tensors.items())


def test_an_exception_from_the_callback_changes_nothing(sd15: Backbone, clip: ClipFeatures) -> None:
    parts = parts_of(sd15, clip)
    before, fingerprint = state(parts), sd15.fingerprint()

    def cancel(step: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(parts, pictures(), spec(), callback=cancel)
    assert sd15.fingerprint() == fingerprint
    assert all(torch.equal(value, before[name]) for name, value in state(parts).items())
    assert not any(p.requires_grad or p.grad is not None for m in sd15.modules() for p in m.parameters())


def test_tuning_lowers_the_loss_on_the_picture(sd15: Backbone, clip: ClipFeatures) -> None:
    losses: list[float] = []
    tune(
        parts_of(sd15, clip), pictures(), spec(steps=40, batch_size=16), callback=lambda step, loss: losses.append(loss)
    )
    assert len(losses) == 40
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])


def test_the_same_seed_gives_the_same_concept(sd15: Backbone, clip: ClipFeatures) -> None:
    parts = parts_of(sd15, clip)
    first, second = (tune(parts, pictures(), spec(), seed=3) for _ in range(2))
    other = tune(parts, pictures(), spec(), seed=4)
    assert all(torch.equal(value, second.tensors[name]) for name, value in first.tensors.items())
    assert any(not torch.equal(value, other.tensors[name]) for name, value in first.tensors.items())


@pytest.mark.parametrize(("unet", "tuned"), [("all", "all"), ("attention", "attention"), ("none", "offset")])
def test_which_of_the_unet_is_tuned(sd15: Backbone, clip: ClipFeatures, unet: str, tuned: str) -> None:
    learned = tune(parts_of(sd15, clip), pictures(), spec(unet=unet))
    names = {name.removeprefix("unet.") for name in learned.tensors if name.startswith("unet.")}
    projections = sd15.attention_projections()
    expected = {
        "all": {name for name, _ in sd15.unet.named_parameters()},
        "attention": {p.name for p in projections},
        "offset": {p.name for p in projections if p.role != "out"},
    }
    assert names == expected[tuned]


@pytest.mark.parametrize("group", ["encoder", "offsets", "unet"])
def test_a_learning_rate_of_zero_leaves_its_group(sd15: Backbone, clip: ClipFeatures, group: str) -> None:
    parts = parts_of(sd15, clip)
    rates = FAST.model_copy(update={group: 0.0})
    learned = tune(parts, pictures(), spec(learning_rates=rates))
    baked = parts.offsets.bake(parts.base_weights())  # type: ignore[union-attr]
    own = dict(sd15.unet.named_parameters())
    if group == "encoder":
        assert all(torch.equal(learned.tensors[f"encoder.{n}"], v) for n, v in parts.encoder.state_dict().items())
    if group == "unet":
        assert {n for n in learned.tensors if n.startswith("unet.")} == {f"unet.{n}" for n in baked}
    if group == "offsets":
        # what is left of W'' = W (1 + dW) is W's own change, of about the two steps' learning rate
        for name, value in baked.items():
            tuned = (own[name] + learned.tensors[f"unet.{name}"]) / (value / own[name])
            assert (tuned - own[name]).abs().median() < 3e-3


def test_zero_steps_is_the_encoder_alone(backbone: Backbone, clip: ClipFeatures) -> None:
    """A concept without tuning draws what the pretrained parts draw from the same CLIP features."""
    parts = parts_of(backbone, clip)
    learned = tune(parts, pictures(), spec(steps=0))
    prompts, sampling = ["a photo of <concept>", "<concept> on blue"], SampleSpec(steps=2)
    features = [f.expand(2, -1) for f in concept_features(parts, pictures().images, None)]
    torch.testing.assert_close(
        sample(backbone, learned, prompts, sampling), sample_features(parts, features, prompts, sampling),
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip


def test_sampling_uses_the_tuned_weights_and_the_offsets_baked_once(
    backbone: Backbone, clip: ClipFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a single step written out: refinement, W' of training, guidance."""
    from imprint.methods.e4t.offsets import WeightOffsets

    parts = parts_of(backbone, clip)
    learned = tune(parts, pictures(), spec())
    ready = unpack(backbone, learned)
    monkeypatch.setattr(WeightOffsets, "forward", lambda *_: pytest.fail("offsets were computed while sampling"))
    got = sample(backbone, learned, ["a photo of <concept>"], SampleSpec(steps=1, guidance_scale=3.0), seeds=[7])
    xt = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    timesteps = torch.tensor([999])
    with torch.no_grad():
        text, _ = ready.parts.condition(ready.features, xt, timesteps, ["a photo of <concept>"])
        with_text = backbone.denoise(xt, timesteps, text, ready.weights)
        without = backbone.denoise(xt, timesteps, backbone.encode_text([""]), ready.weights)
        x0 = backbone.schedule.to_x0(without + 3.0 * (with_text - without), xt, timesteps)
        expected = backbone.decode_latents(x0)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    own = dict(backbone.unet.named_parameters())
    assert any(not torch.equal(value, own[name]) for name, value in ready.weights.items())


def test_features_of_clip_are_computed_once(
    sd15: Backbone, clip: ClipFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original = ClipFeatures.layers
    monkeypatch.setattr(ClipFeatures, "layers", lambda self, images: calls.append(1) or original(self, images))
    learned = tune(parts_of(sd15, clip), pictures(), spec(steps=3))
    sample(sd15, learned, ["<concept>"], SampleSpec(steps=3))
    assert calls == [1]


def test_without_refinement_the_text_encoder_runs_once(sd15: Backbone, clip: ClipFeatures) -> None:
    calls: list[int] = []
    handle = sd15.text_encoders[0].register_forward_pre_hook(lambda *_: calls.append(1))
    counts = {}
    for refinement in (True, False):
        parts = parts_of(sd15, clip, encoder=E4TEncoderSpec(refinement=refinement))
        features = concept_features(parts, pictures().images, None)
        calls.clear()
        sample_features(parts, features, ["<concept>"], SampleSpec(steps=5))
        counts[refinement] = len(calls)
    handle.remove()
    # one more in each for the unconditional branch
    assert counts == {True: 6, False: 2}


def test_every_row_of_a_batch_is_another_crop() -> None:
    images = torch.rand(2, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    views = random_views(images, 16, 16, crop_scale=0.7, flip=True, generator=torch.Generator().manual_seed(1))
    assert views.shape == (16, 4, 16, 16)
    distances = torch.cdist(views.flatten(1), views.flatten(1)) + torch.eye(16) * 10
    assert float(distances.min()) > 0.5


def test_a_whole_crop_is_the_picture_or_its_mirror() -> None:
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    views = random_views(images, 8, 16, crop_scale=1.0, flip=True, generator=torch.Generator().manual_seed(1))
    same = [torch.allclose(view, images[0], atol=1e-4) for view in views]
    mirrored = [torch.allclose(view, images[0].flip(-1), atol=1e-4) for view in views]
    assert any(same) and any(mirrored)
    assert all(a != b for a, b in zip(same, mirrored, strict=True))


def test_crops_of_a_wide_picture_stay_square_and_inside() -> None:
    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 32, 64).contiguous()
    views = random_views(ramp, 32, 16, crop_scale=0.5, flip=False, generator=torch.Generator().manual_seed(1))
    spans = views[:, 0, 0, -1] - views[:, 0, 0, 0]
    # a square of half to all of the height spans a quarter to a half of the width, less one of 16 pixels
    assert float(spans.min()) > 2 * 0.25 * 15 / 16 - 0.05 and float(spans.max()) < 2 * 0.5 * 15 / 16 + 0.05


def test_masks_weight_the_loss(sd15: Backbone, clip: ClipFeatures) -> None:
    masks = torch.zeros(1, 1, 16, 16)
    masks[..., :8] = 1
    losses: list[float] = []
    for on in (True, False):
        subject = pictures(masks=masks)
        tune(parts_of(sd15, clip), subject, spec(mask_loss=on), callback=lambda step, loss: losses.append(loss))
    assert len(losses) == 4 and losses[0] != losses[2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"masks": torch.ones(2, 1, 16, 16)}, "2 masks for 1 pictures"),
        ({"contexts": ["a", "b"]}, "2 contexts for 1 pictures"),
    ],
)
def test_masks_and_contexts_must_fit(sd15: Backbone, clip: ClipFeatures, given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tune(parts_of(sd15, clip), pictures(**given), spec())


def test_no_pictures(sd15: Backbone, clip: ClipFeatures) -> None:
    with pytest.raises(ConfigError, match="no pictures"):
        tune(parts_of(sd15, clip), Pictures(torch.zeros(0, 3, 16, 16)), spec())


def test_a_loss_that_is_not_finite_stops_tuning(sd15: Backbone, clip: ClipFeatures) -> None:
    broken = Pictures(torch.full((1, 3, 16, 16), float("nan")))
    with pytest.raises(TrainingError, match="the loss is nan at step 1"):
        tune(parts_of(sd15, clip), broken, spec())


def test_a_prompt_without_the_placeholder(sd15: Backbone, clip: ClipFeatures) -> None:
    learned = tune(parts_of(sd15, clip), pictures(), spec(steps=0))
    with pytest.raises(ConfigError, match="write <concept> in it"):
        sample(sd15, learned, ["a photo of a cat"], SampleSpec(steps=1))


def test_several_pictures_of_one_concept(sd15: Backbone, clip: ClipFeatures) -> None:
    learned = tune(parts_of(sd15, clip), pictures(3, contexts=["on blue", "on red", "smiling"]), spec())
    single = concept_features(parts_of(sd15, clip), pictures(3).images[:1], None)
    mean = torch.stack([feature for feature in clip.layers(pictures(3).images)]).mean(1)
    torch.testing.assert_close(torch.cat([learned.tensors["clip.0"], learned.tensors["clip.1"]]), mean)
    assert not torch.allclose(learned.tensors["clip.0"], single[0])

"""PromptNet, its training, its tuning and what fusion sampling makes of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image

from imprint.backbone import Backbone, TokenReplacements
from imprint.config.methods import (
    AugmentationSpec,
    FusionSpec,
    InpaintingSpec,
    ProFusionSpec,
    ProFusionTuneSpec,
    PromptNetSpec,
    SampleSpec,
)
from imprint.errors import BackboneError, ConceptError, ConfigError, DataError
from imprint.features.clip import ClipFeatures
from imprint.features.unet_taps import encoder_features
from imprint.methods.augment import placed_views, smooth_colours
from imprint.methods.base import Learned, Pictures
from imprint.methods.profusion import ProFusionObjective, ProFusionParts, merge, preview, sample, tune
from imprint.methods.profusion.augmentation import augmented
from imprint.methods.profusion.encoder import PromptNet, copy_where_shapes_allow
from imprint.methods.profusion.learned import unpack
from imprint.objective import Batch


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def objective(backbone: Backbone, clip: ClipFeatures, **spec: Any) -> ProFusionObjective:
    torch.manual_seed(0)
    return ProFusionObjective(backbone, ProFusionSpec(**spec), clip)


def parts_of(backbone: Backbone, clip: ClipFeatures, **spec: Any) -> ProFusionParts:
    return objective(backbone, clip, **spec).requires_grad_(False).parts


def pictures(count: int = 1, seed: int = 5, **more: Any) -> Pictures:
    return Pictures(torch.rand(count, 3, 16, 16, generator=seeded(seed)) * 2 - 1, **more)


def spec(**more: Any) -> ProFusionTuneSpec:
    own = {"steps": 2, "batch_size": 2, "storage": "fp32", "learning_rate": 1e-3, "augmentation": {"images": 2}}
    return ProFusionTuneSpec(**(own | more))


def test_the_stem_sums_two_convolutions_and_the_rest_is_the_unets_encoder(sd15: Backbone) -> None:
    """With text-wide image embeddings every shape fits, and PromptNet's features are those of the UNet's encoder."""
    torch.manual_seed(0)
    net = PromptNet(sd15, PromptNetSpec(), sd15.unet.config.cross_attention_dim, "face")
    with torch.no_grad():
        net.body.conv_in.reference.weight.zero_()
        net.body.conv_in.reference.bias.zero_()
    xt, x0 = (torch.randn(2, 4, 8, 8, generator=seeded(seed)) for seed in (0, 1))
    image, timesteps = torch.randn(2, 1, 16, generator=seeded(2)), torch.tensor([10, 900])
    with torch.no_grad():
        expected = encoder_features(sd15.unet, xt, timesteps, image)
        got = encoder_features(net.body, torch.cat([x0, xt], dim=1), timesteps, image)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other)
        net.body.conv_in.reference.weight.normal_()
        stem = net.body.conv_in(torch.cat([x0, xt], dim=1))
        torch.testing.assert_close(stem, net.body.conv_in.reference(x0) + sd15.unet.conv_in(xt))


def test_weights_are_the_unets_where_shapes_allow(backbone: Backbone, clip: ClipFeatures) -> None:
    net = parts_of(backbone, clip).promptnet
    own = dict(backbone.unet.named_parameters())
    fresh = [name for name, p in net.body.named_parameters() if name not in own or not torch.equal(p, own[name])]
    assert clip.joint_width in (16, 32)
    for name in fresh:
        assert name.startswith("conv_in.") or name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")), name
    assert len(fresh) < 0.3 * len(list(net.body.parameters()))
    assert not any(name.startswith(("up_blocks", "conv_out")) for name, _ in net.body.named_parameters())
    plain = parts_of(backbone, clip, encoder={"initialize": False}).promptnet
    assert not torch.equal(plain.body.mid_block.resnets[0].conv1.weight, own["mid_block.resnets.0.conv1.weight"])


def test_five_blocks_on_stable_diffusion() -> None:
    """The paper's PromptNet: four down blocks and a mid block; ViT-H/14's embeddings fit SD2's text width exactly."""
    sd2 = {
        "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 1024,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True,
    }  # fmt: skip
    with torch.device("meta"):
        unet, body = UNet2DConditionModel(**sd2), UNet2DConditionModel(**sd2)
        assert len(body.down_blocks) + 1 == 5
        assert copy_where_shapes_allow(body, unet) == []


def test_only_promptnet_trains_by_the_denoising_loss_alone(
    backbone: Backbone, clip: ClipFeatures, batch: Batch
) -> None:
    model = objective(backbone, clip)
    before = backbone.fingerprint()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(2):
        optimizer.zero_grad()
        output = model(batch, seeded(step))
        assert torch.equal(output.loss.detach(), output.metrics["loss_diffusion"])
        output.loss.backward()
        optimizer.step()
    still = [name for name, p in model.named_parameters() if p.grad is None or float(p.grad.abs().sum()) == 0]
    # One token to attend to gets all the attention, so that what the query and the key are makes no difference.
    assert all("attn2.to_q" in name or "attn2.to_k" in name or "norm2" in name for name in still), still
    assert backbone.fingerprint() == before
    assert all(not p.requires_grad for module in backbone.modules() for p in module.parameters())


def test_the_word_is_of_reference_noisy_latents_and_timestep(backbone: Backbone, clip: ClipFeatures) -> None:
    parts = parts_of(backbone, clip, encoder={"vectors": 2})
    reference, other = (parts.reference(pictures(seed=seed).images) for seed in (1, 2))
    xt = torch.randn(1, 4, 8, 8, generator=seeded())

    @torch.no_grad()
    def word(reference: Any, xt: torch.Tensor, t: int) -> torch.Tensor:
        words = parts.promptnet(reference.latents, xt, torch.tensor([t]), reference.embedding)
        assert [tuple(w.shape) for w in words] == [(1, 2, width) for width in backbone.embedding_widths]
        return torch.cat(words, dim=-1)

    first = word(reference, xt, 500)
    for changed in (word(other, xt, 500), word(reference, -xt, 500), word(reference, xt, 20)):
        assert not torch.allclose(first, changed)


def test_another_view_of_the_reference_is_a_switch(sd15: Backbone, clip: ClipFeatures, batch: Batch) -> None:
    plain, other = objective(sd15, clip), objective(sd15, clip, other_view={"degrees": 40})
    assert not torch.equal(plain(batch, seeded()).loss, other(batch, seeded()).loss)


def test_attention_layers_are_tuned_or_left(sd15: Backbone, clip: ClipFeatures) -> None:
    learned = tune(parts_of(sd15, clip), pictures(), spec())
    changed = {name.removeprefix("unet.") for name in learned.tensors if name.startswith("unet.")}
    assert changed == {name for name, _ in sd15.unet.named_parameters() if ".attn1.to_" in name or ".attn2.to_" in name}
    alone = tune(parts_of(sd15, clip), pictures(), spec(attention=False))
    assert not any(name.startswith("unet.") for name in alone.tensors)


def test_zero_steps_draw_what_promptnet_alone_draws(backbone: Backbone, clip: ClipFeatures) -> None:
    parts = parts_of(backbone, clip)
    learned = tune(parts, pictures(), spec(steps=0))
    prompts, sampling = ["a photo of <concept>", "<concept> on blue"], SampleSpec(steps=2)
    drawn = sample(backbone, learned, prompts, sampling)
    expected = preview(parts, pictures().images.repeat(2, 1, 1, 1), prompts, sampling)
    torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-3)


def test_one_step_of_algorithm_1_with_a_concept(backbone: Backbone, clip: ClipFeatures) -> None:
    """S* anew at x_t and at the fused x~_t, gamma S* with C by Eq. 3, Eq. 7, and Eq. 6; on every family."""
    learned = tune(parts_of(backbone, clip), pictures(), spec())
    fusion = FusionSpec(gamma=0.5, sigma=1.0, guidance_scale=2.0, subject_scales=(1.5,))
    sampling = SampleSpec(steps=1, guidance_scale=4.0, fusion=fusion)
    got = sample(backbone, learned, ["a photo of <concept> on blue"], sampling, seeds=[7])
    ready = unpack(backbone, learned)
    (parts, reference), model, schedule = ready.subjects[0], ready.backbone, backbone.schedule
    generator, t = seeded(7), torch.tensor([999])
    xt = torch.randn(4, 8, 8, generator=generator)[None]
    abar = schedule.alphas_cumprod[999].float()

    @torch.no_grad()
    def eps(xt: torch.Tensor, prompt: str, scale: float = 1.0) -> torch.Tensor:
        words = parts.promptnet(reference.latents, xt, t, reference.embedding)
        text = backbone.encode_text([prompt], TokenReplacements(tuple(scale * word for word in words)))
        return schedule.to_eps(model.denoise(xt, t, text), xt, t)

    none = eps(xt, "")
    fused = none + 2.0 * (eps(xt, "a photo of <concept> on blue", 0.5) - none)
    x0 = (xt - (1 - abar).sqrt() * fused) / abar.sqrt()
    xt = abar.sqrt() * x0 + (1 - abar).sqrt() * torch.randn(4, 8, 8, generator=generator)[None]
    none = eps(xt, "")
    both = none + 1.5 * (eps(xt, "<concept>") - none) + 4.0 * (eps(xt, "a photo of a person on blue") - none)
    expected = backbone.decode_latents((xt - (1 - abar).sqrt() * both) / abar.sqrt())
    torch.testing.assert_close(got, expected, rtol=2e-3, atol=5e-3)


def test_without_fusion_sampling_s_and_c_are_one_prompt(backbone: Backbone, clip: ClipFeatures) -> None:
    """The baseline of Figure 8: classifier-free guidance, Eq. 3, with S* whole in the prompt; one step written out."""
    learned = tune(parts_of(backbone, clip), pictures(), spec())
    sampling = SampleSpec(steps=1, guidance_scale=4.0, fusion=FusionSpec(enabled=False, gamma=0.5))
    got = sample(backbone, learned, ["a photo of <concept> on blue"], sampling, seeds=[7])
    ready = unpack(backbone, learned)
    (parts, reference), t = ready.subjects[0], torch.tensor([999])
    xt = torch.randn(4, 8, 8, generator=seeded(7))[None]
    with torch.no_grad():
        words = TokenReplacements(parts.promptnet(reference.latents, xt, t, reference.embedding))
        texts = [backbone.encode_text([""]), backbone.encode_text(["a photo of <concept> on blue"], words)]
        none, both = (ready.backbone.denoise(xt, t, text) for text in texts)
        expected = backbone.decode_latents(backbone.schedule.to_x0(none + 4.0 * (both - none), xt, t))
    torch.testing.assert_close(got, expected, rtol=2e-3, atol=5e-3)


def test_two_subjects_with_a_weight_each(sd15: Backbone, clip: ClipFeatures) -> None:
    """At scale 0 and m = 0 a subject takes no part; with other scales it does."""
    parts = parts_of(sd15, clip)
    first, second = (tune(parts, pictures(seed=s), spec(steps=0), class_noun=n) for s, n in ((1, "cat"), (2, "face")))
    both = merge([first, second], [1, 1])
    assert both.settings["nouns"] == ["cat", "face"] and both.placeholders == ("<concept-1>", "<concept-2>")

    def drawn(learned: Learned, prompt: str, *scales: float) -> torch.Tensor:
        fusion = FusionSpec(steps=0, subject_scales=scales)
        return sample(sd15, learned, [prompt], SampleSpec(steps=2, fusion=fusion), seeds=[3])

    alone = drawn(second, "a photo of a cat and <concept>", 2.0)
    torch.testing.assert_close(drawn(both, "a photo of <concept-1> and <concept-2>", 0.0, 2.0), alone)
    assert not torch.allclose(drawn(both, "a photo of <concept-1> and <concept-2>", 1.0, 2.0), alone, atol=1e-3)
    with pytest.raises(ConfigError, match="got 3 for 2 subjects"):
        drawn(both, "<concept-1>", 1.0, 1.0, 1.0)


def test_what_does_not_merge(sd15: Backbone, clip: ClipFeatures) -> None:
    parts = parts_of(sd15, clip)
    tuned = tune(parts, pictures(), spec(steps=1))
    with pytest.raises(ConceptError, match="tune it again with attention=false"):
        merge([tuned, tuned], [1, 1])
    alone = tune(parts, pictures(), spec(steps=0))
    with pytest.raises(ConfigError, match=r"by fusion\.subject_scales; leave --weight out"):
        merge([alone, alone], [1, 0.5])


def test_only_ddim_makes_fusion_steps(sd15: Backbone, clip: ClipFeatures) -> None:
    learned = tune(parts_of(sd15, clip), pictures(), spec(steps=0))
    with pytest.raises(ConfigError, match="expected 'ddim'"):
        sample(sd15, learned, ["<concept>"], SampleSpec(steps=1, sampler="ddpm"))


# -- augmentation -------------------------------------------------------------------------------------------


def subject() -> Pictures:
    """A white square in the middle of black."""
    images, masks = torch.full((1, 3, 32, 32), -1.0), torch.zeros(1, 1, 32, 32)
    images[..., 10:22, 10:22], masks[..., 10:22, 10:22] = 1, 1
    return Pictures(images, masks, ["on black"])


def test_composited_pictures_show_the_subject_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "imprint"):
        made = augmented(subject(), AugmentationSpec(images=6), class_noun="cat", generator=seeded())
    assert "no inpainting pipeline and no backgrounds" in caplog.text
    assert made.images.shape == (7, 3, 32, 32) and made.masks is not None and made.contexts is None
    assert torch.equal(made.images[:1], subject().images)
    new, masks = made.images[1:], made.masks[1:]
    inside, outside = masks.expand_as(new) > 0.99, masks.expand_as(new) < 0.01
    assert float((new[inside] - 1).abs().max()) < 0.05, "the subject keeps its colour"
    assert float((new[outside] + 1).abs().mean()) > 0.3, "and the black is gone"
    areas = masks.sum(dim=(1, 2, 3))
    assert float(areas.min()) > 0.3 * 144 and float(areas.max()) <= 1.02 * 144
    assert len({round(float(area)) for area in areas}) > 3


def test_a_turned_square_keeps_its_area_and_a_shrunk_one_loses_it() -> None:
    masks = subject().masks
    assert masks is not None
    turned = placed_views(masks, smallest=1.0, degrees=90, generator=seeded(), padding="zeros")
    assert float(turned.sum()) == pytest.approx(144, rel=0.03)
    wide = torch.nn.functional.pad(masks, (16, 16))
    turned = placed_views(wide, smallest=1.0, degrees=90, generator=seeded(), padding="zeros")
    assert float(turned.sum()) == pytest.approx(144, rel=0.03)
    small = placed_views(masks.repeat(64, 1, 1, 1), smallest=0.5, degrees=0, generator=seeded(), padding="zeros")
    # the side is uniform in 0.5 .. 1, so its square is 0.583 on average
    assert float(small.sum(dim=(1, 2, 3)).mean()) == pytest.approx(0.583 * 144, rel=0.1)


def test_given_backgrounds_are_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (40, 24), (0, 255, 0)).save(tmp_path / "green.png")
    own = AugmentationSpec(images=2, backgrounds=str(tmp_path))
    with caplog.at_level(logging.INFO, "imprint"):
        made = augmented(subject(), own, class_noun="cat", generator=seeded())
    assert "compositing on the pictures in" in caplog.text
    outside = made.masks[1:, 0] < 0.01  # type: ignore[index]
    for channel, value in enumerate((-1.0, 1.0, -1.0)):
        assert torch.allclose(made.images[1:, channel][outside], torch.tensor(value), atol=0.02)
    with pytest.raises(DataError, match="holds no pictures"):
        augmented(subject(), own.model_copy(update={"backgrounds": str(tmp_path / "none")}), class_noun="cat",
                  generator=seeded())  # fmt: skip


def test_without_masks_pictures_are_placed_anew_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    made = augmented(pictures(2), AugmentationSpec(images=3), class_noun="cat", generator=seeded())
    assert "have no masks" in caplog.text
    assert made.images.shape[0] == 5 and made.masks is None


def test_augmentation_is_a_switch() -> None:
    given = subject()
    assert augmented(given, AugmentationSpec(enabled=False), class_noun="cat", generator=seeded()) is given


def test_smooth_colours_differ_and_stay_in_range() -> None:
    colours = smooth_colours(4, 16, seeded())
    assert colours.shape == (4, 3, 16, 16) and float(colours.abs().max()) <= 1
    assert float((colours[0] - colours[1]).abs().mean()) > 0.1


@pytest.fixture
def inpainting(tiny_sd15: Path, tmp_path: Path) -> str:
    """A small random pipeline of the real class: nine channels into the UNet."""
    base = StableDiffusionPipeline.from_pretrained(tiny_sd15, use_safetensors=True)
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(dict(base.unet.config) | {"in_channels": 9})
    parts = {name: getattr(base, name) for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    pipeline = StableDiffusionInpaintPipeline(
        **parts, unet=unet, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.save_pretrained(tmp_path / "inpainting", safe_serialization=True)
    return str(tmp_path / "inpainting")


def test_an_inpainting_pipeline_paints_the_backgrounds(inpainting: str, caplog: pytest.LogCaptureFixture) -> None:
    own = AugmentationSpec(images=2, inpainting=InpaintingSpec(pipeline=inpainting, steps=2, prompt="a photo of a {}"))
    with caplog.at_level(logging.INFO, "imprint"):
        made = augmented(subject(), own, class_noun="cat", generator=seeded())
        again = augmented(subject(), own, class_noun="cat", generator=seeded())
    assert "by inpainting with" in caplog.text
    assert torch.equal(made.images, again.images)
    inside = made.masks[1:].expand_as(made.images[1:]) > 0.99  # type: ignore[index]
    assert float((made.images[1:][inside] - 1).abs().max()) < 0.05
    assert float((made.images[1] - made.images[2]).abs().mean()) > 0.01 and float(made.images.abs().max()) <= 1.001


def test_no_inpainting_pipeline_there(tmp_path: Path) -> None:
    own = AugmentationSpec(images=1, inpainting=InpaintingSpec(pipeline=str(tmp_path)))
    with pytest.raises(BackboneError, match="loading the inpainting pipeline"):
        augmented(subject(), own, class_noun="cat", generator=seeded())

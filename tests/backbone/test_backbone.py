"""Loading and calling small random pipelines of every family."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from imprint.backbone import Backbone, TextConditioning, TokenReplacements
from imprint.errors import BackboneError

FAMILY = {"tiny_sd15": "sd1", "tiny_sd21": "sd2", "tiny_sd21_v": "sd2", "tiny_sdxl": "sdxl"}


@pytest.mark.parametrize("fixture", FAMILY)
def test_family_and_prediction_type(fixture: str, request: pytest.FixtureRequest) -> None:
    backbone = Backbone.load(request.getfixturevalue(fixture))
    assert backbone.family.name == FAMILY[fixture]
    assert backbone.prediction_type == ("v_prediction" if fixture == "tiny_sd21_v" else "epsilon")
    assert backbone.latent_shape == (4, 8, 8)
    assert backbone.image_size == 16
    assert not any(p.requires_grad for module in backbone.modules() for p in module.parameters())


def test_text_equals_the_pipelines_own(any_pipeline: Path) -> None:
    backbone = Backbone.load(any_pipeline)
    prompts = ["a photo of a cat", "a smiling face on a red background"]
    conditioning = backbone.encode_text(prompts)
    if backbone.family.pooled:
        pipeline = StableDiffusionXLPipeline.from_pretrained(any_pipeline, add_watermarker=False)
        hidden, _, pooled, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
        torch.testing.assert_close(conditioning.pooled, pooled)
    else:
        pipeline = StableDiffusionPipeline.from_pretrained(any_pipeline, safety_checker=None)
        hidden, _ = pipeline.encode_prompt(prompts, "cpu", 1, False)
    torch.testing.assert_close(conditioning.hidden, hidden)


def test_replacing_a_word_by_its_own_embedding_changes_nothing(any_pipeline: Path) -> None:
    backbone = Backbone.load(any_pipeline)
    plain = backbone.encode_text(["a photo of a cat on a blue background"])
    own = tuple(rows[None] for rows in backbone.word_embedding("cat"))
    replaced = backbone.encode_text(["a photo of a <concept> on a blue background"], TokenReplacements(own))
    torch.testing.assert_close(replaced.hidden, plain.hidden)


def test_replacements_reach_their_own_prompt_only(any_pipeline: Path) -> None:
    backbone = Backbone.load(any_pipeline)
    vectors = tuple(torch.randn(2, 1, width, requires_grad=True) for width in backbone.embedding_widths)
    conditioning = backbone.encode_text(["a <concept> face", "a <concept> cat"], TokenReplacements(vectors))
    conditioning.hidden[1].square().sum().backward()
    for vector in vectors:
        assert vector.grad is not None
        assert vector.grad[0].abs().sum() == 0
        assert vector.grad[1].abs().sum() > 0


def test_a_placeholder_beyond_the_last_token_is_refused(tiny_sd15: Path) -> None:
    backbone = Backbone.load(tiny_sd15)
    vectors = (torch.zeros(1, 2, 16),)
    with pytest.raises(BackboneError, match="falls beyond"):
        backbone.encode_text(["a " * 30 + "<concept>"], TokenReplacements(vectors))


def test_several_placeholders_stand_side_by_side(any_pipeline: Path) -> None:
    """Two words at once, one of them of two positions, give what the ordinary words with those embeddings give."""
    backbone = Backbone.load(any_pipeline)
    cat, face = backbone.word_embedding("cat"), backbone.word_embedding("red face")
    first = TokenReplacements(tuple(vector[None] for vector in cat), "<concept-1>")
    second = TokenReplacements(tuple(vector[None] for vector in face), "<concept-2>")
    got = backbone.encode_text(["a <concept-2> on a <concept-1>", "<concept-1>, blue"], [first, second])
    expected = backbone.encode_text(["a red face on a cat", "cat, blue"])
    torch.testing.assert_close(got.hidden, expected.hidden)
    if expected.pooled is not None:
        torch.testing.assert_close(got.pooled, expected.pooled)


def test_vectors_of_the_wrong_width_are_refused(tiny_sd15: Path) -> None:
    with pytest.raises(BackboneError, match=r"expected one \[1 or 1, k, width\]"):
        Backbone.load(tiny_sd15).encode_text(["<concept>"], TokenReplacements((torch.zeros(1, 1, 7),)))


def test_replaced_weights_act_for_one_call_only(any_pipeline: Path) -> None:
    backbone = Backbone.load(any_pipeline)
    latents, timesteps = torch.randn(2, *backbone.latent_shape), torch.tensor([10, 900])
    conditioning = backbone.encode_text(["a cat", "a face"])
    before = backbone.denoise(latents, timesteps, conditioning)
    name = next(p.name for p in backbone.attention_projections() if p.role == "v")
    weight = dict(backbone.unet.named_parameters())[name]
    same = backbone.denoise(latents, timesteps, conditioning, {name: weight * 1.0})
    other = backbone.denoise(latents, timesteps, conditioning, {name: weight * 3.0})
    assert torch.equal(before, same)
    assert not torch.allclose(before, other)
    assert torch.equal(before, backbone.denoise(latents, timesteps, conditioning))


def test_sdxl_time_ids_are_sizes_in_pixels(tiny_sdxl: Path) -> None:
    backbone = Backbone.load(tiny_sdxl)
    conditioning = TextConditioning(torch.zeros(1, 24, 40), torch.zeros(1, 12))
    added = backbone.added_conditioning(conditioning, torch.zeros(1, 4, 8, 8))
    assert added is not None
    assert added["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]]
    own = torch.tensor([[64, 48, 3, 0, 16, 16], [32, 32, 0, 0, 16, 16]])
    both = TextConditioning.cat([conditioning.sized(own[:1]), conditioning.sized(own[1:])])
    added = backbone.added_conditioning(both.repeat(2)[1:3], torch.zeros(2, 4, 8, 8))
    assert added is not None and added["time_ids"].tolist() == own.tolist()


def test_attention_projections_are_all_and_typed(any_pipeline: Path) -> None:
    backbone = Backbone.load(any_pipeline)
    projections = backbone.attention_projections()
    modules = [m for name, m in backbone.unet.named_modules() if name.endswith((".attn1", ".attn2"))]
    assert len(projections) == 4 * len(modules) > 0
    for projection in projections:
        assert projection.kind == ("self" if ".attn1." in projection.name else "cross")
        width = backbone.unet.config.cross_attention_dim
        if projection.kind == "cross" and projection.role in ("k", "v"):
            assert projection.shape[1] == width


def test_fingerprint_is_of_the_weights(tiny_sd15: Path, tiny_sd21: Path) -> None:
    backbone = Backbone.load(tiny_sd15)
    assert backbone.fingerprint() == Backbone.load(tiny_sd15).fingerprint()
    assert backbone.fingerprint() != Backbone.load(tiny_sd21).fingerprint()
    with torch.no_grad():
        backbone.unet.conv_in.bias += 0.5
    assert backbone.fingerprint() != Backbone.load(tiny_sd15).fingerprint()


def test_latents_are_scaled_and_sampled(tiny_sd15: Path) -> None:
    backbone = Backbone.load(tiny_sd15)
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    mean, std = backbone.latent_moments(pictures)
    posterior = backbone.vae.encode(pictures).latent_dist
    torch.testing.assert_close(mean, posterior.mean * backbone.vae.config.scaling_factor)
    first = backbone.encode_images(pictures, torch.Generator().manual_seed(1))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(first, mean + std * noise)
    decoded = backbone.decode_latents(mean)
    torch.testing.assert_close(decoded, backbone.vae.decode(posterior.mean).sample.clamp(-1, 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nowhere", "neither a folder"),
        (lambda folder: folder, "model_index.json is missing"),
    ],
)
def test_a_wrong_path_is_a_clear_error(make: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=message):
        Backbone.load(make(tmp_path))  # type: ignore[operator]


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    file.write_bytes(b"\x80\x04")
    with pytest.raises(BackboneError, match=r"expected \.safetensors"):
        Backbone.load(file)


def test_missing_weights_are_a_clear_error(tiny_sd15: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_sd15, folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(BackboneError, match="loading a backbone from"):
        Backbone.load(folder)


def test_a_pipeline_of_another_kind_is_named(tmp_path: Path) -> None:
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BackboneError, match="DDPMPipeline has no vae"):
        Backbone.load(tmp_path)

"""Personalization by the Taming Encoder in one forward pass, and guidance by object and text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor
from typer.testing import CliRunner

from imprint.backbone import Backbone
from imprint.cli.app import app
from imprint.config.methods import SampleSpec, TamingTuneSpec
from imprint.errors import ConceptError, ConfigError
from imprint.features.clip import ClipFeatures
from imprint.methods.base import Pictures
from imprint.methods.taming import TamingParts, load_encoder, preview
from imprint.methods.taming.guidance import ObjectGuidedDenoiser
from imprint.tuning import Concept, merge_concepts, personalize, sample_concept
from imprint.tuning.export import export_concept

Network = Callable[..., Path]
SPEC = TamingTuneSpec()


def pictures(count: int = 1, *, masked: bool = True) -> Pictures:
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1
    masks = torch.zeros(count, 1, 16, 16)
    masks[..., 4:12] = 1
    return Pictures(images, masks if masked else None)


def raw_outputs(parts: TamingParts, objects: Tensor, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """eps(0, phi), eps(0, o) and eps(c, o), one call each, as numbers of float64."""
    null = torch.zeros_like(objects)
    calls = (([""], null), ([""], objects), (["a photo of a cat"], objects))
    with torch.no_grad():
        one, two, three = (parts.backbone.denoise(xt, t, parts.condition(p * 2, o)).double() for p, o in calls)
    return one, two, three


@pytest.mark.parametrize(("text", "own"), [(3.0, 1.5), (2.0, 0.0), (1.0, 4.0)])
def test_guidance_weighs_object_and_text_apart(
    backbone: Backbone, clip: ClipFeatures, trained_network: Network, text: float, own: float
) -> None:
    parts = load_encoder(trained_network(backbone), backbone, clip=clip)
    generator = torch.Generator().manual_seed(1)
    xt, t = torch.randn(2, *backbone.latent_shape, generator=generator), torch.tensor([10, 800])
    objects = parts.embed(torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1, None)
    spec = SampleSpec(guidance_scale=text, object_guidance_scale=own)
    got = ObjectGuidedDenoiser.of(parts, ["a photo of a cat"] * 2, objects, spec)(xt, t)
    null, object_, both = raw_outputs(parts, objects, xt, t)
    raw = null + own * (object_ - null) + text * (both - object_)
    expected = backbone.schedule.to_eps(raw.float(), xt, t)
    torch.testing.assert_close(got.eps, expected, rtol=1e-3, atol=1e-3)


def test_a_preview_of_many_subjects_is_what_a_concept_of_each_draws(
    sd15: Backbone, clip: ClipFeatures, trained_network: Network
) -> None:
    parts = load_encoder(trained_network(sd15), sd15, clip=clip)
    two, sampling, prompts = pictures(2), SampleSpec(steps=2), ["<concept>, laughing"] * 2
    drawn = preview(parts, two.images, prompts, sampling, masks=two.masks, seeds=[4, 5])
    assert two.masks is not None
    for number in range(2):
        own = Pictures(two.images[number : number + 1], two.masks[number : number + 1])
        concept = personalize(sd15, own, SPEC, encoder=parts)
        expected = sample_concept(sd15, concept, prompts[:1], sampling, seeds=[4 + number])
        torch.testing.assert_close(drawn[number], expected[0], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(drawn, preview(parts, two.images, prompts, sampling, seeds=[4, 5]), atol=1e-3)


def test_equation_2_of_both_conditions_and_of_the_text_alone(
    sd15: Backbone, clip: ClipFeatures, trained_network: Network
) -> None:
    """w_o = w_t is Eq. 2 over (caption, object); w_o = 1 is Eq. 2 over the caption. Two branches run, not three."""
    parts = load_encoder(trained_network(sd15), sd15, clip=clip)
    generator = torch.Generator().manual_seed(1)
    xt, t = torch.randn(2, *sd15.latent_shape, generator=generator), torch.tensor([10, 800])
    objects = parts.embed(torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1, None)
    null, object_, both = raw_outputs(parts, objects, xt, t)
    for own, without in ((None, null), (1.0, object_)):
        spec = SampleSpec(guidance_scale=4.0, object_guidance_scale=own)
        denoiser = ObjectGuidedDenoiser.of(parts, ["a photo of a cat"] * 2, objects, spec)
        equation_2 = 4.0 * both + (1 - 4.0) * without
        torch.testing.assert_close(denoiser(xt, t).eps.double(), equation_2, rtol=1e-4, atol=1e-4)
        assert len(denoiser.branches) == 2
    plain = ObjectGuidedDenoiser.of(parts, ["a photo of a cat"] * 2, objects, SampleSpec(guidance_scale=1.0))
    torch.testing.assert_close(plain(xt, t).eps.double(), both, rtol=1e-5, atol=1e-6)
    assert len(plain.branches) == 1


def test_the_concept_is_the_object_embedding_and_names_the_network(
    sd15: Backbone, clip: ClipFeatures, trained_network: Network, tmp_path: Path
) -> None:
    """Section 3.1: storage does not grow with the number of objects; a concept is one forward pass of CLIP."""
    folder = trained_network(sd15)
    concept = personalize(sd15, pictures(), SPEC, encoder=folder.parent, class_noun="cat")
    given = pictures()
    parts = load_encoder(folder, sd15, clip=clip)
    expected = parts.embed(given.images, given.masks)[0]
    assert set(concept.learned.tensors) == {"object"}
    torch.testing.assert_close(concept.learned.tensors["object"], expected, rtol=1e-5, atol=1e-5)
    assert concept.learned.settings["network"] == {"path": str(folder), "fingerprint": parts.fingerprint()}
    size = (concept.save(tmp_path / "concept") / "concept.safetensors").stat().st_size
    assert size < 4 * expected.numel() + 300


def test_several_pictures_and_pooled_embeddings(sd15: Backbone, clip: ClipFeatures, trained_network: Network) -> None:
    patches = load_encoder(trained_network(sd15), sd15, clip=clip)
    pooled_spec = {"object_encoder": {"clip": clip.name, "tokens": "pooled"}}
    pooled = load_encoder(trained_network(sd15, "pooled", **pooled_spec), sd15, clip=clip)
    three = pictures(3)
    side_by_side = personalize(sd15, three, SPEC, encoder=patches).learned.tensors["object"]
    assert torch.equal(side_by_side, torch.cat(list(patches.embed(three.images, three.masks))))
    mean = personalize(sd15, three, SPEC, encoder=pooled).learned.tensors["object"]
    torch.testing.assert_close(mean, pooled.embed(three.images, three.masks).mean(0))


def test_a_picture_without_a_mask_is_told(
    sd15: Backbone, trained_network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    personalize(sd15, pictures(masked=False), SPEC, encoder=trained_network(sd15))
    assert "the pictures have no mask" in caplog.text


def test_another_object_and_another_text_draw_another_picture(sd15: Backbone, trained_network: Network) -> None:
    network = trained_network(sd15)
    one = personalize(sd15, pictures(), SPEC, encoder=network, class_noun="cat")
    given = pictures()
    other = personalize(sd15, Pictures(-given.images, given.masks), SPEC, encoder=network, class_noun="cat")

    def draw(concept: Concept, prompt: str, **spec: float) -> Tensor:
        return sample_concept(sd15, concept, [prompt], SampleSpec(steps=3, **spec), seeds=[1])

    first = draw(one, "a photo of <concept>")
    assert torch.equal(first, draw(one, "a photo of <concept>"))
    assert not torch.allclose(first, draw(other, "a photo of <concept>"), atol=1e-4)
    assert not torch.allclose(first, draw(one, "a photo of <concept> with red glasses"), atol=1e-4)
    assert not torch.allclose(first, draw(one, "a photo of <concept>", object_guidance_scale=1.0), atol=1e-4)


def test_a_concept_needs_the_network_that_it_names(sd15: Backbone, trained_network: Network) -> None:
    network = trained_network(sd15)
    concept = personalize(sd15, pictures(), SPEC, encoder=network)
    trained_network(sd15, whole_network=False)
    with pytest.raises(ConceptError, match="made with another network than the one that is now in"):
        sample_concept(sd15, concept, ["<concept>"], SampleSpec(steps=1))
    shutil.rmtree(network)
    with pytest.raises(ConceptError, match=r"its network cannot be loaded: .* personalize anew with --encoder"):
        sample_concept(sd15, concept, ["<concept>"], SampleSpec(steps=1))


def test_nothing_is_tuned_merged_or_exported(sd15: Backbone, trained_network: Network, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="taming tunes nothing on a subject"):
        TamingTuneSpec(steps=5)
    with pytest.raises(ConfigError, match="taming starts from a pretrained encoder and got none"):
        personalize(sd15, pictures(), SPEC)
    concept = personalize(sd15, pictures(), SPEC, encoder=trained_network(sd15))
    with pytest.raises(ConceptError, match="taming learns of one subject does not add up"):
        merge_concepts([concept, concept])
    with pytest.raises(ConceptError, match="a concept of taming needs its own sampler"):
        export_concept(sd15, concept, "diffusers", tmp_path / "out")


def test_the_command_line(sd15: Backbone, trained_network: Network, tmp_path: Path) -> None:
    """`imprint personalize --method taming --encoder RUN`, zero steps, and `imprint sample`."""
    run = trained_network(sd15).parent
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "me.png")

    def invoke(*words: object) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    said = invoke(
        "personalize", "--method", "taming", "--encoder", run, "--images", tmp_path / "me.png", "--backbone", sd15.path,
        "--class-noun", "cat", "--out", tmp_path / "concept",
    )  # fmt: skip
    assert "0 steps" in said
    record = json.loads((tmp_path / "concept" / "concept.json").read_text())
    assert record["method"] == "taming" and record["settings"]["tune"]["steps"] == 0
    invoke(
        "sample", "--concept", tmp_path / "concept", "--prompt", "a photo of <concept>, smiling", "--steps", 2,
        "--out", tmp_path / "drawn", "--num-images", 2, "object_guidance_scale=1.5",
    )  # fmt: skip
    assert (tmp_path / "drawn" / "sample-001.png").is_file()
    result = CliRunner().invoke(
        app,
        [
            "personalize", "--method", "taming", "--steps", "5", "--encoder", str(run), "--images",
            str(tmp_path / "me.png"), "--out", str(tmp_path / "tuned"),
        ],
    )  # fmt: skip
    assert result.exit_code == 2 and "taming tunes nothing on a subject" in " ".join(result.output.split())

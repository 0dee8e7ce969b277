"""Concepts of the methods with an encoder: on the command line, merged, and in the formats of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from imprint.backbone import Backbone
from imprint.cli.app import app
from imprint.config.methods import PRETRAIN_SPECS, DomainAgnosticSpec, DomainAgnosticTuneSpec, FusionSpec, SampleSpec
from imprint.errors import ConceptError, ConfigError
from imprint.features.clip import ClipFeatures
from imprint.methods import METHODS
from imprint.methods.base import Pictures
from imprint.methods.domain_agnostic import DomainAgnosticParts
from imprint.methods.low_rank import read_factors
from imprint.methods.pretrained import save_encoder
from imprint.tuning import Concept, merge_concepts, personalize, sample_concept
from imprint.tuning.export import export_concept

NEW = [name for name in PRETRAIN_SPECS if name != "e4t"]  # e4t: test_personalize_cli.py


def invoke(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("method", NEW)
def test_personalize_and_sample_on_the_command_line(
    tiny_sd15: Path, tiny_clip: Path, tmp_path: Path, method: str
) -> None:
    backbone, clip = Backbone.load(tiny_sd15), ClipFeatures.load(tiny_clip)
    spec = PRETRAIN_SPECS[method].model_validate({"encoder": {"clip": str(tiny_clip)}})
    torch.manual_seed(0)
    state = METHODS[method].pretrain(backbone, spec, clip).state_dict()
    save_encoder(tmp_path / "run" / "encoder", state, spec, backbone, clip)
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "me.png")
    made = invoke(
        "personalize", "--images", tmp_path / "me.png", "--backbone", tiny_sd15, "--encoder", tmp_path / "run",
        "--method", method, "--steps", 1, "--out", tmp_path / "me", "batch_size=2",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    drawn = invoke("sample", "--concept", tmp_path / "me", "--prompt", "a photo of <concept>", "--num-images", 2,
                   "--steps", 2, "--out", tmp_path / "out")  # fmt: skip
    assert drawn.exit_code == 0 and (tmp_path / "out" / "sheet.png").is_file(), drawn.output
    wrong = invoke(
        "personalize", "--images", tmp_path / "me.png", "--backbone", tiny_sd15, "--encoder", tmp_path / "run",
        "--method", "e4t", "--out", tmp_path / "other",
    )  # fmt: skip
    assert wrong.exit_code != 0 and f"say --method {method}" in " ".join(wrong.output.split()), wrong.output


def domain_agnostic(backbone: Backbone, clip: ClipFeatures, seed: int = 0, **more: Any) -> Concept:
    """A concept of an encoder whose hypernetwork changes something."""
    torch.manual_seed(0)
    parts: DomainAgnosticParts = METHODS["domain_agnostic"].pretrain(backbone, DomainAgnosticSpec(), clip).parts
    assert parts.hypernetwork is not None
    with torch.no_grad():
        for layer in parts.hypernetwork.to_up:
            layer.bias.normal_(std=0.3)
    spec = DomainAgnosticTuneSpec(**({"steps": 2, "batch_size": 2, "storage": "fp32"} | more))
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return personalize(backbone, Pictures(images), spec, encoder=parts, seed=seed)


def test_a_lora_without_the_dual_path_gives_the_same_picture(
    any_pipeline: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    """`load_lora_weights` and `load_textual_inversion` of diffusers against our own sampler."""
    backbone = Backbone.load(any_pipeline)
    concept = domain_agnostic(backbone, ClipFeatures.load(tiny_clip), dual_path={"enabled": False})
    (lora, word), _ = export_concept(backbone, concept, "diffusers-lora", tmp_path, triggers=["<my-cat>"])
    pipe = DiffusionPipeline.from_pretrained(any_pipeline, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    keys = {"set_alpha_to_one": True, "timestep_spacing": "trailing"}
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **keys)
    pipe.load_lora_weights(lora)
    keys_of = {"clip_l": "", "clip_g": "_2"} if backbone.family.name == "sdxl" else {"<my-cat>": ""}
    for key, which in keys_of.items():
        parts = {part: getattr(pipe, part + which) for part in ("text_encoder", "tokenizer")}
        pipe.load_textual_inversion({"<my-cat>": load_file(word)[key]}, **parts)
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3))[None]
    drawn = pipe(
        "a photo of <my-cat> on blue", negative_prompt="", num_inference_steps=4, guidance_scale=2.5, latents=noise,
        output_type="pt", height=16, width=16,
    ).images * 2 - 1  # fmt: skip
    sampling = SampleSpec(steps=4, guidance_scale=2.5)
    ours = sample_concept(backbone, concept, ["a photo of <concept> on blue"], sampling, seeds=[3])
    torch.testing.assert_close(drawn, ours, rtol=1e-3, atol=3e-4)


def test_the_dual_path_is_in_no_file_of_other_programs(tiny_sd15: Path, tiny_clip: Path, tmp_path: Path) -> None:
    backbone = Backbone.load(tiny_sd15)
    concept = domain_agnostic(backbone, ClipFeatures.load(tiny_clip))
    with pytest.raises(ConceptError, match=r"tune it again with dual_path\.enabled=false"):
        export_concept(backbone, concept, "diffusers-lora", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_fusion_sampling_is_profusions_alone(tiny_sd15: Path, tiny_clip: Path) -> None:
    backbone = Backbone.load(tiny_sd15)
    concept = domain_agnostic(backbone, ClipFeatures.load(tiny_clip), steps=0)
    with pytest.raises(ConfigError, match="this is a concept of domain_agnostic; leave the keys of fusion out"):
        sample_concept(backbone, concept, ["<concept>"], SampleSpec(steps=1, fusion=FusionSpec()))


def test_merging_domain_agnostic_concepts(tiny_sd15: Path, tiny_clip: Path) -> None:
    """Words and hard tokens side by side, changes summed; a subject at weight 0 beside it changes no weight."""
    backbone, clip = Backbone.load(tiny_sd15), ClipFeatures.load(tiny_clip)
    first, second = domain_agnostic(backbone, clip), domain_agnostic(backbone, clip, seed=1)
    both = merge_concepts([first, second], [1.0, 0.5])
    own = [read_factors(one.learned.tensors) for one in (first, second)]
    for name, pair in read_factors(both.learned.tensors).items():
        expected = own[0][name].product() + 0.5 * own[1][name].product()
        torch.testing.assert_close(pair.product(), expected, rtol=1e-4, atol=1e-6)
    sampling = SampleSpec(steps=2)
    alone = sample_concept(backbone, second, ["a photo of <concept>"], sampling, seeds=[3])
    beside = merge_concepts([first, second], [0.0, 1.0])
    drawn = sample_concept(backbone, beside, ["a photo of <concept-2>"], sampling, seeds=[3])
    torch.testing.assert_close(drawn, alone, rtol=1e-3, atol=1e-3)
    plain = domain_agnostic(backbone, clip, dual_path={"enabled": False})
    with pytest.raises(ConfigError, match=r"have the blends 0\.25, None, expected one for all"):
        merge_concepts([first, plain])

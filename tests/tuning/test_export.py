"""Exports, read back by diffusers' own loaders: the same prompt and noise must give the same picture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from imprint.backbone import Backbone
from imprint.config.methods import (
    DreamBoothTuneSpec,
    E4TTuneSpec,
    LoraTuneSpec,
    SampleSpec,
    TextualInversionTuneSpec,
)
from imprint.errors import ConceptError, ConfigError, StorageError
from imprint.methods.base import Learned, Pictures
from imprint.tuning import Concept, merge_concepts, personalize, sample_concept
from imprint.tuning.export import export_concept

PROMPT = "a photo of {} on blue"
SAMPLING = SampleSpec(steps=4, guidance_scale=2.5)  # steps that divide the timesteps, where DDIMs agree


@pytest.fixture
def backbone(any_pipeline: Path) -> Backbone:
    return Backbone.load(any_pipeline)


@pytest.fixture
def sd15(tiny_sd15: Path) -> Backbone:
    return Backbone.load(tiny_sd15)


def concept(backbone: Backbone, spec: Any, seed: int = 0) -> Concept:
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return personalize(backbone, Pictures(images), spec, class_noun="cat", seed=seed)


def lora(text: str = "zz", **more: Any) -> LoraTuneSpec:
    keys = {"steps": 2, "batch_size": 2, "text_encoder": True, "lora": {"learning_rate": 0.05, "alpha": 6}}
    return LoraTuneSpec(**(keys | {"identifier": {"text": text}} | more))


def word(**more: Any) -> TextualInversionTuneSpec:
    return TextualInversionTuneSpec(**({"steps": 2, "batch_size": 2, "learning_rate": 0.2} | more))


def full() -> DreamBoothTuneSpec:
    rates = {"unet": 1e-3, "text_encoder": 1e-3}
    return DreamBoothTuneSpec(
        steps=2, batch_size=2, prior={"enabled": False}, identifier={"text": "zz"}, learning_rates=rates,
        text_encoder=True, storage="fp32",
    )  # fmt: skip


def pipeline(folder: str | Path) -> DiffusionPipeline:
    loaded = DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    loaded.set_progress_bar_config(disable=True)
    # Our DDIM: it ends at x_0 itself, on trailing timesteps.
    keys = {"set_alpha_to_one": True, "timestep_spacing": "trailing"}
    loaded.scheduler = DDIMScheduler.from_config(loaded.scheduler.config, **keys)
    return loaded


def picture(pipe: DiffusionPipeline, prompt: str) -> torch.Tensor:
    """What diffusers draws from the noise of our seed 3."""
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3))[None]
    drawn = pipe(
        prompt, negative_prompt="", num_inference_steps=4, guidance_scale=2.5, latents=noise, output_type="pt",
        height=16, width=16,
    ).images  # fmt: skip
    return drawn * 2 - 1


def ours(backbone: Backbone, concept: Concept, placeholder: str = "<concept>") -> torch.Tensor:
    return sample_concept(backbone, concept, [PROMPT.format(placeholder)], SAMPLING, seeds=[3])


@pytest.mark.parametrize("form", ["diffusers-lora", "kohya"])
def test_load_lora_weights_gives_the_same_picture(backbone: Backbone, tmp_path: Path, form: str) -> None:
    tuned = concept(backbone, lora())
    (file,), triggers = export_concept(backbone, tuned, form, tmp_path / "out")
    pipe = pipeline(backbone.path)
    untuned = picture(pipe, PROMPT.format("a zz cat"))
    pipe.load_lora_weights(file if form == "kohya" else file.parent)
    drawn = picture(pipe, PROMPT.format("a zz cat"))
    torch.testing.assert_close(drawn, ours(backbone, tuned), rtol=1e-3, atol=2e-4)
    assert float((drawn - untuned).abs().max()) > 0.02
    assert triggers == ("zz cat",)


def test_kohya_names_and_metadata(sd15: Backbone, tmp_path: Path) -> None:
    (file,), _ = export_concept(sd15, concept(sd15, lora()), "kohya", tmp_path / "my-cat")
    with safe_open(file, "pt") as stored:
        metadata, names = stored.metadata(), set(stored.keys())
    block = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert {f"{block}.lora_down.weight", f"{block}.lora_up.weight", f"{block}.alpha"} <= names
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight" in names
    assert all(name.startswith(("lora_unet_", "lora_te_text_model_")) for name in names)
    assert metadata["modelspec.trigger_phrase"] == "zz cat"
    assert metadata["modelspec.title"] == metadata["ss_output_name"] == "my-cat"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert (metadata["ss_base_model_version"], metadata["ss_network_dim"]) == ("sd_v1", "4")


@pytest.mark.parametrize(
    ("fixture", "architecture", "prediction"),
    [
        ("tiny_sd21", "stable-diffusion-v2-512/lora", "epsilon"),
        ("tiny_sd21_v", "stable-diffusion-v2-768-v/lora", "v"),
        ("tiny_sdxl", "stable-diffusion-xl-v1-base/lora", "epsilon"),
    ],
)
def test_kohya_says_what_it_is_for(
    request: pytest.FixtureRequest, tmp_path: Path, fixture: str, architecture: str, prediction: str
) -> None:
    backbone = Backbone.load(request.getfixturevalue(fixture))
    (file,), _ = export_concept(backbone, concept(backbone, lora()), "kohya", tmp_path / "out")
    with safe_open(file, "pt") as stored:
        metadata, names = stored.metadata(), set(stored.keys())
    assert metadata["modelspec.architecture"] == architecture
    assert metadata["modelspec.prediction_type"] == prediction
    if fixture == "tiny_sdxl":
        # as in kohya's sd-scripts: the original UNet's blocks in one row, and both text encoders
        assert "lora_unet_input_blocks_3_1_transformer_blocks_1_attn2_to_k.alpha" in names
        assert "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q.alpha" in names
        assert "lora_unet_output_blocks_0_1_transformer_blocks_0_attn1_to_q.alpha" in names
        assert any(name.startswith("lora_te1_text_model_") for name in names)
        assert any(name.startswith("lora_te2_text_model_") for name in names)


@pytest.mark.parametrize("vectors", [1, 2])
def test_load_textual_inversion_gives_the_same_picture(backbone: Backbone, tmp_path: Path, vectors: int) -> None:
    tuned = concept(backbone, word(vectors=vectors))
    (file,), triggers = export_concept(backbone, tuned, "textual-inversion", tmp_path, triggers=["<my-cat>"])
    assert triggers == ("<my-cat>",)
    pipe = pipeline(backbone.path)
    if backbone.family.name == "sdxl":
        for key, which in (("clip_l", ""), ("clip_g", "_2")):
            parts = {part: getattr(pipe, part + which) for part in ("text_encoder", "tokenizer")}
            pipe.load_textual_inversion({"<my-cat>": load_file(file)[key]}, **parts)
    else:
        pipe.load_textual_inversion(file.parent)
    drawn = picture(pipe, PROMPT.format("<my-cat>"))
    torch.testing.assert_close(drawn, ours(backbone, tuned), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("make", [lora, full, word])
def test_a_merged_folder_gives_the_same_picture(backbone: Backbone, tmp_path: Path, make: Any) -> None:
    tuned = concept(backbone, make())
    (folder,), (trigger,) = export_concept(backbone, tuned, "diffusers", tmp_path / "merged")
    assert json.loads((folder / "trigger.json").read_text()) == {"triggers": [trigger]}
    phrase = trigger if make is word else f"a {trigger}"
    expected = ours(backbone, tuned)
    torch.testing.assert_close(picture(pipeline(folder), PROMPT.format(phrase)), expected, rtol=1e-3, atol=2e-4)
    assert not list(folder.rglob("*.bin")) and list(folder.rglob("*.safetensors"))
    assert not list(tmp_path.glob(".merged*"))


def test_a_new_word_is_one_new_row_and_every_other_row_stays(sd15: Backbone, tmp_path: Path) -> None:
    tuned = concept(sd15, word())
    (folder,), _ = export_concept(sd15, tuned, "diffusers", tmp_path / "merged")
    table = Backbone.load(folder).text_encoders[0].get_input_embeddings().weight
    own = sd15.text_encoders[0].get_input_embeddings().weight
    assert torch.equal(table[: len(own)], own) and len(table) == len(own) + 1
    torch.testing.assert_close(table[-1:], tuned.learned.tensors["word.0.0"])


def test_a_merged_concept_is_exported_whole(sd15: Backbone, tmp_path: Path) -> None:
    both = merge_concepts([concept(sd15, lora("zz")), concept(sd15, lora("qq"), seed=1)])
    (file,), triggers = export_concept(sd15, both, "diffusers-lora", tmp_path / "lora")
    assert triggers == ("zz cat", "qq cat")
    pipe = pipeline(sd15.path)
    pipe.load_lora_weights(file.parent)
    drawn = picture(pipe, PROMPT.format("a qq cat"))
    torch.testing.assert_close(drawn, ours(sd15, both, "<concept-2>"), rtol=1e-3, atol=2e-4)
    words = merge_concepts([concept(sd15, word()), concept(sd15, word(), seed=1)])
    files, triggers = export_concept(sd15, words, "textual-inversion", tmp_path / "words")
    assert [file.name for file in files] == ["learned_embeds-1.safetensors", "learned_embeds-2.safetensors"]
    assert triggers == ("<concept-1>", "<concept-2>")


def test_what_a_format_cannot_hold_is_refused(sd15: Backbone, tmp_path: Path) -> None:
    low_rank, dense, new_word = concept(sd15, lora()), concept(sd15, full()), concept(sd15, word())
    e4t = dataclasses.replace(dense, learned=Learned("e4t", "person", {}, {"tune": E4TTuneSpec().model_dump()}))
    cases: list[tuple[Concept, str, type[Exception], str]] = [
        (dense, "diffusers-lora", ConceptError, "changes all weights, which is no LoRA"),
        (dense, "kohya", ConceptError, "use --format diffusers"),
        (new_word, "kohya", ConceptError, "use textual-inversion"),
        (low_rank, "textual-inversion", ConceptError, "changes weights, which no embedding can hold"),
        (e4t, "diffusers", ConceptError, "methods that export: .*lora"),
        (low_rank, "onnx", ConfigError, "expected one of diffusers-lora, kohya"),
    ]
    for tuned, form, error, message in cases:
        with pytest.raises(error, match=message):
            export_concept(sd15, tuned, form, tmp_path / "out")
    with pytest.raises(ConfigError, match="is called by no others"):
        export_concept(sd15, low_rank, "kohya", tmp_path / "out", triggers=["<my-cat>"])
    with pytest.raises(ConfigError, match="expected 1 different ones"):
        export_concept(sd15, new_word, "textual-inversion", tmp_path / "out", triggers=["<a>", "<b>"])
    assert not (tmp_path / "out").exists()


def test_another_backbone_and_a_folder_in_use_are_refused(sd15: Backbone, tiny_sd21: Path, tmp_path: Path) -> None:
    tuned = concept(sd15, lora())
    with pytest.raises(ConceptError, match="has other weights"):
        export_concept(Backbone.load(tiny_sd21), tuned, "kohya", tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match="choose a new folder"):
        export_concept(sd15, tuned, "diffusers", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]

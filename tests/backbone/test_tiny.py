"""The builder of small backbones: tokenizer, parts, and a folder that diffusers loads."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from imprint.backbone import Backbone, NoiseSchedule
from imprint.backbone.tiny import (
    assemble,
    build_autoencoder,
    build_text_encoder,
    build_unet,
    save_backbone,
    scheduler_config,
    text_encoder_of_clip,
    train_tokenizer,
)
from imprint.config.jobs.tiny import AutoencoderModel, ClipModel, TextModel, UnetModel
from imprint.features.tiny_clip import build_clip

CAPTIONS = ["a smiling man with a red beard and round glasses, on a blue background", "an emoji of a red apple"] * 5


def test_tokenizer_learns_words_and_writes_any_text() -> None:
    tokenizer = train_tokenizer(CAPTIONS, 700)
    assert tokenizer.tokenize("smiling background") == ["smiling</w>", "background</w>"]
    unknown = "zebra 7 \u732b"
    assert tokenizer.unk_token_id not in tokenizer(unknown, add_special_tokens=False)["input_ids"]
    ids = tokenizer("apple")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.eos_token_id == len(tokenizer) - 1  # CLIP pools at the largest id


def test_saved_folder_is_an_ordinary_pipeline(tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = TextModel(width=32, layers=1, heads=2, max_length=16)
    tokenizer = train_tokenizer(CAPTIONS, 700)
    tokenizer.model_max_length = text.max_length
    vae = build_autoencoder(AutoencoderModel(width=8, blocks=(1, 1)))
    widths, attention = (16, 32), (True, False)
    unet_model = UnetModel(block_out_channels=widths, attention=attention, layers_per_block=1, heads=2, norm_groups=8)
    unet = build_unet(unet_model, latent_channels=8, latent_size=8, text_width=32)
    backbone = assemble(unet, vae, build_text_encoder(text, tokenizer), tokenizer, "v_prediction")
    save_backbone(backbone, tmp_path / "tiny")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "tiny", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a red apple", num_inference_steps=2, output_type="np").images[0]
    assert picture.shape == (16, 16, 3)
    loaded = Backbone.load(tmp_path / "tiny")
    assert loaded.dtype == torch.float32
    assert loaded.tokenizers[0].model_max_length == 16
    assert loaded.fingerprint() == backbone.fingerprint()
    mean, std = loaded.latent_moments(torch.zeros(1, 3, 16, 16))
    assert mean.shape == (1, 8, 8, 8)
    assert not std.any()  # this autoencoder has no posterior
    assert loaded.decode_latents(mean).shape == (1, 3, 16, 16)
    assert loaded.prediction_type == "v_prediction"


def test_the_text_tower_of_an_open_clip_keeps_its_numbers() -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(CAPTIONS, 700)
    text = TextModel(width=32, layers=2, heads=2, max_length=16)
    clip, _ = build_clip(ClipModel(embedding=24, vision_layers=1, vision_width=32, text=text), len(tokenizer))
    encoder = text_encoder_of_clip(clip.eval(), tokenizer).eval()
    ids = tokenizer(CAPTIONS[:2], padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
    expected = clip.encode_text(ids)
    torch.testing.assert_close(encoder(ids).pooler_output @ clip.text_projection, expected, atol=1e-5, rtol=1e-4)


def test_the_schedule_of_v_prediction_ends_in_pure_noise() -> None:
    schedule = NoiseSchedule.from_scheduler(scheduler_config("v_prediction"))
    ordinary = NoiseSchedule.from_scheduler(scheduler_config("epsilon"))
    assert schedule.alphas_cumprod[-1] == 0
    assert ordinary.alphas_cumprod[-1] > 0.004
    torch.testing.assert_close(schedule.alphas_cumprod[0], ordinary.alphas_cumprod[0])

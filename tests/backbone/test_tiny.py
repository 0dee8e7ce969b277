"""The builder of small backbones: tokenizer, parts, and a folder that diffusers loads."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from imprint.backbone import Backbone
from imprint.backbone.tiny import (
    assemble,
    build_autoencoder,
    build_text_encoder,
    build_unet,
    save_backbone,
    train_tokenizer,
)
from imprint.config.jobs.tiny import AutoencoderModel, TextModel, UnetModel

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
    vae = build_autoencoder(AutoencoderModel(block_out_channels=(8, 8), norm_groups=2))
    widths, attention = (16, 32), (True, False)
    unet_model = UnetModel(
        block_out_channels=widths, attention=attention, layers_per_block=1, heads=2, norm_groups=8
    )
    unet = build_unet(unet_model, latent_channels=8, latent_size=8, text_width=32)
    backbone = assemble(unet, vae, build_text_encoder(text, tokenizer), tokenizer, "epsilon")
    save_backbone(backbone, tmp_path / "tiny")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "tiny", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a red apple", num_inference_steps=2, output_type="np").images[0]
    assert picture.shape == (16, 16, 3)
    loaded = Backbone.load(tmp_path / "tiny")
    assert loaded.dtype == torch.float32
    assert loaded.tokenizers[0].model_max_length == 16
    assert loaded.fingerprint() == backbone.fingerprint()

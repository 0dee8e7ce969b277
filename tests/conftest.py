"""Small random pipelines of the real classes, made once a session, and the checks that hold for every test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from small_cascades import save_if, save_x4
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WORDS = ["a", "photo", "of", "person", "face", "cat", "on", "blue", "red", "background", "smiling", "with", "glasses"]


def write_tokenizer(folder: Path, max_length: int = 24) -> CLIPTokenizer:
    """A CLIP tokenizer with a few whole words and letters for the rest."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list(",.<>-'0123456789*")
    vocab: dict[str, int] = {}
    merges: list[str] = []
    for letter in letters:
        vocab.setdefault(letter, len(vocab))
        vocab.setdefault(letter + "</w>", len(vocab))
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merge = f"{pieces[0]} {pieces[1]}"
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
            if merge not in merges:
                merges.append(merge)
            vocab.setdefault(pieces[0], len(vocab))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizer(vocab=vocab, merges=[tuple(m.split()) for m in merges], model_max_length=max_length)


def small_text_encoder(tokenizer: CLIPTokenizer, width: int, projection: int | None = None) -> torch.nn.Module:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=tokenizer.model_max_length, projection_dim=projection or width,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def small_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4, norm_num_groups=4, layers_per_block=1, sample_size=16,
    )  # fmt: skip


def small_unet(cross: int, *, linear: bool, xl_pooled: int | None = None) -> UNet2DConditionModel:
    extra = {}
    if xl_pooled:
        extra = {
            "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + xl_pooled, "transformer_layers_per_block": (1, 2),
        }  # fmt: skip
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        norm_num_groups=8, down_block_types=down[::-1] if xl_pooled else down,
        up_block_types=up[::-1] if xl_pooled else up,
        cross_attention_dim=cross, attention_head_dim=8, use_linear_projection=linear, **extra,
    )  # fmt: skip


def _scheduler(prediction_type: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type,
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip


def _save_sd(folder: Path, *, linear: bool, prediction_type: str) -> Path:
    torch.manual_seed(0)
    tokenizer = write_tokenizer(folder / "tokenizer-source")
    pipeline = StableDiffusionPipeline(
        vae=small_vae(), text_encoder=small_text_encoder(tokenizer, 16), tokenizer=tokenizer,
        unet=small_unet(16, linear=linear), scheduler=_scheduler(prediction_type), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "pipeline", safe_serialization=True)
    return folder / "pipeline"


@pytest.fixture(scope="session")
def tiny_sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of the class of Stable Diffusion 1.5 (eps-prediction), a few channels wide."""
    return _save_sd(tmp_path_factory.mktemp("sd15"), linear=False, prediction_type="epsilon")


@pytest.fixture(scope="session")
def tiny_sd21(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion 2.1 base: linear projections, eps-prediction."""
    return _save_sd(tmp_path_factory.mktemp("sd21"), linear=True, prediction_type="epsilon")


@pytest.fixture(scope="session")
def tiny_sd21_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion 2.1 at 768: linear projections, v-prediction."""
    return _save_sd(tmp_path_factory.mktemp("sd21v"), linear=True, prediction_type="v_prediction")


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of the class of Stable Diffusion XL: two text encoders, pooled text, time ids."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sdxl")
    tokenizer = write_tokenizer(folder / "tokenizer-source")
    pipeline = StableDiffusionXLPipeline(
        vae=small_vae(), text_encoder=small_text_encoder(tokenizer, 16), tokenizer=tokenizer,
        text_encoder_2=small_text_encoder(tokenizer, 24, projection=12), tokenizer_2=tokenizer,
        unet=small_unet(40, linear=True, xl_pooled=12), scheduler=_scheduler("epsilon"), add_watermarker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "pipeline", safe_serialization=True)
    return folder / "pipeline"


@pytest.fixture(scope="session")
def tiny_x4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of the class of stable-diffusion-x4-upscaler: 16 px to 64 px."""
    folder = tmp_path_factory.mktemp("x4")
    return save_x4(folder / "pipeline", write_tokenizer(folder / "tokenizer-source"))


@pytest.fixture(scope="session")
def tiny_if(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of the class of DeepFloyd IF's stage II: 16 px to 64 px."""
    return save_if(tmp_path_factory.mktemp("if") / "pipeline")


@pytest.fixture(params=["tiny_sd15", "tiny_sd21", "tiny_sd21_v", "tiny_sdxl"])
def any_pipeline(request: pytest.FixtureRequest) -> Path:
    """Each family's folder in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip folder with a visual transformer of five layers, random weights."""
    import open_clip
    from safetensors.torch import save_file

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 5, "width": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    folder = tmp_path_factory.mktemp("clip")
    record = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}}
    (folder / "open_clip_config.json").write_text(json.dumps(record))
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    return folder

"""Second stages with random weights and a few channels, of diffusers' two classes."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    IFSuperResolutionPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerFast, T5Config, T5EncoderModel


def save_x4(folder: Path, tokenizer: CLIPTokenizer, *, prediction_type: str = "v_prediction") -> Path:
    """The class of stable-diffusion-x4-upscaler, for small pictures of 16 px."""
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, norm_num_groups=4, layers_per_block=1,
        sample_size=64, scaling_factor=0.08333,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=7, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16, attention_head_dim=8,
        num_class_embeds=1000, only_cross_attention=(True, False), mid_block_only_cross_attention=False,
        use_linear_projection=True,
    )  # fmt: skip
    pipeline = StableDiffusionUpscalePipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet,
        low_res_scheduler=DDPMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear"),
        scheduler=DDIMScheduler(
            beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear", prediction_type=prediction_type,
            clip_sample=False, set_alpha_to_one=True, steps_offset=1, timestep_spacing="trailing",
        ),
        max_noise_level=350,
    )  # fmt: skip
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def save_if(folder: Path) -> Path:
    """The class of stage II of DeepFloyd IF, for small pictures of 16 px."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64, layers_per_block=1, block_out_channels=(32, 64),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), in_channels=6, out_channels=6,
        cross_attention_dim=32, encoder_hid_dim=32, attention_head_dim=8, addition_embed_type="text",
        addition_embed_type_num_heads=2, cross_attention_norm="group_norm", resnet_time_scale_shift="scale_shift",
        act_fn="gelu", class_embed_type="timestep", mid_block_scale_factor=1.414, time_embedding_act_fn="gelu",
        time_embedding_dim=32,
    )  # fmt: skip
    tokenizer = _t5_tokenizer()
    text = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=32, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    schedule = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "squaredcos_cap_v2"}
    pipeline = IFSuperResolutionPipeline(
        tokenizer=tokenizer, text_encoder=T5EncoderModel(text), unet=unet,
        scheduler=DDPMScheduler(**schedule, variance_type="fixed_small", clip_sample=True, timestep_spacing="trailing"),
        image_noising_scheduler=DDPMScheduler(**schedule), safety_checker=None, feature_extractor=None,
        watermarker=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _t5_tokenizer() -> PreTrainedTokenizerFast:
    """Letters for words; what the loader must cope with is the class and the padding, not the vocabulary."""
    vocab = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {chr(c): c - ord("a") + 3 for c in range(ord("a"), ord("z") + 1)}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=77
    )

"""Build and save a small text-to-image model of the ordinary diffusers classes.

`imprint-tiny` is a Stable Diffusion in everything but size, so whatever runs on it runs on the real ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from imprint.backbone.base import Backbone
from imprint.backbone.families import SD1
from imprint.backbone.noise import NoiseSchedule
from imprint.backbone.saving import mend_config, save_pipeline
from imprint.config.jobs.tiny import AutoencoderModel, TextModel, UnetModel

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
# The split of CLIP's tokenizer: words, single digits, runs of punctuation.
_SPLIT = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def build_autoencoder(model: AutoencoderModel) -> AutoencoderTiny:
    """An untrained autoencoder without normalisation; its scaling factor is set after training."""
    widths = (model.width,) * len(model.blocks)
    return AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=model.blocks,
        num_decoder_blocks=model.blocks[::-1],
        latent_channels=model.latent_channels,
        scaling_factor=1.0,
    )


def build_unet(model: UnetModel, *, latent_channels: int, latent_size: int, text_width: int) -> UNet2DConditionModel:
    """An untrained UNet with cross-attention."""
    down = tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in model.attention)
    up = tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(model.attention))
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=model.block_out_channels,
        layers_per_block=model.layers_per_block,
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=text_width,
        attention_head_dim=model.heads,  # diffusers: the number of heads, by an old misnomer
        norm_num_groups=model.norm_groups,
    )


def train_tokenizer(captions: Iterable[str], vocabulary: int) -> CLIPTokenizer:
    """Learn CLIP's byte-pair encoding from captions; every byte is a token, so any text can be written."""
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(alphabet) - 2, end_of_word_suffix="</w>", initial_alphabet=alphabet,
        show_progress=False, min_frequency=3,
    )  # fmt: skip
    tokenizer.train_from_iterator(captions, trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    tokens = dict.fromkeys([*alphabet, *(letter + "</w>" for letter in alphabet)])
    tokens |= dict.fromkeys(sorted(learnt["vocab"], key=learnt["vocab"].get))
    vocab = {token: number for number, token in enumerate([*tokens, BEGIN, END])}
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learnt["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, bos_token=BEGIN, eos_token=END, pad_token=END, unk_token=END)


def build_text_encoder(model: TextModel, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIP text encoder that fits the tokenizer."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=model.width,
            intermediate_size=4 * model.width,
            num_hidden_layers=model.layers,
            num_attention_heads=model.heads,
            hidden_act="gelu",  # open_clip's own, so that its text towers fit
            max_position_embeddings=model.max_length,
            projection_dim=model.width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


@torch.no_grad()
def text_encoder_of_clip(clip: nn.Module, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The text tower of an open_clip model as a CLIPTextModel: the same numbers under other names."""
    layers = clip.transformer.resblocks
    width = clip.token_embedding.weight.shape[1]
    model = TextModel(
        width=width, layers=len(layers), heads=layers[0].attn.num_heads, max_length=len(clip.positional_embedding)
    )
    encoder = build_text_encoder(model, tokenizer)
    state = {
        "embeddings.token_embedding.weight": clip.token_embedding.weight,
        "embeddings.position_embedding.weight": clip.positional_embedding,
        "final_layer_norm.weight": clip.ln_final.weight,
        "final_layer_norm.bias": clip.ln_final.bias,
    }
    for number, layer in enumerate(layers):
        prefix = f"encoder.layers.{number}"
        modules = {
            "layer_norm1": layer.ln_1, "layer_norm2": layer.ln_2, "self_attn.out_proj": layer.attn.out_proj,
            "mlp.fc1": layer.mlp.c_fc, "mlp.fc2": layer.mlp.c_proj,
        }  # fmt: skip
        for name, module in modules.items():
            state[f"{prefix}.{name}.weight"], state[f"{prefix}.{name}.bias"] = module.weight, module.bias
        for kind in ("weight", "bias"):
            parts = getattr(layer.attn, f"in_proj_{kind}").chunk(3)
            for role, value in zip("qkv", parts, strict=True):
                state[f"{prefix}.self_attn.{role}_proj.{kind}"] = value
    encoder.load_state_dict(state)
    return encoder


def scheduler_config(prediction_type: str) -> dict[str, Any]:
    """Stable Diffusion's schedule; with v-prediction it ends in pure noise (arXiv:2305.08891).

    Small pictures with plain backgrounds need that: the mean of a 16 x 16 latent still shows at the last timestep of
    the ordinary schedule, so a network reads the background's colour off it and not off the text.
    """
    zero_snr = prediction_type == "v_prediction"
    return {
        "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "prediction_type": prediction_type, "clip_sample": False, "set_alpha_to_one": zero_snr,
        "steps_offset": 1, "rescale_betas_zero_snr": zero_snr,
        "timestep_spacing": "trailing" if zero_snr else "leading",
    }  # fmt: skip


def assemble(
    unet: UNet2DConditionModel,
    vae: AutoencoderTiny,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    prediction_type: str,
) -> Backbone:
    """The parts as a backbone."""
    config = scheduler_config(prediction_type)
    return Backbone(
        path="", family=SD1, unet=unet, vae=vae, text_encoders=(text_encoder,), tokenizers=(tokenizer,),
        schedule=NoiseSchedule.from_scheduler(config), scheduler_config=config,
    )  # fmt: skip


def save_backbone(backbone: Backbone, folder: Path) -> None:
    """Write an SD1 or SD2 backbone into `folder` as an ordinary pipeline of safetensors.

    UNet and autoencoder are kept in fp16, which diffusers loads as fp32. The text encoder is kept in fp32, since
    transformers loads what it finds and the parts of a pipeline must agree.
    """
    backbone.unet.to(torch.float16)
    backbone.vae.to(torch.float16)
    save_pipeline(backbone, folder)


def save_autoencoder(vae: AutoencoderTiny, folder: Path) -> None:
    """Write an autoencoder, in fp16, into `folder`."""
    vae.half().save_pretrained(folder)
    mend_config(folder)

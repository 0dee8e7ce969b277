"""Load a super-resolution model from a diffusers folder, a hub id or an embedded name; save one as such a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderTiny, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel

from imprint.backbone.base import Backbone
from imprint.backbone.loading import embedded_path
from imprint.backbone.noise import NoiseSchedule
from imprint.backbone.saving import mend_config
from imprint.backbone.super_resolution import Kind, SuperResolution
from imprint.backbone.tiny import scheduler_config
from imprint.config.jobs.super_resolution import SuperResolutionModel
from imprint.errors import BackboneError

EMBEDDED = ("imprint-tiny-x4",)
KINDS: dict[str, Kind] = {"StableDiffusionUpscalePipeline": "latent", "IFSuperResolutionPipeline": "pixel"}
# By the pipeline's class: where the schedule of the noise on the small picture is.
_LOW_RES = {"latent": "low_res_scheduler", "pixel": "image_noising_scheduler"}
_MODELS = ("UNet2DConditionModel", "AutoencoderKL", "AutoencoderTiny", "CLIPTextModel", "T5EncoderModel")
# diffusers' pipeline sets it whatever the autoencoder's config says.
_UPSCALER_SCALING_FACTOR = 0.08333


def load_super_resolution(
    path: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> SuperResolution:
    """See `SuperResolution.load`."""
    text = str(path)
    source = str(embedded_path(text)) if text in EMBEDDED else str(Path(text).expanduser() if "~" in text else text)
    index = _index(source, text)
    kind = KINDS[index["_class_name"]]
    missing = [part for part in _parts(kind) if not (index.get(part) or [None, None])[1]]
    if missing:
        raise BackboneError(f"loading the super-resolution model {text}: it has no {', '.join(missing)}")
    try:
        models = {
            part: _model(source, part, index[part], dtype).to(device)
            for part in ("unet", "vae", "text_encoder")
            if part in _parts(kind)
        }
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, subfolder="tokenizer")
        configs = {
            name: dict(DDPMScheduler.load_config(source, subfolder=part))
            for name, part in (("scheduler", "scheduler"), ("low_res_scheduler", _LOW_RES[kind]))
        }
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        raise BackboneError(f"loading the super-resolution model {text}: {reason}") from error
    low_res = NoiseSchedule.from_scheduler(configs["low_res_scheduler"]).alphas_cumprod
    if kind == "latent" and not isinstance(models["vae"], AutoencoderTiny):
        models["vae"].register_to_config(scaling_factor=_UPSCALER_SCALING_FACTOR)
    model = SuperResolution(
        path=text,
        kind=kind,
        unet=models["unet"],
        vae=models.get("vae"),
        text_encoder=models["text_encoder"],
        tokenizer=tokenizer,
        schedule=NoiseSchedule.from_scheduler(configs["scheduler"]),
        low_res_alphas_cumprod=low_res,
        max_noise_level=min(len(low_res), int(index.get("max_noise_level") or len(low_res))),
        configs=configs,
    )
    return model.freeze()


def _parts(kind: Kind) -> tuple[str, ...]:
    latent = ("vae",) if kind == "latent" else ()
    return ("unet", *latent, "text_encoder", "tokenizer", "scheduler", _LOW_RES[kind])


def _index(source: str, name: str) -> dict[str, Any]:
    try:
        index = dict(DiffusionPipeline.load_config(source))
    except Exception as error:
        raise BackboneError(
            f"loading the super-resolution model {name}: found no model_index.json ({type(error).__name__}); expected "
            f"a diffusers folder, a hub id or an embedded name ({', '.join(EMBEDDED)})"
        ) from error
    if index.get("_class_name") not in KINDS:
        raise BackboneError(
            f"loading the super-resolution model {name}: it is a {index.get('_class_name')}, expected one of "
            f"{', '.join(KINDS)}"
        )
    return index


def _model(source: str, part: str, entry: list[str], dtype: torch.dtype) -> Any:
    """One network, by the class that model_index.json names, of those known here; safetensors only."""
    library, name = entry
    if name not in _MODELS:
        raise BackboneError(f"{part} is a {name} of {library}, expected one of {', '.join(_MODELS)}")
    kind = getattr(diffusers if library == "diffusers" else transformers, name)
    return kind.from_pretrained(source, subfolder=part, use_safetensors=True, dtype=dtype)


def build_super_resolution(model: SuperResolutionModel, backbone: Backbone) -> SuperResolution:
    """An untrained UNet of the x4 upscaler's kind around the autoencoder and the text encoder of a small backbone.

    It attends to the text alone and not to the picture, as the x4 upscaler's larger levels do: a UNet of convolutions
    sees a whole picture as it has seen crops.
    """
    levels = len(model.block_out_channels)
    channels = backbone.latent_shape[0]
    unet = UNet2DConditionModel(
        sample_size=backbone.image_size,
        in_channels=channels + 3,
        out_channels=channels,
        block_out_channels=model.block_out_channels,
        layers_per_block=model.layers_per_block,
        down_block_types=("DownBlock2D",) * (levels - 1) + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        only_cross_attention=True,
        cross_attention_dim=backbone.text_encoders[0].config.hidden_size,
        attention_head_dim=model.heads,  # diffusers: the number of heads, by an old misnomer
        norm_num_groups=model.norm_groups,
        class_embed_type="timestep",
    )
    configs = {"scheduler": scheduler_config("v_prediction"), "low_res_scheduler": dict(DDPMScheduler().config)}
    return SuperResolution(
        path="",
        kind="latent",
        unet=unet,
        vae=backbone.vae,
        text_encoder=backbone.text_encoders[0],
        tokenizer=backbone.tokenizers[0],
        schedule=NoiseSchedule.from_scheduler(configs["scheduler"]),
        low_res_alphas_cumprod=NoiseSchedule.from_scheduler(configs["low_res_scheduler"]).alphas_cumprod,
        max_noise_level=model.max_noise_level,
        configs=configs,
    )


def save_super_resolution(model: SuperResolution, folder: Path) -> None:
    """Write a latent model into `folder`, in fp16, laid out as diffusers' StableDiffusionUpscalePipeline is.

    Its autoencoder is an AutoencoderTiny, which that pipeline's own code does not decode with; `SuperResolution` does.
    """
    assert model.kind == "latent" and model.vae is not None
    for part, module in (("unet", model.unet), ("vae", model.vae), ("text_encoder", model.text_encoder)):
        module.half().save_pretrained(folder / part, safe_serialization=True)
    for part in ("unet", "vae"):
        mend_config(folder / part)
    model.tokenizer.save_pretrained(folder / "tokenizer")
    schedulers = {"scheduler": diffusers.DDIMScheduler, "low_res_scheduler": diffusers.DDPMScheduler}
    for part, kind in schedulers.items():
        kind.from_config(dict(model.configs[part])).save_pretrained(folder / part)
    index = {
        "_class_name": "StableDiffusionUpscalePipeline",
        "_diffusers_version": diffusers.__version__,
        "max_noise_level": model.max_noise_level,
        **{part: _entry(module) for part, module in _components(model).items()},
        **{part: ["diffusers", kind.__name__] for part, kind in schedulers.items()},
        **{part: [None, None] for part in ("feature_extractor", "safety_checker", "watermarker")},
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _components(model: SuperResolution) -> Mapping[str, Any]:
    return {"unet": model.unet, "vae": model.vae, "text_encoder": model.text_encoder, "tokenizer": model.tokenizer}


def _entry(component: Any) -> list[str]:
    return [type(component).__module__.partition(".")[0], type(component).__name__]

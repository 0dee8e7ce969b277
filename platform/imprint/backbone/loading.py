"""Load a backbone from a diffusers folder, a single safetensors file, a hub id or an embedded name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from imprint.backbone.base import Backbone
from imprint.backbone.families import identify
from imprint.backbone.noise import NoiseSchedule
from imprint.errors import BackboneError

EMBEDDED = ("imprint-tiny",)
_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")


def embedded_path(name: str) -> Path:
    """The folder of weights that ship inside the package."""
    # Not importlib.resources: it is led astray by a plain folder named imprint, such as a clone, in the current one.
    return Path(__file__).resolve().parents[1] / "weights" / name


def load_backbone(
    path: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Backbone:
    """See `Backbone.load`."""
    source = embedded_path(str(path)) if str(path) in EMBEDDED else Path(path).expanduser()
    if source.is_dir():
        components = _from_folder(source, dtype)
    elif source.is_file():
        components = _from_single_file(source, dtype)
    elif str(path) in EMBEDDED:
        raise BackboneError(f"loading the embedded backbone {path}: its weights are missing from this installation; "
                            "reinstall imprint, or train them with jobs/train_backbone.yaml")  # fmt: skip
    elif _looks_like_hub_id(str(path)):
        components = _from_hub(str(path), dtype)
    else:
        raise BackboneError(
            f"loading a backbone: {str(path)!r} is neither a folder, a safetensors file, a hub id (owner/name) nor an "
            f"embedded name ({', '.join(EMBEDDED)})"
        )
    family = identify(components)
    second = (components["text_encoder_2"],) if family.text_encoders == 2 else ()
    second_tokenizer = (components["tokenizer_2"],) if family.text_encoders == 2 else ()
    config = dict(components["scheduler"].config)
    backbone = Backbone(
        path=str(path),
        family=family,
        unet=components["unet"].to(device),
        vae=components["vae"].to(device),
        text_encoders=tuple(encoder.to(device) for encoder in (components["text_encoder"], *second)),
        tokenizers=(components["tokenizer"], *second_tokenizer),
        schedule=NoiseSchedule.from_scheduler(config),
        scheduler_config=config,
    )
    return backbone.freeze()


def _looks_like_hub_id(path: str) -> bool:
    owner, slash, name = path.partition("/")
    return bool(slash and owner and name) and "/" not in name and not path.startswith((".", "~", "/"))


def _from_folder(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    index = folder / "model_index.json"
    if not index.is_file():
        raise BackboneError(
            f"loading a backbone from {folder}: model_index.json is missing; expected a diffusers folder as "
            "`pipeline.save_pretrained` writes it"
        )
    try:
        parts = json.loads(index.read_text())
    except json.JSONDecodeError as error:
        raise BackboneError(f"loading a backbone from {folder}: model_index.json is not JSON ({error})") from error
    missing = [part for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler") if part not in parts]
    if missing:
        raise BackboneError(
            f"loading a backbone from {folder}: {parts.get('_class_name', 'the pipeline')} has no "
            f"{', '.join(missing)}; expected a Stable Diffusion 1, 2 or XL pipeline"
        )
    return _from_hub(str(folder), dtype)


def _from_hub(path: str, dtype: torch.dtype) -> dict[str, Any]:
    """Components by diffusers' own loader: safetensors only, never a pickle."""
    from diffusers import DiffusionPipeline

    try:
        pipeline = DiffusionPipeline.from_pretrained(path, dtype=dtype, use_safetensors=True, **_without_extras(path))
    except Exception as error:
        raise BackboneError(
            f"loading a backbone from {path}: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
        ) from error
    return _components(pipeline)


def _without_extras(path: str) -> dict[str, Any]:
    """The safety checker and feature extractor of SD1 are not part of a backbone; do not load them."""
    index = Path(path) / "model_index.json"
    known = json.loads(index.read_text()) if index.is_file() else {}
    return {part: None for part in ("safety_checker", "feature_extractor", "image_encoder") if part in known}


def _from_single_file(file: Path, dtype: torch.dtype) -> dict[str, Any]:
    if file.suffix != ".safetensors":
        raise BackboneError(
            f"loading a backbone from {file}: got a {file.suffix or 'nameless'} file, expected .safetensors; "
            "other formats can run code when they are read"
        )
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    errors = []
    for pipeline_class in (StableDiffusionPipeline, StableDiffusionXLPipeline):
        try:
            return _components(pipeline_class.from_single_file(str(file), dtype=dtype))
        except Exception as error:
            errors.append(f"{pipeline_class.__name__}: {str(error).strip().splitlines()[0]}")
    raise BackboneError(f"loading a backbone from {file}: {'; '.join(errors)}")


def _components(pipeline: Any) -> dict[str, Any]:
    components = {part: getattr(pipeline, part, None) for part in _PARTS}
    missing = [p for p in ("unet", "vae", "text_encoder", "tokenizer", "scheduler") if components[p] is None]
    if missing:
        raise BackboneError(
            f"loading a backbone: {type(pipeline).__name__} has no {', '.join(missing)}; expected Stable Diffusion "
            "1, 2 or XL"
        )
    return components

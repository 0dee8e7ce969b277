"""Write a backbone as an ordinary diffusers folder of safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers

from imprint.backbone.base import Backbone


def save_pipeline(backbone: Backbone, folder: Path) -> None:
    """Write every part of `backbone`, in the precision it has, into `folder`, for `DiffusionPipeline.from_pretrained`.

    Raises:
        OSError: the disk is full or may not be written.
    """
    kinds: dict[str, Any] = {
        "vae": backbone.vae,
        "text_encoder": backbone.text_encoders[0],
        "tokenizer": backbone.tokenizers[0],
        "unet": backbone.unet,
        "scheduler": _scheduler(backbone),
    }
    if backbone.family.text_encoders == 2:
        second = {"text_encoder_2": backbone.text_encoders[1], "tokenizer_2": backbone.tokenizers[1]}
        pipeline = diffusers.StableDiffusionXLPipeline(**kinds, **second, add_watermarker=False)
    else:
        without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = diffusers.StableDiffusionPipeline(**kinds, **without)
    pipeline.save_pretrained(folder, safe_serialization=True)
    for part in ("vae", "unet"):
        mend_config(folder / part)


def _scheduler(backbone: Backbone) -> Any:
    """The scheduler that the backbone came with, or DDIM with its settings where diffusers no longer knows it."""
    config = dict(backbone.scheduler_config)
    kind = getattr(diffusers, str(config.get("_class_name")), diffusers.DDIMScheduler)
    return kind.from_config(config)


def mend_config(folder: Path) -> None:
    """Leave out where the part was loaded from, which is nobody's business elsewhere.

    And what AutoencoderTiny writes and warns about on loading (diffusers 0.42.1): it derives it anew.
    """
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config.pop("_name_or_path", None)
    if config["_class_name"] == "AutoencoderTiny":
        del config["block_out_channels"]
    file.write_text(json.dumps(config, indent=2) + "\n")

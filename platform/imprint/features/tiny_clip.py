"""Build and save the small CLIP that ships with the project, as an ordinary open_clip model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
from safetensors.torch import save_file
from torch import nn

from imprint.config.jobs.tiny import ClipModel
from imprint.features.clip import CONFIG_NAME, WEIGHTS_NAME


def build_clip(model: ClipModel, vocabulary: int) -> tuple[nn.Module, dict[str, Any]]:
    """An untrained open_clip model and the configuration that it loads by."""
    config = {
        "embed_dim": model.embedding,
        "vision_cfg": {
            "image_size": model.image_size,
            "layers": model.vision_layers,
            "width": model.vision_width,
            "head_width": 32,
            "patch_size": model.patch_size,
        },
        "text_cfg": {
            "context_length": model.text.max_length,
            "vocab_size": vocabulary,
            "width": model.text.width,
            "heads": model.text.heads,
            "layers": model.text.layers,
        },
    }
    return open_clip.model.CLIP(**config), config


def save_clip(clip: nn.Module, config: dict[str, Any], tokenizer: Any, folder: Path) -> None:
    """Write weights (fp16), configuration and tokenizer into `folder`."""
    text = config["text_cfg"] | {
        "hf_tokenizer_name": "CLIPTokenizer", "tokenizer_kwargs": {"clean": "whitespace"},
    }  # fmt: skip
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    record = {"model_cfg": config | {"text_cfg": text}, "preprocess_cfg": preprocess}
    (folder / CONFIG_NAME).write_text(json.dumps(record, indent=1) + "\n")
    tensors = {name: value.half().contiguous() for name, value in clip.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_NAME)
    tokenizer.save_pretrained(folder)

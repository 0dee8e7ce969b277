"""How MLflow loads a pretrained encoder: `mlflow.pyfunc.load_model("models:/...")` calls `_load_pyfunc`."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from imprint.backbone import Backbone
from imprint.config.methods import SampleSpec
from imprint.methods import METHODS
from imprint.methods.pretrained import EncoderParts
from imprint.training.batches import to_pixel_values


class EncoderModel:
    """Draws the subjects of pictures by the encoder alone, without tuning."""

    def __init__(self, parts: EncoderParts) -> None:
        self.parts = parts

    @torch.no_grad()
    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[bytes]:
        """A PNG for each row: `image` is an encoded picture, `prompt` has `<concept>` in it.

        `params` are those of a SampleSpec, and `seed`.
        """
        params = dict(params or {})
        seed = int(params.pop("seed", 0))
        size = self.parts.backbone.image_size
        pictures = [Image.open(io.BytesIO(data)).convert("RGB").resize((size, size)) for data in model_input["image"]]
        pixel_values = to_pixel_values(np.stack([np.asarray(picture) for picture in pictures]))
        drawn = METHODS[self.parts.spec.method].preview(
            self.parts, pixel_values, list(model_input["prompt"]),
            SampleSpec.model_validate(params), seeds=range(seed, seed + len(pictures)),
        )  # fmt: skip
        return [_png(picture) for picture in drawn]


def _png(picture: torch.Tensor) -> bytes:
    array = ((picture.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def _load_pyfunc(data_path: str) -> EncoderModel:
    """Called by MLflow with the encoder's folder."""
    record = json.loads((Path(data_path) / "encoder.json").read_text())
    backbone = Backbone.load(record["backbone"]["path"])
    return EncoderModel(METHODS[record["method"]].load_encoder(data_path, backbone))

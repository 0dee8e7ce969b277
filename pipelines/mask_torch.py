"""Maskers on torch: segmentation models of transformers, and the mask of an attribute reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from imprint.config.data import MaskerSpec
from imprint.errors import DataError
from imprint.evaluation.attributes import AttributeReader
from imprint.pipelines.shapes import by_shape
from imprint.training.batches import to_pixel_values

Images = Sequence[UInt8[np.ndarray, "h w 3"]]
Masks = list[UInt8[np.ndarray, "h w"]]
_BACKGROUND = ("background", "__background__", "bg")
_SHOWN = 12  # labels that an error names


class TransformersMasker:
    """A segmentation model of transformers from a local folder or hub id, safetensors only, no code of its own.

    A semantic model gives the summed probability of the subject's labels; an instance model the largest instance of
    one of them whose score is above the threshold, or nothing.
    """

    def __init__(self, spec: MaskerSpec) -> None:
        import transformers
        from transformers.models.auto import modeling_auto

        try:
            config = transformers.AutoConfig.from_pretrained(spec.model, trust_remote_code=False)
            self.semantic = config.model_type in modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
            if self.semantic:
                kind = transformers.AutoModelForSemanticSegmentation
            elif config.model_type in modeling_auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES:
                kind = transformers.AutoModelForUniversalSegmentation
            else:
                kind = transformers.AutoModelForInstanceSegmentation
            self.model = kind.from_pretrained(spec.model, use_safetensors=True, trust_remote_code=False)
            self.processor = transformers.AutoImageProcessor.from_pretrained(spec.model, trust_remote_code=False)
        except Exception as error:  # of many kinds, for folders that lack a file or are of no known class
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"loading the masker {spec.model}: {first}; expected a semantic or instance segmentation model of "
                "transformers, with its image processor and safetensors"
            ) from error
        if not self.semantic and not hasattr(self.processor, "post_process_instance_segmentation"):
            raise DataError(f"loading the masker {spec.model}: a {config.model_type} model tells no instances apart")
        self.spec = spec
        self.model.to(spec.device).eval()
        self.subject = subject_labels(config.id2label, spec.labels, str(spec.model), whole=not self.semantic)

    @torch.no_grad()
    def __call__(self, images: Images) -> Masks:
        found: dict[int, np.ndarray] = {}
        for places, stack in by_shape(images, self.spec.batch_size):
            inputs = self.processor(images=list(stack), return_tensors="pt").to(self.spec.device)
            outputs = self.model(**inputs)
            size = stack.shape[1:3]
            masks = self._shares(outputs.logits, size) if self.semantic else self._instances(outputs, len(stack), size)
            found |= dict(zip(places, masks, strict=True))
        return [found[i] for i in range(len(images))]

    def _shares(self, logits: Float[Tensor, "b c h2 w2"], size: tuple[int, int]) -> UInt8[np.ndarray, "b h w"]:
        logits = F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
        shares = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
        subject = shares[:, list(self.subject)].sum(1).clamp(0, 1)
        return (subject * 255).round().to(torch.uint8).cpu().numpy()

    def _instances(self, outputs: Any, count: int, size: tuple[int, int]) -> list[UInt8[np.ndarray, "h w"]]:
        results = self.processor.post_process_instance_segmentation(
            outputs, threshold=self.spec.threshold, target_sizes=[size] * count
        )
        return [largest_instance(r["segmentation"].cpu(), r["segments_info"], self.subject, size) for r in results]


def largest_instance(
    segmentation: Float[Tensor, "h w"] | None,
    segments: Sequence[Mapping[str, Any]],
    subject: Sequence[int],
    size: tuple[int, int],
) -> UInt8[np.ndarray, "h w"]:
    """The segment of one of the subject's labels that covers the most, 255 on it; all zero without one."""
    best: Bool[Tensor, "h w"] = torch.zeros(size, dtype=torch.bool)
    for segment in segments:
        if segmentation is not None and segment["label_id"] in subject:
            mask = segmentation == segment["id"]
            best = mask if mask.sum() > best.sum() else best
    return best.numpy().astype(np.uint8) * 255


def subject_labels(
    names: Mapping[int, str], wanted: Sequence[str], model: str, *, whole: bool = False
) -> tuple[int, ...]:
    """The numbers of the labels that are the subject; without `wanted`, all but the background.

    `whole` says that a model names no background, since what is left over is none.

    Raises:
        DataError: a label is not among the model's, or none is wanted and none is the background.
    """
    numbers = {str(name).lower(): int(number) for number, name in names.items()}
    shown = ", ".join(list(numbers)[:_SHOWN])
    if wanted:
        missing = [label for label in wanted if label.lower() not in numbers]
        if missing:
            raise DataError(
                f"loading the masker {model}: no label {missing[0]!r}, as masks.labels says; it has {shown}"
            )
        return tuple(numbers[label.lower()] for label in wanted)
    if len(numbers) == 1:
        return (0,)
    subject = tuple(number for name, number in numbers.items() if name not in _BACKGROUND)
    if len(subject) == len(numbers) and not whole:
        raise DataError(
            f"loading the masker {model}: none of its labels is the background; say in masks.labels which are the "
            f"subject, of {shown}"
        )
    return subject


class AttributeMasker:
    """The mask that an attribute reader draws; the embedded one knows the default faces."""

    def __init__(self, spec: MaskerSpec) -> None:
        self.reader = AttributeReader.load(spec.model or "face-attributes")
        self.reader.net.to(spec.device)
        self.spec = spec

    def __call__(self, images: Images) -> Masks:
        found: dict[int, np.ndarray] = {}
        for places, stack in by_shape(images, self.spec.batch_size):
            masks = self.reader.masks(to_pixel_values(stack).to(self.spec.device))[:, 0]
            found |= dict(zip(places, (masks * 255).round().to(torch.uint8).cpu().numpy(), strict=True))
        return [found[i] for i in range(len(images))]

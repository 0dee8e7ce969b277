"""Captions of samples: kept, or written by a model; a pure function over a batch, and a thin Ray class over it.

A caption has two parts for a trainer: `caption`, the whole sentence, and `context`, its phrases that do not belong
to the subject's identity (background, expression, style).
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np

from imprint.config.data import CaptionerSpec

Columns = dict[str, np.ndarray]
Captioner = Callable[[Columns], tuple[list[str], list[str]]]  # a batch -> its captions and contexts


def own_context(document: str) -> str:
    """The identity-free phrases that a sample's json carries as `caption_context`; "" where it has none."""
    return str(json.loads(document).get("caption_context", ""))


def caption_rows(batch: Columns, captioner: Captioner | None, *, missing_only: bool) -> Columns:
    """The batch with `caption` and `context` filled in; without a captioner, what the samples say themselves."""
    captions = [str(text) for text in batch["caption"]]
    contexts = [own_context(document) for document in batch["json"]]
    wanted = [i for i, text in enumerate(captions) if not (missing_only and text)] if captioner else []
    if captioner and wanted:
        found = captioner({name: values[wanted] for name, values in batch.items()})
        for i, caption, context in zip(wanted, *found, strict=True):
            captions[i], contexts[i] = caption, context
    return {**batch, "caption": np.array(captions), "context": np.array(contexts)}


class CaptionStage:
    """The captioner as an actor of Ray Data."""

    def __init__(self, spec: CaptionerSpec) -> None:
        self.spec = spec
        self.captioner = load_captioner(spec)

    def __call__(self, batch: Columns) -> Columns:
        return caption_rows(batch, self.captioner, missing_only=self.spec.missing_only)


def load_captioner(spec: CaptionerSpec) -> Captioner | None:
    """The captioner that a job file asks for; None for "keep", whose actors need no torch.

    Raises:
        DataError: its model cannot be loaded.
    """
    device = "cuda" if spec.gpus else "cpu"
    if spec.kind == "clip":
        from imprint.features.clip import ClipFeatures
        from imprint.pipelines.caption_models import ClipCaptioner

        return ClipCaptioner(ClipFeatures.load(spec.model, device=device))
    if spec.kind == "transformers":
        from imprint.pipelines.caption_models import TransformersCaptioner

        return TransformersCaptioner(spec.model, spec.max_new_tokens, device)
    return None

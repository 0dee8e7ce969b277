"""Captions of samples: kept, or written by models; a pure function over a batch, and a thin Ray class over it.

A caption has two parts for a trainer: `caption`, the whole sentence, and `context`, its phrases that do not belong
to the subject's identity (background, expression, style). What is written is a coarse caption c_c = f_c(x) and fine
phrases c_f = f_a(x), joined: Taming Encoder, arXiv:2304.02642, section 3.3.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from imprint.config.data import CaptionerSpec

Columns = dict[str, np.ndarray]


class Written(NamedTuple):
    """What models say of one picture: the coarse caption, and fine phrases of its identity and of all else."""

    coarse: str = ""
    identity: str = ""
    context: str = ""

    @property
    def fine(self) -> str:
        return ", ".join(part for part in (self.identity, self.context) if part)


Captioner = Callable[[Columns], list[Written]]
Existing = Literal["keep", "replace", "append"]
PLAIN = ("{coarse}, {fine}",)


def own_context(document: str) -> str:
    """The identity-free phrases that a sample's json carries as `caption_context`; "" where it has none."""
    return str(json.loads(document).get("caption_context", ""))


def fill_template(template: str, written: Written) -> str:
    """The template with `{coarse}` and `{fine}` filled in; a part between commas that stays empty is dropped."""
    parts = template.format(coarse=written.coarse, fine=written.fine).split(",")
    return ", ".join(" ".join(part.split()) for part in parts if part.strip())


def caption_rows(
    batch: Columns, captioner: Captioner | None, *, existing: Existing = "keep", templates: Sequence[str] = PLAIN
) -> Columns:
    """The batch with `caption` and `context` filled in; without a captioner, what the samples say themselves.

    `existing` says what becomes of a sample's own caption; the captioner sees only samples that want one. Which of
    several templates a sample gets is a pure function of its key. A written context takes the place of the sample's
    own, or with "append" stands in where there is none.
    """
    captions = [str(text) for text in batch["caption"]]
    contexts = [own_context(document) for document in batch["json"]]
    wanted = [i for i, text in enumerate(captions) if existing != "keep" or not text] if captioner else []
    if captioner and wanted:
        found = captioner({name: values[wanted] for name, values in batch.items()})
        for i, written in zip(wanted, found, strict=True):
            template = templates[zlib.crc32(str(batch["__key__"][i]).encode()) % len(templates)]
            text = fill_template(template, written)
            if existing == "append":
                captions[i] = ", ".join(part for part in (captions[i].rstrip(" ."), text) if part)
                contexts[i] = contexts[i] or written.context
            else:
                captions[i], contexts[i] = text or captions[i], written.context or contexts[i]
    return {**batch, "caption": np.array(captions), "context": np.array(contexts)}


def together(coarse: Captioner, fine: Captioner) -> Captioner:
    """One captioner of two: f_c by the first, f_a by the second."""

    def both(batch: Columns) -> list[Written]:
        return [
            Written(one.coarse, other.identity, other.context)
            for one, other in zip(coarse(batch), fine(batch), strict=True)
        ]

    return both


def keep_captions(batch: Columns) -> Columns:
    """What the samples say themselves."""
    return caption_rows(batch, None)


class CaptionStage:
    """The captioner as an actor of Ray Data."""

    def __init__(self, spec: CaptionerSpec) -> None:
        self.spec = spec
        self.captioner = load_captioner(spec)

    def __call__(self, batch: Columns) -> Columns:
        return caption_rows(batch, self.captioner, existing=self.spec.existing, templates=self.spec.templates)


def load_captioner(spec: CaptionerSpec) -> Captioner | None:
    """The captioner that a job file asks for; None where samples keep what they have, whose actors need no torch.

    Raises:
        BackboneError, DataError: a model cannot be loaded.
    """
    if spec.is_light:
        return None
    from imprint.pipelines import caption_models as models

    if spec.kind == "clip" and spec.fine_kind == "clip" and spec.fine_model in (None, spec.model):
        return models.ClipCaptioner.load(spec, spec.model)
    fine: Captioner | None = None
    if spec.fine_kind == "clip":
        fine = models.ClipCaptioner.load(spec, spec.fine_model or "imprint-tiny-clip", coarse=False)
    elif spec.fine_kind == "attributes":
        fine = models.AttributeCaptioner.load(spec)
    if spec.kind == "keep":
        return fine
    if spec.kind == "clip":
        coarse: Captioner = models.ClipCaptioner.load(spec, spec.model, fine=False)
    else:
        coarse = models.TransformersCaptioner(spec)
    return together(coarse, fine) if fine else coarse

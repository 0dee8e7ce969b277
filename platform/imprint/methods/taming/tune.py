"""Personalization by the Taming Encoder: one forward pass of the object encoder. Nothing is tuned.

Source: Taming Encoder, section 3.1: "image generation for an object with a single forward pass".
"""

from __future__ import annotations

import logging

from imprint.config.methods import TamingTuneSpec
from imprint.methods.base import Learned, Pictures, TuneCallback
from imprint.methods.few_steps import check_tuning, prepared
from imprint.methods.taming.learned import pack
from imprint.methods.taming.parts import TamingParts

log = logging.getLogger(__name__)


def tune(
    parts: TamingParts,
    pictures: Pictures,
    spec: TamingTuneSpec,
    *,
    class_noun: str | None = None,
    seed: int = 0,
    callback: TuneCallback | None = None,
) -> Learned:
    """The object embedding of a subject; `callback` is never called, since there are no steps.

    The paper takes one picture. Of several the patches stand side by side, for the network to attend to all of them;
    of pooled embeddings the mean is taken.

    Raises:
        ConfigError: there are no pictures, or masks or contexts do not fit them.
    """
    check_tuning(pictures, spec)
    shown = prepared(parts.backbone, pictures)
    if shown.masks is None and parts.spec.object_encoder.masked:
        log.warning(
            "the pictures have no mask, so their background is part of the object embedding; put NAME.mask.png beside "
            "NAME.png, or give pictures with transparency"
        )
    each = parts.embed(shown.images, shown.masks)
    objects = each.flatten(0, 1) if parts.spec.object_encoder.tokens == "patches" else each.mean(0)
    return pack(parts, objects, spec, class_noun=class_noun or parts.spec.domain_word, seed=seed)

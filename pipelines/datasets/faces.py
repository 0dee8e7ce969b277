"""The faces data set: avatars whose identity and attributes are known exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from imprint.config.jobs.prepare import PrepareFaces
from imprint.pipelines.datasets.backgrounds import draw_background
from imprint.pipelines.datasets.draw import Draw
from imprint.pipelines.datasets.face_captions import class_noun, draw_captions
from imprint.pipelines.datasets.face_identity import Identity, Split, draw_identities
from imprint.pipelines.datasets.face_render import render_face
from imprint.pipelines.datasets.face_variant import attributes, draw_variant
from imprint.pipelines.datasets.prepare import Picture, Progress, ShardPlan, made_with, plan_shards, prepare

GENERATOR = "faces-1"
# The first pictures of an identity always show its hair, so that one of them can stand for it.
_BAREHEADED_VARIANTS = 2


class FaceItem(NamedTuple):
    """One picture to draw: variant number `variant` of identity number `number`."""

    split: Split
    number: int
    variant: int
    identity: Identity


def prepare_faces(spec: PrepareFaces, progress: Progress | None = None) -> dict[int, Path]:
    """Renders the faces that `spec` asks for into `<out_dir>/faces-<size>/` and writes their manifests.

    Raises:
        StorageError: no space or no permission.
        DataError: a picture could not be drawn.
    """
    return prepare(spec, "faces", _header(spec), _plans(spec), render_item, progress)


def render_item(spec: PrepareFaces, item: FaceItem, size: int) -> Picture:
    """Draws one picture at `size` px: a pure function of the seed, the identity and the variant's number."""
    identity = item.identity
    draw = Draw(spec.seed, "faces", identity.key, item.variant)
    variant = draw_variant(draw, 0.0 if item.variant < _BAREHEADED_VARIANTS else spec.hat_share)
    background = draw_background(draw, size, spec.backgrounds)
    captions = draw_captions(draw, identity, variant, background.phrase)
    fields = {
        "identity": identity.key,
        "class_noun": class_noun(identity),
        "attributes": {
            **attributes(identity, variant),
            "background": background.words,
            "background_kind": background.kind,
        },
        "caption_identity": captions.identity,
        "caption_context": captions.context,
        "domain": "faces",
        "split": item.split,
    }
    prefix = "face" if item.split == "train" else "heldout-face"
    return Picture(
        key=f"{prefix}-{item.number:06d}-{item.variant}",
        subject=render_face(identity, variant, size),
        background=background.pixels,
        caption=captions.caption,
        fields=fields,
    )


def _plans(spec: PrepareFaces) -> list[ShardPlan]:
    """Held-out shards first: there are few of them, and whoever evaluates needs them soonest."""
    identities = draw_identities(spec.seed, spec.train_identities, spec.heldout_identities)
    plans: list[ShardPlan] = []
    for split, variants in (("heldout", spec.heldout_variants), ("train", spec.train_variants)):
        items = [
            FaceItem(split, number, variant, identity)
            for number, identity in enumerate(identities[split])
            for variant in range(variants)
        ]
        plans += plan_shards(split, items, spec.samples_per_shard)
    return plans


def _header(spec: PrepareFaces) -> dict[str, Any]:
    """What the bytes of the shards depend on."""
    drawn = spec.model_dump(mode="json", exclude={"job", "name", "out_dir", "sizes", "workers"})
    return {
        "dataset": "faces",
        "generator": GENERATOR,
        "spec": drawn,
        "largest": max(spec.sizes),
        "made_with": made_with("numpy", "pillow", "python-avatars", "resvg-py", "scikit-image", "simplejpeg"),
    }

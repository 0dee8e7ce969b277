"""The objects data set: emoji, the same concept as several vendors draw it."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image

from imprint.config.jobs.prepare import PrepareObjects
from imprint.errors import DataError
from imprint.pipelines.datasets.backgrounds import draw_background
from imprint.pipelines.datasets.draw import Draw
from imprint.pipelines.datasets.emoji_concepts import Concept, Drawing, Split, heldout_families, load_concepts
from imprint.pipelines.datasets.emoji_packages import NAMES, STYLES
from imprint.pipelines.datasets.prepare import Picture, Progress, ShardPlan, made_with, plan_shards, prepare

GENERATOR = "objects-1"
# SVGs are drawn at this height before they are trimmed and scaled: twice the largest default size.
_SVG_PX = 256

_BACKGROUND_SHARE = 0.85
_TEMPLATES = {
    "{}": 0.35,
    "{}, {style} style": 0.35,
    "an emoji of {}": 0.15,
    "a picture of {}": 0.15,
}


class ObjectItem(NamedTuple):
    """One picture to draw: `drawing` of `concept` (which is stripped of its drawings) on background `variant`."""

    number: int
    concept: Concept
    drawing: Drawing
    variant: int


def prepare_objects(spec: PrepareObjects, progress: Progress | None = None) -> dict[int, Path]:
    """Renders the emoji that `spec` asks for into `<out_dir>/objects-<size>/` and writes their manifests.

    Raises:
        DataError: an npm package cannot be had, or a drawing cannot be read.
        StorageError: no space or no permission.
    """
    concepts = load_concepts(Path(spec.cache_dir).expanduser(), spec.styles)
    return prepare(spec, "objects", _header(spec), _plans(spec, concepts), render_item, progress)


def render_item(spec: PrepareObjects, item: ObjectItem, size: int) -> Picture:
    """Draws one picture at `size` px: a pure function of the seed, the concept, the style and the variant."""
    concept, style = item.concept, item.drawing.style
    draw = Draw(spec.seed, "objects", concept.slug, style, item.variant)
    subject = _place(draw, _rasterise(item), size)
    background = draw_background(draw, size, spec.backgrounds)
    thing = with_article(concept.name)
    caption = draw.weighted(_TEMPLATES).format(thing, style=style)
    if draw.chance(_BACKGROUND_SHARE):
        caption += f", {background.phrase}" if "," in caption else f" {background.phrase}"
    fields = {
        "identity": concept.slug,
        "class_noun": concept.name,
        "attributes": {
            "concept": concept.name,
            "group": concept.group,
            "subgroup": concept.subgroup,
            "style": style,
            "background": background.words,
            "background_kind": background.kind,
        },
        "caption_identity": thing,
        "caption_context": background.phrase,
        "domain": "objects",
        "split": concept.split,
    }
    prefix = "object" if concept.split == "train" else "heldout-object"
    key = f"{prefix}-{item.number:06d}-{style.replace(' ', '-')}-{item.variant}"
    return Picture(key, subject, background.pixels, caption, fields)


def with_article(name: str) -> str:
    """The name as a caption says it: "an anchor", but "grapes"."""
    last = name.split(" with ")[0].split()[-1]
    if last.endswith("s") and not last.endswith(("ss", "us", "is")):
        return name
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _plans(spec: PrepareObjects, concepts: list[Concept]) -> list[ShardPlan]:
    """Concepts in random order, since Unicode's would put all fruit into one shard."""
    backgrounds: dict[Split, int] = {"heldout": spec.heldout_backgrounds, "train": spec.train_backgrounds}
    shuffled = Draw(spec.seed, "objects", "order").shuffled(concepts)
    plans: list[ShardPlan] = []
    for split, variants in backgrounds.items():
        items = [
            ObjectItem(number, concept._replace(drawings=()), drawing, variant)
            for number, concept in enumerate(concept for concept in shuffled if concept.split == split)
            for drawing in concept.drawings
            for variant in range(variants)
        ]
        plans += plan_shards(split, items, spec.samples_per_shard)
    return plans


def _rasterise(item: ObjectItem) -> Image.Image:
    """The drawing as premultiplied RGBA, trimmed to what is visible."""
    where = {"concept": item.concept.name, "style": item.drawing.style}
    content = item.drawing.content
    try:
        if content.lstrip().startswith(b"<"):
            content = resvg_py.svg_to_bytes(svg_string=content.decode(), height=_SVG_PX, skip_system_fonts=True)
        with Image.open(io.BytesIO(content), formats=("PNG", "WEBP")) as image:
            rgba = image.convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"drawing an emoji: {error}; leave its style out of `styles`, or fetch the package again", **where
        ) from error
    box = rgba.getchannel("A").getbbox()
    if box is None:
        raise DataError("drawing an emoji: nothing in it is visible; leave its style out of `styles`", **where)
    # Premultiplied, so that scaling does not pull the colour of invisible pixels into the edge.
    return rgba.crop(box).convert("RGBa")


def _place(draw: Draw, drawing: Image.Image, size: int) -> NDArray[np.uint8]:
    """The drawing on a transparent square, its longer side 70 to 92 % of it, wholly inside: RGBA, straight alpha."""
    scale = draw.between(0.70, 0.92) * size / max(drawing.size)
    width, height = (max(1, round(side * scale)) for side in drawing.size)
    left, top = draw.integer(0, size - width), draw.integer(0, size - height)
    canvas = Image.new("RGBa", (size, size))
    canvas.paste(drawing.resize((width, height), Image.Resampling.LANCZOS), (left, top))
    return np.asarray(canvas.convert("RGBA"))


def _header(spec: PrepareObjects) -> dict[str, Any]:
    """What the bytes of the shards depend on."""
    heldout = json.dumps(heldout_families(), sort_keys=True)
    packages = {package.name: package.version for package in (NAMES, *(STYLES[style] for style in spec.styles))}
    drawn = spec.model_dump(mode="json", exclude={"job", "name", "out_dir", "sizes", "workers", "cache_dir"})
    return {
        "dataset": "objects",
        "generator": GENERATOR,
        "spec": drawn,
        "largest": max(spec.sizes),
        "packages": packages,
        "heldout_sha256": hashlib.sha256(heldout.encode()).hexdigest(),
        "made_with": made_with("numpy", "pillow", "resvg-py", "scikit-image", "simplejpeg"),
    }

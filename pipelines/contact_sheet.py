"""A page with pictures of shards, their masks over them and their captions: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from imprint.pipelines.inspection import Shown
from imprint.pipelines.sizes import size_conditioning

_SIDE = 240  # px of the longer side of a thumbnail
_TINT = np.array([255, 0, 80], np.float32)
_SHARE = 0.55  # of the tint where the mask is full
_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 24px; color: #222; background: #fafafa }
h1 { font-size: 20px; margin: 0 0 12px }
table { border-collapse: collapse; margin: 0 0 20px }
td { padding: 2px 16px 2px 0; vertical-align: top }
td:first-child { color: #666 }
main { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(504px, 1fr)) }
figure { margin: 0; padding: 10px; background: #fff; border: 1px solid #ddd; border-radius: 6px }
figure div { display: flex; gap: 4px }
figure img { display: block; max-width: 240px; max-height: 240px }
figcaption { margin-top: 6px; overflow-wrap: anywhere }
figcaption small { color: #777; display: block }
.none { color: #999; font-style: italic }
.problem { color: #b00020 }
"""


def render_sheet(title: str, facts: Iterable[tuple[str, str]], samples: Sequence[Shown]) -> str:
    """The whole page; `facts` are lines of a table above the pictures. All text is escaped."""
    rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in facts)
    figures = "\n".join(_figure(sample) for sample in samples)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>\n<table>{rows}</table>\n"
        f"<main>\n{figures}\n</main></body></html>\n"
    )


def overlay_mask(image: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """The subject in its colours with a red tint, the ground in pale grey."""
    share = mask[..., None].astype(np.float32) / 255
    grey = image.mean(axis=-1, keepdims=True) * 0.35 + 255 * 0.65
    tinted = image * (1 - _SHARE / 2) + _TINT * (_SHARE / 2)
    return np.clip(grey * (1 - share) + tinted * share + 0.5, 0, 255).astype(np.uint8)


def _figure(sample: Shown) -> str:
    pictures, about = "", [sample.shard]
    if sample.image is not None:
        height, width = sample.image.shape[:2]
        about.append(f"{width} x {height} px")
        pictures = _img(sample.image, "picture")
        if sample.mask is not None:
            about.append(f"mask {100 * float(sample.mask.mean()) / 255:.0f} %")
            pictures += _img(overlay_mask(sample.image, sample.mask), "mask")
        about += [f"{key} {sample.fields[key]}" for key in ("identity", "class_noun", "domain") if key in sample.fields]
        before, _, after = np.split(size_conditioning(sample.fields, (height, width)), 3)
        if (before != after).any():
            about.append(f"from {before[1]} x {before[0]} px")
    text = html.escape(sample.caption) if sample.caption else '<span class="none">no caption</span>'
    if sample.problem:
        text = f'<span class="problem">{html.escape(sample.problem)}</span>'
    return (
        f"<figure><div>{pictures}</div><figcaption>{text}"
        f"<small>{html.escape(sample.key)}</small><small>{html.escape(', '.join(about))}</small></figcaption></figure>"
    )


def _img(array: UInt8[np.ndarray, "h w 3"], what: str) -> str:
    picture = Image.fromarray(np.ascontiguousarray(array))
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return f'<img alt="{what}" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'

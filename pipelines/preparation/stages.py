"""The second pass: from a sample's files to the members of a shard, as stages of Ray Data."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import simplejpeg
from PIL import Image

from imprint.config.jobs.shards import FeatureSpec, PictureSpec
from imprint.pipelines.blocks import BlockBuilder, to_blocks
from imprint.pipelines.decode import decode_sample
from imprint.pipelines.preparation.buckets import apply_crop, place_crop
from imprint.pipelines.preparation.planning import sample_key
from imprint.pipelines.preparation.survey import read_spans
from imprint.pipelines.samples import FEATURES_PART, MASKS, PICTURES
from imprint.pipelines.sizes import FIELD, Shape

Columns = dict[str, np.ndarray]
_ANY_SIZE = 1 << 62  # pixels of pictures that were encoded here
ENCODED = pa.schema(
    {
        "key": pa.string(), "extension": pa.string(), "picture": pa.large_binary(), "mask": pa.large_binary(),
        "caption": pa.string(), "json": pa.string(), "features": pa.large_binary(),
    }
)  # fmt: skip


def read_rows(
    records: pa.Table, positions: tuple[int, ...], shape: Shape | None, spec: PictureSpec, seed: int, block_bytes: int
) -> Iterator[Any]:
    """Blocks of decoded, cropped rows; `records` are the survey's rows at `positions`."""
    rows = (
        _row(record, position, shape, spec, seed)
        for record, position in zip(records.to_pylist(), positions, strict=True)
    )
    yield from to_blocks(rows, BlockBuilder(block_bytes))


def copy_rows(records: pa.Table, positions: tuple[int, ...]) -> Iterator[pa.Table]:
    """Members of samples whose files go into the shard as they are, without decoding them again."""
    encoded = []
    for record, position in zip(records.to_pylist(), positions, strict=True):
        parts = read_spans(record["spans"])
        extension = next(name for name in PICTURES if name in parts)
        crop = place_crop((record["height"], record["width"]), None)
        document = _document(parts.get("json", b"{}").decode(), record, crop.record())
        encoded.append({
            "key": sample_key(position, record["name"]), "extension": extension, "picture": parts[extension],
            "mask": next((parts[name] for name in MASKS if name in parts), None),
            "caption": parts.get("txt", b"").decode().strip(), "json": document, "features": None,
        })  # fmt: skip
    yield pa.Table.from_pylist(encoded, ENCODED)


def _row(record: dict[str, Any], position: int, shape: Shape | None, spec: PictureSpec, seed: int) -> Any:
    parts = read_spans(record["spans"])
    decoded = decode_sample(parts, size=None, max_pixels=record["height"] * record["width"])
    shares = (0.5, 0.5)
    if spec.crop == "random":
        vertical, horizontal = np.random.default_rng([seed, position]).random(2)
        shares = float(vertical), float(horizontal)
    crop = place_crop((record["height"], record["width"]), shape, shares)
    image, mask = apply_crop(decoded["image"], crop), decoded["mask"]
    return {
        "__key__": sample_key(position, record["name"]), "image": image, "has_mask": mask is not None,
        "mask": np.zeros(image.shape[:2], np.uint8) if mask is None else apply_crop(mask, crop),
        "caption": decoded["caption"], "json": _document(decoded["json"], record, crop.record()),
        "spans": record["spans"] if shape is None else "",
    }  # fmt: skip


def _document(own: str, record: dict[str, Any], crop: dict[str, Any]) -> str:
    """The sample's json: its own, columns of the table, where it came from and how it was cropped.

    A sample that was cropped before keeps the size that it had at first, and all of its record where it stays as it is.
    """
    document = json.loads(own) | json.loads(record["fields"])
    document |= {"source": record["source"], "perceptual_hash": f"{record['hash']:016x}"}
    earlier = document.get(FIELD)
    if not isinstance(earlier, dict):
        document[FIELD] = crop
    elif crop["target_size"] != crop["original_size"]:
        document[FIELD] = crop | {"original_size": earlier.get("original_size", crop["original_size"])}
    return json.dumps(document, sort_keys=True, ensure_ascii=False)


class Encode:
    """Rows to members of a shard: the picture as JPEG, or its own file where its size was kept."""

    def __init__(self, quality: int) -> None:
        self.quality = quality

    def __call__(self, batch: Columns) -> pa.Table:
        """A table of the columns of `ENCODED`."""
        rows = [{name: values[i] for name, values in batch.items()} for i in range(len(batch["__key__"]))]
        return pa.Table.from_pylist([self._encode(row) for row in rows], ENCODED)

    def _encode(self, row: dict[str, Any]) -> dict[str, Any]:
        document = json.loads(str(row["json"]))
        if context := str(row.get("context", "")):
            document["caption_context"] = context
        if row["spans"]:
            parts = read_spans(str(row["spans"]))
            extension = next(name for name in PICTURES if name in parts)
            picture = parts[extension]
        else:
            extension, picture = "jpg", simplejpeg.encode_jpeg(
                np.ascontiguousarray(row["image"]), quality=self.quality, colorspace="RGB", colorsubsampling="444"
            )  # fmt: skip
        return {
            "key": str(row["__key__"]), "extension": extension, "picture": picture,
            "mask": _png(row["mask"]) if row["has_mask"] else None, "caption": str(row["caption"]),
            "json": json.dumps(document, sort_keys=True, ensure_ascii=False), "features": None,
        }  # fmt: skip


class StoreFeatures:
    """Frozen models over encoded samples: their features, of the pictures as a reader of the shards will see them."""

    def __init__(self, spec: FeatureSpec) -> None:
        from imprint.pipelines.features import FeatureStage  # loads torch, which no other stage here needs

        self.batch_size = spec.batch_size
        self.stage = FeatureStage(spec, spec.backbone, spec.clip, spec.mask_reference, spec.parts)

    def __call__(self, encoded: pa.Table) -> pa.Table:
        """The same table with `features` filled in."""
        rows = encoded.to_pylist()
        for start in range(0, len(rows), self.batch_size):
            self._fill(rows[start : start + self.batch_size])
        return pa.Table.from_pylist(rows, ENCODED)

    def _fill(self, rows: list[dict[str, Any]]) -> None:
        from imprint.pipelines.features import stored

        seen = [decode_sample(members(row), size=None, max_pixels=_ANY_SIZE) for row in rows]
        batch: Columns = {
            "image": np.stack([one["image"] for one in seen]), "caption": np.array([one["caption"] for one in seen])
        }  # fmt: skip
        if all(one["mask"] is not None for one in seen):
            batch["mask"] = np.stack([one["mask"] for one in seen])
        found = self.stage(batch)
        for number, row in enumerate(rows):
            row["features"] = stored(found, number)


def members(row: dict[str, Any]) -> dict[str, bytes]:
    """An encoded row as the files of its sample."""
    found = {row["extension"]: row["picture"]}
    if row["mask"] is not None:
        found[MASKS[0]] = row["mask"]
    if row["caption"]:
        found["txt"] = row["caption"].encode()
    if row["features"] is not None:
        found[FEATURES_PART] = row["features"]
    return found | {"json": row["json"].encode()}


def _png(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(mask)).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()

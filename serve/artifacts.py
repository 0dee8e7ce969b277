"""A concept as one run of bytes: safetensors, with its record among the metadata."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

from safetensors.torch import load, save

from imprint.errors import ConceptError
from imprint.methods.base import Learned
from imprint.tuning import Concept
from imprint.tuning.concept import FORMAT_VERSION

RECORD = "imprint_concept"
_LENGTH_BYTES = 8


def pack(concept: Concept) -> bytes:
    """The concept, whole."""
    record = {
        "method": concept.learned.method, "class_noun": concept.learned.class_noun,
        "settings": dict(concept.learned.settings),
        "backbone": {"path": concept.backbone_path, "fingerprint": concept.backbone_fingerprint},
        "provenance": dict(concept.provenance),
    }  # fmt: skip
    tensors = {name: value.detach().cpu().contiguous() for name, value in concept.learned.tensors.items()}
    return save(tensors, {"format": "pt", RECORD: json.dumps(record)})


def unpack(blob: bytes) -> Concept:
    """The other way round.

    Raises:
        ConceptError: it is no concept.
    """
    record = _record(blob)
    learned = Learned(record["method"], record["class_noun"], load(blob), record["settings"])
    backbone = record["backbone"]
    return Concept(learned, backbone["path"], backbone["fingerprint"], record["provenance"])


def as_folder(blob: bytes) -> bytes:
    """A zip of the folder that `imprint sample --concept` reads."""
    record: dict[str, Any] = {
        "format": "imprint-concept", "format_version": FORMAT_VERSION, **_record(blob),
        "sha256": hashlib.sha256(blob).hexdigest(),
    }  # fmt: skip
    return zipped({"concept.safetensors": blob, "concept.json": (json.dumps(record, indent=1) + "\n").encode()})


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip without compression, as weights have none to gain; its dates say nothing."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


def _record(blob: bytes) -> dict[str, Any]:
    length = int.from_bytes(blob[:_LENGTH_BYTES], "little")
    try:
        header = json.loads(blob[_LENGTH_BYTES : _LENGTH_BYTES + length])
        return json.loads(header["__metadata__"][RECORD])
    except (ValueError, KeyError, TypeError) as error:
        raise ConceptError("reading a concept: it has no record of how it was made; it is none, or is damaged") from (
            error
        )

"""The Concept: a folder that holds what was learned of one subject, and how. It needs no training state to load.

<folder>/
    concept.safetensors    what the method learned, and nothing of the backbone
    concept.json           format and version, method, class noun, settings, backbone fingerprint, versions, sha256
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imprint.backbone import Backbone
from imprint.errors import ConceptError
from imprint.folders import library_versions, read_folder, write_folder
from imprint.methods.base import Learned

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Concept:
    """What was learned, for which backbone, from what."""

    learned: Learned
    backbone_path: str
    backbone_fingerprint: str
    provenance: Mapping[str, Any]

    @classmethod
    def of(cls, learned: Learned, backbone: Backbone, **provenance: Any) -> Concept:
        """A concept of a backbone; `provenance` is plain JSON."""
        record = {"versions": library_versions(), **provenance}
        return cls(learned, backbone.path, backbone.fingerprint(), record)

    def save(self, path: str | Path) -> Path:
        """Write the folder, whole or not at all.

        Raises:
            StorageError: the disk is full or may not be written.
        """
        record = {
            "method": self.learned.method,
            "class_noun": self.learned.class_noun,
            "settings": dict(self.learned.settings),
            "backbone": {"path": self.backbone_path, "fingerprint": self.backbone_fingerprint},
            "provenance": dict(self.provenance),
        }
        return write_folder(Path(path), "concept", self.learned.tensors, record, format_version=FORMAT_VERSION)

    @classmethod
    def load(cls, path: str | Path) -> Concept:
        """Read the folder and check it against its hash.

        Raises:
            ConceptError: not a concept, another format version, or cut or changed since it was written.
        """
        path = Path(path).expanduser()
        tensors, record = read_folder(path, "concept", ConceptError, format_version=FORMAT_VERSION)
        try:
            learned = Learned(record["method"], record["class_noun"], tensors, record["settings"])
            backbone = record["backbone"]
            return cls(learned, backbone["path"], backbone["fingerprint"], record["provenance"])
        except (KeyError, TypeError) as error:
            raise ConceptError(f"reading the concept {path}: concept.json lacks {error}") from error

    def require(self, backbone: Backbone) -> None:
        """Check that this is the backbone that the concept was learned on.

        Raises:
            ConceptError: it is another one.
        """
        if backbone.fingerprint() != self.backbone_fingerprint:
            raise ConceptError(
                f"using a concept: it was learned on the backbone {self.backbone_path!r}, and {backbone.path!r} has "
                "other weights; name that backbone, or personalize anew on this one"
            )

"""The pretrained encoder as a folder: what pretraining leaves and personalization starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imprint.backbone import Backbone
from imprint.backbone.loading import embedded_path
from imprint.config.methods import E4TSpec
from imprint.errors import CheckpointError
from imprint.features.clip import ClipFeatures
from imprint.folders import library_versions, read_folder, write_folder
from imprint.methods.e4t.parts import E4TParts

FORMAT_VERSION = 1


def save_encoder(
    path: str | Path,
    state: Mapping[str, Tensor],
    spec: E4TSpec,
    backbone: Backbone,
    clip: ClipFeatures,
    *,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write an encoder folder from an objective's state, `encoder.*` and `offsets.*` by name.

    `provenance` is plain JSON kept with it: steps, data, run id.

    Raises:
        StorageError: the disk is full or may not be written; nothing half-written is left.
    """
    record = {
        "method": "e4t",
        "spec": spec.model_dump(mode="json"),
        "backbone": {"path": backbone.path, "fingerprint": backbone.fingerprint()},
        "clip": {"name": clip.name, "fingerprint": clip.fingerprint()},
        "versions": library_versions(),
        "provenance": dict(provenance or {}),
    }
    return write_folder(Path(path), "encoder", state, record, format_version=FORMAT_VERSION)


def find_encoder(path: str | Path) -> Path:
    """The encoder folder at `path`: itself, `encoder` in a run's folder, or the one of an embedded name.

    Raises:
        CheckpointError: neither is there.
    """
    path = Path(path).expanduser()
    for candidate in (path, path / "encoder", embedded_path(str(path))):
        if (candidate / "encoder.json").is_file():
            return candidate
    raise CheckpointError(
        f"loading an encoder from {path}: found neither encoder.json nor encoder/encoder.json; expected a folder that "
        "pretraining wrote (jobs/pretrain_encoder.yaml)"
    )


def load_encoder(
    path: str | Path, backbone: Backbone, *, clip: ClipFeatures | None = None, domain_word: str | None = None
) -> E4TParts:
    """The parts of E4T with pretrained weights, on the backbone's device and frozen.

    `clip` spares loading it again; `domain_word` stands in for the one of pretraining.

    Raises:
        CheckpointError: the folder is broken, or made for another backbone or CLIP.
        BackboneError: CLIP cannot be loaded.
    """
    folder = find_encoder(path)
    state, record = read_folder(folder, "encoder", CheckpointError, format_version=FORMAT_VERSION)
    if record["backbone"]["fingerprint"] != backbone.fingerprint():
        raise CheckpointError(
            f"loading the encoder {folder}: it was pretrained on the backbone {record['backbone']['path']!r}, and "
            f"{backbone.path!r} has other weights; name that backbone, or pretrain an encoder on this one"
        )
    spec = E4TSpec.model_validate(record["spec"])
    clip = clip or ClipFeatures.load(spec.encoder.clip, device=backbone.device)
    if record["clip"]["fingerprint"] != clip.fingerprint():
        raise CheckpointError(
            f"loading the encoder {folder}: it was pretrained with the CLIP {record['clip']['name']!r}, and "
            f"{clip.name!r} has other weights"
        )
    parts = E4TParts.build(backbone, spec, clip, domain_word=domain_word)
    load_state(parts.encoder, "encoder.", state, folder)
    if parts.offsets is not None:
        load_state(parts.offsets, "offsets.", state, folder)
    return parts


def load_state(module: torch.nn.Module, prefix: str, state: Mapping[str, Tensor], source: Path | str) -> None:
    """Load the tensors whose names start with `prefix`, and freeze the module.

    Raises:
        CheckpointError: names or shapes do not fit.
    """
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"loading {prefix.rstrip('.')} from {source}: {reason[:300]}") from error
    module.requires_grad_(False)

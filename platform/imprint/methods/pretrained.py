"""The pretrained encoder as a folder: what pretraining leaves and personalization starts from, whatever the method."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from imprint.backbone import Backbone
from imprint.backbone.loading import embedded_path
from imprint.config.methods import PretrainSpec
from imprint.errors import CheckpointError
from imprint.features.clip import ClipFeatures
from imprint.folders import library_versions, read_folder, write_folder

FORMAT_VERSION = 1

SpecT = TypeVar("SpecT", bound=PretrainSpec)


class EncoderParts(Protocol):
    """A frozen backbone and CLIP with the networks that a method pretrains; a frozen dataclass."""

    @property
    def backbone(self) -> Backbone: ...

    @property
    def spec(self) -> Any: ...

    @property
    def clip(self) -> ClipFeatures | None: ...

    def networks(self) -> dict[str, nn.Module]:
        """What pretraining trains, by the field that holds it, which is also how its tensors' names begin."""
        ...


PartsT = TypeVar("PartsT", bound=EncoderParts)


class SavedEncoder(NamedTuple):
    """An encoder folder that fits a backbone: its tensors, its spec, and the CLIP that it was pretrained with."""

    folder: Path
    state: Mapping[str, Tensor]
    spec: Any
    clip: ClipFeatures


def save_encoder(
    path: str | Path,
    state: Mapping[str, Tensor],
    spec: PretrainSpec,
    backbone: Backbone,
    clip: ClipFeatures,
    *,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write an encoder folder from an objective's state, such as `encoder.*` and `offsets.*` by name.

    `provenance` is plain JSON kept with it: steps, data, run id.

    Raises:
        StorageError: the disk is full or may not be written; nothing half-written is left.
    """
    record = {
        "method": spec.method,
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


def read_encoder(
    path: str | Path, backbone: Backbone, spec_type: type[SpecT], clip: ClipFeatures | None = None
) -> SavedEncoder:
    """Read an encoder folder and check that it is of this method, this backbone and this CLIP.

    Raises:
        CheckpointError: the folder is broken, or made by another method or for another backbone or CLIP.
        BackboneError: CLIP cannot be loaded.
    """
    folder = find_encoder(path)
    state, record = read_folder(folder, "encoder", CheckpointError, format_version=FORMAT_VERSION)
    method = spec_type.model_fields["method"].default
    if record["method"] != method:
        raise CheckpointError(
            f"loading the encoder {folder}: it was pretrained for the method {record['method']}, and {method} cannot "
            f"read it; say --method {record['method']}, or pretrain an encoder for {method}"
        )
    spec = spec_type.model_validate(record["spec"])
    doing = f"loading the encoder {folder}: it was pretrained"
    return SavedEncoder(folder, state, spec, made_for(record, backbone, clip, spec.encoder.clip, doing))


def made_for(
    record: Mapping[str, Any], backbone: Backbone, clip: ClipFeatures | None, clip_name: str, doing: str
) -> ClipFeatures:
    """Check that what a folder's record tells of was made for this backbone and this CLIP; give back the CLIP.

    `clip` spares loading `clip_name` again; `doing` begins the message.

    Raises:
        CheckpointError: it was made for others.
        BackboneError: CLIP cannot be loaded.
    """
    if record["backbone"]["fingerprint"] != backbone.fingerprint():
        raise CheckpointError(
            f"{doing} on the backbone {record['backbone']['path']!r}, and {backbone.path!r} has other weights; name "
            "that backbone, or train anew on this one"
        )
    clip = clip or ClipFeatures.load(clip_name, device=backbone.device)
    if record["clip"]["fingerprint"] != clip.fingerprint():
        raise CheckpointError(f"{doing} with the CLIP {record['clip']['name']!r}, and {clip.name!r} has other weights")
    return clip


def load_parts(
    path: str | Path,
    backbone: Backbone,
    spec_type: type[SpecT],
    build: Callable[[Backbone, SpecT, ClipFeatures], PartsT],
    clip: ClipFeatures | None,
) -> PartsT:
    """The parts that `build` makes, with the weights of an encoder folder, on the backbone's device and frozen.

    Raises:
        CheckpointError: the folder is broken, or made by another method or for another backbone or CLIP.
        BackboneError: CLIP cannot be loaded.
    """
    saved = read_encoder(path, backbone, spec_type, clip)
    parts = build(backbone, saved.spec, saved.clip)
    load_networks(parts, saved.state, saved.folder)
    return parts


def load_networks(parts: EncoderParts, state: Mapping[str, Tensor], source: Path | str) -> None:
    """Load all networks of `parts` from tensors by their full names, and freeze them.

    Raises:
        CheckpointError: names or shapes do not fit.
    """
    for name, network in parts.networks().items():
        load_state(network, f"{name}.", state, source)


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


def with_own_networks(parts: PartsT) -> PartsT:
    """The same frozen models with copies of the networks that train."""
    copies = {name: copy.deepcopy(network) for name, network in parts.networks().items()}
    return dataclasses.replace(parts, **copies)  # type: ignore[type-var]

"""The trained network as a folder: what joint finetuning leaves and personalization starts from.

<run>/network/
    parts/taming.safetensors    the new attentions
    parts/taming.json           spec, base backbone, CLIP, the network's fingerprint, provenance
    model/                      an ordinary diffusers pipeline with the trained UNet; absent where it did not train
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imprint.backbone import Backbone
from imprint.backbone.loading import embedded_path
from imprint.backbone.saving import save_pipeline
from imprint.config.methods import TamingSpec
from imprint.errors import CheckpointError
from imprint.features.clip import ClipFeatures
from imprint.folders import library_versions, read_folder, replaced_folder, write_folder
from imprint.methods.pretrained import made_for
from imprint.methods.taming.parts import NetworkSource, TamingParts

FORMAT_VERSION = 1
_NAME = "taming"


@torch.no_grad()
def save_network(
    path: str | Path,
    state: Mapping[str, Tensor],
    parts: TamingParts,
    base: Mapping[str, str],
    *,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write a network's folder from an objective's state, `attentions.*` and `unet.*` by name.

    The state is loaded into `parts` first. `base` is the `path` and the `fingerprint` of the backbone that training
    started from, and `provenance` plain JSON kept with the network.

    Raises:
        CheckpointError: the state does not fit.
        StorageError: the disk is full or may not be written; nothing half-written is left.
    """
    load_network_state(parts, state, "the training state")
    record = {
        "method": _NAME,
        "spec": parts.spec.model_dump(mode="json"),
        "backbone": dict(base),
        "clip": {"name": parts.clip.name, "fingerprint": parts.clip.fingerprint()},
        "network": parts.fingerprint(),
        "versions": library_versions(),
        "provenance": dict(provenance or {}),
    }
    path = Path(path).expanduser()
    with replaced_folder(path, "network", ("parts", "model")) as fresh:
        write_folder(fresh / "parts", _NAME, parts.attentions.state_dict(), record, format_version=FORMAT_VERSION)
        if parts.spec.whole_network:
            save_pipeline(parts.backbone, fresh / "model")
    return path.absolute()


def find_network(path: str | Path) -> Path:
    """The network's folder at `path`: itself, `network` in a run's folder, or the one of an embedded name.

    Raises:
        CheckpointError: neither is there.
    """
    path = Path(path).expanduser()
    for candidate in (path, path / "network", embedded_path(str(path))):
        if (candidate / "parts" / f"{_NAME}.json").is_file():
            return candidate
    raise CheckpointError(
        f"loading a network of taming from {path}: found neither parts/{_NAME}.json nor network/parts/{_NAME}.json; "
        "expected a folder that joint finetuning wrote (jobs/finetune_joint.yaml)"
    )


def load_encoder(path: str | Path, backbone: Backbone, *, clip: ClipFeatures | None = None) -> TamingParts:
    """The trained network on the backbone that it was finetuned from, on its device and frozen.

    `clip` spares loading it again.

    Raises:
        CheckpointError: the folder is broken, or made from another backbone or with another CLIP.
        BackboneError: CLIP cannot be loaded.
    """
    folder = find_network(path)
    state, record = read_folder(folder / "parts", _NAME, CheckpointError, format_version=FORMAT_VERSION)
    spec = TamingSpec.model_validate(record["spec"])
    doing = f"loading the network {folder}: it was finetuned"
    clip = made_for(record, backbone, clip, spec.object_encoder.clip, doing)
    trained = dataclasses.replace(backbone, unet=_unet(folder, backbone)) if spec.whole_network else backbone
    parts = TamingParts.build(trained, spec, clip)
    load_network_state(parts, {f"attentions.{name}": value for name, value in state.items()}, folder)
    if (found := parts.fingerprint()) != record["network"]:
        raise CheckpointError(
            f"loading the network {folder}: its weights were changed since it was written; copy it again"
        )
    return dataclasses.replace(parts, source=NetworkSource(str(folder.absolute()), found))


def load_network_state(parts: TamingParts, state: Mapping[str, Tensor], source: Path | str) -> None:
    """Load an objective's state, `attentions.*` and, where it trained, `unet.*`.

    Raises:
        CheckpointError: names or shapes do not fit.
    """
    modules: dict[str, nn.Module] = {"attentions": parts.attentions}
    if any(name.startswith("unet.") for name in state):
        modules["unet"] = parts.backbone.unet
    for part, module in modules.items():
        own = {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"loading {part} from {source}: {reason[:300]}") from error


def _unet(folder: Path, backbone: Backbone) -> nn.Module:
    try:
        unet = type(backbone.unet).from_pretrained(
            folder / "model", subfolder="unet", dtype=backbone.dtype, use_safetensors=True
        )
    except Exception as error:  # diffusers raises whatever its readers do
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"loading the network {folder}: model/unet cannot be read ({reason})") from error
    return unet.to(backbone.device).requires_grad_(False).eval()

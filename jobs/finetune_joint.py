"""One worker of `finetune_joint`: it trains the whole network, or the new attentions alone, on triplets.

It writes checkpoints and, at the end, `<run>/network`: a diffusers folder and the attentions. Its driver is in
`imprint.jobs.cluster_jobs`.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.jobs.cluster import GridSpec
from imprint.config.jobs.finetune import FinetuneJoint
from imprint.features.clip import ClipFeatures
from imprint.jobs.ray_train import leads, start_worker, train_rank
from imprint.jobs.sample_grid import first_rows, write_grid
from imprint.methods.taming import TamingObjective, TamingParts, sample_objects, save_network
from imprint.methods.taming.artifact import load_network_state
from imprint.training.apply import apply_engine_options
from imprint.training.batches import collate_triplets, to_pixel_values
from imprint.training.checkpoint import TrainingState

RESULT = "network"


def train_worker(config: dict[str, Any]) -> None:
    """One rank: build, train, and on rank 0 write the network."""
    began = time.perf_counter()
    spec = FinetuneJoint.model_validate(config["spec"])
    device = start_worker(spec.cluster)
    torch.manual_seed(spec.seed)  # every rank starts from the same weights
    backbone = Backbone.load(spec.backbone, device=device)
    clip = ClipFeatures.load(spec.method.object_encoder.clip, device=device)
    # Training changes the UNet in place, so what is needed of it as it was is taken first.
    base = {"path": backbone.path, "fingerprint": backbone.fingerprint()} if leads() else {}
    apart = apart_from(backbone, spec, clip) if leads() else None
    objective = TamingObjective(backbone, spec.method, clip)
    apply_engine_options(objective.parts.backbone, spec.engine)
    grid = TamingGrid(spec.grid, apart, spec.data.image_size) if spec.grid and apart else None
    state = train_rank(spec, objective, config["stream"], began=began, grid=grid, make_batch=collate_triplets)
    if apart is not None and state.step == spec.training.steps:
        _save(state, spec, apart, base)


def apart_from(backbone: Backbone, spec: FinetuneJoint, clip: ClipFeatures) -> TamingParts:
    """A second network that takes states of the first: for grids, and to be saved. Only what trains is copied."""
    unet = copy.deepcopy(backbone.unet) if spec.method.whole_network else backbone.unet
    return TamingParts.build(dataclasses.replace(backbone, unet=unet), spec.method, clip)


class TamingGrid:
    """Held-out subjects by one forward pass each, on a network apart from the one that trains."""

    def __init__(self, spec: GridSpec, parts: TamingParts, image_size: int) -> None:
        self.spec, self.parts = spec, parts
        rows = first_rows(spec, image_size)
        self.pictures = np.stack([row["image"] for row in rows])
        masks = np.stack([row["mask"] if row["has_mask"] else np.full_like(row["mask"], 255) for row in rows])
        objects = parts.embed(to_pixel_values(self.pictures), torch.from_numpy(masks)[:, None].float() / 255)
        self.objects = objects.repeat_interleave(len(spec.prompts), 0)
        self.prompts = list(spec.prompts) * len(rows)
        self.seeds = [spec.seed + row for row in range(len(rows)) for _ in spec.prompts]

    @torch.no_grad()
    def draw(self, state: Mapping[str, Tensor], path: Path) -> None:
        """Write the grid as a PNG: input, then a column for each prompt."""
        load_network_state(self.parts, state, path)
        drawn = sample_objects(self.parts, self.objects, self.prompts, self.spec.sampling, seeds=self.seeds)
        write_grid(self.pictures, drawn, path)


def _save(state: TrainingState, spec: FinetuneJoint, parts: TamingParts, base: Mapping[str, str]) -> None:
    provenance = {
        "run": spec.name, "steps": state.step, "samples": state.samples, "shards": list(spec.data.places),
        "weights": list(spec.data.weights), "triplets": spec.triplets.model_dump(mode="json"),
        "averaged": state.ema is not None,
    }  # fmt: skip
    folder = Path(spec.runs) / spec.name / RESULT
    save_network(folder, state.ema or state.parameters, parts, base, provenance=provenance)

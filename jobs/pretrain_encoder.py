"""One worker of `pretrain_encoder`, or the whole of it in this process: trains, and writes checkpoints and the encoder.

Its driver is in `imprint.jobs.cluster_jobs`.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from imprint.backbone import Backbone
from imprint.config.jobs.pretrain import PretrainEncoder
from imprint.features.clip import ClipFeatures
from imprint.jobs.pretrain_here import train_here
from imprint.jobs.ray_train import leads, start_worker, train_rank
from imprint.jobs.sample_grid import SampleGrid
from imprint.methods import METHODS
from imprint.methods.pretrained import find_encoder, load_state, save_encoder
from imprint.methods.pretraining import EncoderObjective
from imprint.training.apply import apply_engine_options
from imprint.training.checkpoint import TrainingState

RESULT = "encoder"


def run_here(spec: PretrainEncoder, source: str) -> None:
    """The whole job in this process, without Ray, MLflow and DeepSpeed; paths are absolute.

    Raises:
        DataError, ShardError: shards are missing or cut, or hold nothing.
        TrainingError: it was asked to stop before its last step, or the loss is not finite.
    """
    device = torch.device("cuda" if spec.cluster.gpus_per_worker else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(spec.cluster.threads_per_worker)
    backbone, clip, objective = build(spec, device)
    if spec.initialize_from:
        start_from(objective, spec.initialize_from)
    _save(train_here(spec, objective, source), spec, backbone, clip)


def train_worker(config: dict[str, Any]) -> None:
    """One rank: build, train, and on rank 0 write the encoder."""
    began = time.perf_counter()
    spec = PretrainEncoder.model_validate(config["spec"])
    device = start_worker(spec.cluster)
    backbone, clip, objective = build(spec, device)
    grid = SampleGrid(spec.grid, objective, spec.data.image_size) if spec.grid and leads() else None
    afresh = partial(start_from, objective, spec.initialize_from) if spec.initialize_from else None
    state = train_rank(spec, objective, config["stream"], began=began, grid=grid, afresh=afresh)
    if leads() and state.step == spec.training.steps:
        _save(state, spec, backbone, clip)


def build(spec: PretrainEncoder, device: torch.device) -> tuple[Backbone, ClipFeatures, EncoderObjective]:
    """Backbone, CLIP and objective; the same weights on every rank."""
    torch.manual_seed(spec.seed)
    backbone = Backbone.load(spec.backbone, device=device)
    clip = ClipFeatures.load(spec.method.encoder.clip, device=device)
    objective: EncoderObjective = METHODS[spec.method.method].pretrain(backbone, spec.method, clip)
    apply_engine_options(objective.parts.backbone, spec.engine)
    return backbone, clip, objective


def start_from(objective: EncoderObjective, encoder: str) -> None:
    """Begin with the weights of an encoder that was pretrained before.

    Raises:
        CheckpointError: there is none, or it belongs to another method, backbone, CLIP or architecture.
    """
    parts = objective.parts
    pretrained = METHODS[parts.spec.method].load_encoder(encoder, parts.backbone, clip=parts.clip).networks()
    source = find_encoder(encoder)
    for name, network in parts.networks().items():
        load_state(network, "", pretrained[name].state_dict() if name in pretrained else {}, source)
    objective.requires_grad_(True)


def _save(state: TrainingState, spec: PretrainEncoder, backbone: Backbone, clip: ClipFeatures) -> None:
    provenance = {
        "run": spec.name, "steps": state.step, "samples": state.samples, "shards": list(spec.data.places),
        "averaged": state.ema is not None,
    }  # fmt: skip
    weights = state.ema or state.parameters
    save_encoder(Path(spec.runs) / spec.name / RESULT, weights, spec.method, backbone, clip, provenance=provenance)

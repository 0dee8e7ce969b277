"""What a job would take on so many GPUs: memory, images/s, time, checkpoints; from shapes alone, nothing is run.

FLOPs are counted on the job's own objective (`imprint.training.flops`), the bytes of the state follow
`imprint.training.memory`, and images/s assume a share of the GPU's peak (MFU) that the caller names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from imprint.backbone import Backbone
from imprint.backbone.loading import EMBEDDED
from imprint.backbone.published import SHAPES, build_published
from imprint.config.base import Section
from imprint.config.jobs import DreamBooth, FinetuneJoint, PretrainEncoder, TrainBackbone
from imprint.config.jobs.cluster import ClusterJob
from imprint.config.paths import resolve_path
from imprint.config.training import EngineSpec
from imprint.errors import ConfigError
from imprint.features.clip import ClipFeatures
from imprint.features.clip_shapes import clip_of_shape, is_architecture
from imprint.methods import METHODS
from imprint.methods.dreambooth import Binding, DreamBoothObjective, make_trained
from imprint.methods.taming import TamingObjective
from imprint.objective import Batch, Objective
from imprint.training.flops import StepCost, count_step
from imprint.training.memory import FP32, StateBytes, checkpoint_bytes, module_bytes, state_bytes
from imprint.training.objectives.denoising import DenoisingObjective
from imprint.training.peaks import Gpu

GIB = 2**30
_COUNTED = 2  # pictures in the micro-batch that is counted; costs are linear in it
TrainingJob = PretrainEncoder | FinetuneJoint | DreamBooth | TrainBackbone


@dataclass(frozen=True)
class JobCost:
    """What a job's model is, whatever it runs on."""

    cost: StepCost
    trained: int
    frozen_bytes: int
    precision: str
    ema: bool

    def activation_bytes(self, micro_batch: int) -> float:
        """What the forward pass keeps, with bf16 autocast at two bytes an element; norms kept in fp32 come on top."""
        return self.cost.kept_elements * micro_batch * (2 if self.precision == "bf16" else 4)

    @property
    def checkpoint(self) -> int:
        return checkpoint_bytes(self.trained, ema=self.ema)


@dataclass(frozen=True)
class Row:
    """One number of workers."""

    workers: int
    micro_batch: int
    batch_size: int
    images_per_second: float
    hours: float


def job_cost(spec: Section) -> JobCost:
    """Build the job's objective without values and count a micro-batch.

    Raises:
        ConfigError: the job does not train, or its backbone is neither here nor of a known shape.
    """
    if not isinstance(spec, TrainingJob):
        raise ConfigError(f"planning: a {getattr(spec, 'job', type(spec).__name__)} job does not train on workers; "
                          "expected pretrain_encoder, finetune_joint, dreambooth or train_backbone")  # fmt: skip
    backbone = _backbone(spec)
    objective, clip = _objective(spec, backbone)
    if isinstance(objective, DreamBoothObjective):
        backbone = objective.backbone  # a shell: workers let go of the weights as they were
    size = spec.data.image_size if isinstance(spec, ClusterJob) else backbone.image_size
    cost = count_step(objective, _batch(spec, backbone, clip, size))
    held = {id(p) for p in objective.parameters()}
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    modules = [*backbone.modules(), *([clip.model.visual] if clip else [])]
    frozen = sum(p.numel() * p.element_size() for m in modules for p in m.parameters() if id(p) not in held)
    assert frozen <= module_bytes(modules)
    return JobCost(cost, trained, frozen, on_gpu(spec.engine), spec.training.ema is not None)


def plan_rows(spec: Section, job: JobCost, workers: Sequence[int], gpu: Gpu, mfu: float) -> list[Row]:
    """A row for each number of workers.

    Where the job's batch has no equal share for each, every worker keeps the share that it has on the job's own number
    of workers, and the run sees the same number of pictures in fewer steps.
    """
    training = spec.training  # type: ignore[attr-defined]
    own = spec.cluster.max_workers if isinstance(spec, ClusterJob) else 1
    micro = training.micro_batch_size(own)
    pictures = training.steps * training.batch_size
    rows = []
    for count in workers:
        share, rest = divmod(training.batch_size, count * training.gradient_accumulation)
        if rest or share == 0:
            share = micro
        speed = gpu.teraflops * 1e12 * mfu / job.cost.flops
        batch = share * count * training.gradient_accumulation
        rows.append(Row(count, share, batch, speed * count, pictures / (speed * count) / 3600))
    return rows


def on_gpu(engine: EngineSpec) -> str:
    """The precision on a GPU, where `auto` is bf16."""
    return "bf16" if engine.precision == "auto" else engine.precision


def stages(engine: EngineSpec) -> dict[str, EngineSpec]:
    """The engines that a plan compares, in the job's precision; DDP keeps fp32 weights in either."""
    kept = {"precision": on_gpu(engine)}
    return {
        "torch (DDP)": EngineSpec(**kept),
        **{f"ZeRO-{stage}": EngineSpec(name="deepspeed", zero_stage=stage, **kept) for stage in (1, 2, 3)},
        "ZeRO-3, offloaded": EngineSpec(name="deepspeed", zero_stage=3, offload="all", **kept),
    }  # type: ignore[arg-type]


def rank_bytes(job: JobCost, engine: EngineSpec, row: Row) -> tuple[StateBytes, float]:
    """The state on one rank, and all that its GPU holds: state, average, frozen models, activations."""
    state = state_bytes(job.trained, engine, row.workers)
    frozen = job.frozen_bytes / (2 if job.precision == "bf16" and engine.name == "deepspeed" else 1)
    average = 0.0
    if job.ema:
        average = FP32 * job.trained / (row.workers if engine.zero_stage else 1)
    return state, state.device + average + frozen + job.activation_bytes(row.micro_batch)


# -- the objective without values ---------------------------------------------------------------------------


def _backbone(spec: TrainingJob) -> Backbone:
    name = spec.initialize_from or "imprint-tiny" if isinstance(spec, TrainBackbone) else spec.backbone
    if name in SHAPES:
        return build_published(name, device="meta")
    place = resolve_path(name)
    if name in EMBEDDED or Path(place).exists():
        return Backbone.load(name if name in EMBEDDED else place, device="meta")
    raise ConfigError(
        f"planning: the backbone {name!r} is not on this machine; give its folder, or a shape such as "
        f"backbone=sd21-base (known: {', '.join(SHAPES)})"
    )


def _clip(name: str) -> ClipFeatures:
    if is_architecture(name):
        return clip_of_shape(name, device="meta")
    place = resolve_path(name)
    return ClipFeatures.load(place if Path(place).exists() else name, device="meta")


def _objective(spec: TrainingJob, backbone: Backbone) -> tuple[Objective, ClipFeatures | None]:
    if isinstance(spec, TrainBackbone):
        for module in (backbone.unet, *backbone.text_encoders):
            module.requires_grad_(True)
        return DenoisingObjective(backbone), None
    if isinstance(spec, DreamBooth):
        return _dreambooth(spec, backbone), None
    joint = isinstance(spec, FinetuneJoint)
    clip = _clip(spec.method.object_encoder.clip if joint else spec.method.encoder.clip)
    with torch.device("meta"):
        if joint:
            return TamingObjective(backbone, spec.method, clip), clip
        return METHODS[spec.method.method].pretrain(backbone, spec.method, clip), clip


def _dreambooth(spec: DreamBooth, backbone: Backbone) -> DreamBoothObjective:
    """With a class image in place of all of them: they stay in the machine's memory. Any words cost the same."""
    size, images = backbone.image_size, None
    if spec.method.prior.enabled:
        images = torch.empty(1, 3, size, size, dtype=torch.uint8, device="meta")
    with torch.device("meta"):
        trained = make_trained(backbone, spec.method, spec.seed)
    return DreamBoothObjective(trained, spec.method, Binding("a sks", spec.class_noun, images))


def _batch(spec: TrainingJob, backbone: Backbone, clip: ClipFeatures | None, size: int) -> Batch:
    """What the job's workers get: with features where the data plane computes them before."""

    def of(*shape: int) -> torch.Tensor:
        return torch.empty(_COUNTED, *shape, device="meta")

    channels, side = backbone.latent_shape[0], size // backbone.downsampling
    batch: dict[str, object] = {
        "pixel_values": of(3, size, size), "masks": of(1, size, size), "captions": ["a picture"] * _COUNTED,
        "contexts": [""] * _COUNTED, "keys": [str(number) for number in range(_COUNTED)],
        "object_values": of(3, size, size), "object_masks": of(1, size, size),
        "is_domain": of().bool(),
    }  # fmt: skip
    precomputed = isinstance(spec, TrainBackbone) or spec.data.precompute.source != "trainer"
    if precomputed:
        batch |= {name: of(channels, side, side) for name in ("latent_mean", "latent_std", "latent_logvar")}
        if clip is not None:
            batch["clip_layers"] = of(len(clip.layer_indices), clip.width)
    return batch  # type: ignore[return-value]

"""The sections that every training job shares: optimisation, engine, checkpoints, cluster, tracking."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from imprint.config.base import Section

TimestepLogits = Annotated[
    tuple[float, float] | None,
    Field(description="mean and deviation of a logit-normal density of t / T (arXiv:2403.03206); null: uniform"),
]


class OptimizerSpec(Section):
    """AdamW and its schedule."""

    learning_rate: float = Field(1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.01, ge=0)
    epsilon: float = Field(1e-8, gt=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    final_ratio: float = Field(0.0, ge=0, le=1, description="learning rate at the end, as a share of the peak")
    clip_norm: float | None = Field(1.0, gt=0, description="clip the global gradient norm to this; null: never")


class EmaSpec(Section):
    """Exponential moving average of what trains; decay(step) = min(decay, (1 + step) / (10 + step))."""

    decay: float = Field(0.999, ge=0, lt=1)


class TrainingSpec(Section):
    """How long and on how much."""

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0, description="pictures in one optimizer step, over all workers")
    gradient_accumulation: int = Field(1, gt=0, description="forward passes in one optimizer step, on each worker")
    optimizer: OptimizerSpec = OptimizerSpec()
    ema: EmaSpec | None = None
    log_every: int = Field(10, gt=0)

    def micro_batch_size(self, workers: int) -> int:
        """Pictures in one forward pass on one worker.

        Raises:
            ValueError: the batch does not divide.
        """
        size, rest = divmod(self.batch_size, workers * self.gradient_accumulation)
        if rest:
            raise ValueError(
                f"training.batch_size={self.batch_size} does not divide by {workers} workers x "
                f"gradient_accumulation={self.gradient_accumulation}"
            )
        return size


class EngineSpec(Section):
    """What carries out backward and step: plain torch, or DeepSpeed with a ZeRO stage."""

    name: Literal["torch", "deepspeed"] = "torch"
    zero_stage: Literal[0, 1, 2, 3] = 0
    precision: Literal["fp32", "bf16"] = "fp32"

    @model_validator(mode="after")
    def _zero_needs_deepspeed(self) -> EngineSpec:
        if self.zero_stage and self.name != "deepspeed":
            raise ValueError(f"zero_stage={self.zero_stage} needs name: deepspeed; got name: {self.name}")
        return self


class CheckpointSpec(Section):
    """When the state of a run is written, and how much of it is kept."""

    every: int = Field(100, gt=0, description="steps between two checkpoints")
    keep: int = Field(2, gt=0, description="newest checkpoints that stay on disk")


class ClusterSpec(Section):
    """Workers of Ray Train and what each one takes."""

    workers: int = Field(2, gt=0)
    cpus_per_worker: float = Field(0.5, ge=0)
    gpus_per_worker: float = Field(0, ge=0)
    threads_per_worker: int = Field(1, gt=0, description="torch threads on a worker without a GPU")
    max_failures: int = Field(3, ge=-1, description="worker groups that may be lost before the run fails; -1: any")


class TrackingSpec(Section):
    """Where MLflow keeps the run."""

    enabled: bool = True
    uri: str | None = Field(None, description="MLflow tracking URI; null: a SQLite file beside the runs")
    experiment: str = "imprint"
    system_metrics: bool = True

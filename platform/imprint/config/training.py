"""The sections that every training job shares: optimisation, engine, checkpoints, cluster, tracking."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from imprint.config.base import Section

OffsetNoise = Annotated[
    float, Field(ge=0, description="share of noise with one value for a whole channel, which teaches dark and bright")
]
MinSnrGamma = Annotated[
    float | None, Field(gt=0, description="min-SNR weighting of the loss (arXiv:2303.09556); null: none")
]
TimestepLogits = Annotated[
    tuple[float, float] | None,
    Field(description="mean and deviation of a logit-normal density of t / T (arXiv:2403.03206); null: uniform"),
]


Precision = Literal["auto", "fp32", "bf16"]
"""What products are computed in; `auto` is bf16 where the device has arithmetic for it, and fp32 elsewhere."""


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
    max_skipped_steps: int = Field(
        5, ge=0, description="steps with a gradient that is not finite which may be left out before the run stops"
    )

    def on_workers(self, workers: int, most: int) -> TrainingSpec:
        """The same batch on `workers` of at most `most`: as many more passes as there are fewer workers.

        A pass keeps its number of pictures where that divides; it never gets more. `gradient_accumulation` is for
        `most`.

        Raises:
            ValueError: the batch does not divide by the number of workers.
        """
        if self.batch_size % workers:
            raise ValueError(
                f"training.batch_size={self.batch_size} does not divide by {workers} workers; choose a batch that "
                "divides by every number of workers that cluster.workers allows"
            )
        passes = -(-most * self.gradient_accumulation // workers)
        while self.batch_size % (workers * passes):
            passes += 1
        return self.model_copy(update={"gradient_accumulation": passes})

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
    precision: Precision = Field(
        "fp32",
        description="auto: bf16 where the device has arithmetic for it, else fp32, as imitated bf16 is very slow",
    )
    weights: Literal["fp32", "bf16"] = Field(
        "fp32", description="name: torch: what the network computes with; bf16 keeps fp32 copies in the optimizer"
    )
    offload: Literal["none", "optimizer", "all"] = Field(
        "none", description="keep AdamW's state (with all: the parameters as well) in the machine's memory"
    )

    activation_checkpointing: bool = Field(False, description="less memory for a third more computing")
    channels_last: bool = Field(False, description="the UNet's weights with channels innermost")
    compile: Literal["none", "blocks", "whole"] = Field("none", description="torch.compile of the UNet, or its blocks")

    @model_validator(mode="after")
    def _zero_needs_deepspeed(self) -> EngineSpec:
        if self.zero_stage and self.name != "deepspeed":
            raise ValueError(f"zero_stage={self.zero_stage} needs name: deepspeed; got name: {self.name}")
        if self.weights == "bf16" and (self.name, self.precision) != ("torch", "bf16"):
            raise ValueError("weights=bf16 needs name: torch and precision: bf16; deepspeed's bf16 keeps such weights")
        needed = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        if self.zero_stage < needed:
            raise ValueError(f"offload={self.offload} needs zero_stage: {needed} or more; got {self.zero_stage}")
        return self


class CheckpointSpec(Section):
    """When the state of a run is written, and how much of it is kept."""

    every: int = Field(100, gt=0, description="steps between two checkpoints")
    keep: int = Field(2, gt=0, description="newest checkpoints that stay on disk")
    keep_best: bool = Field(False, description="keep the one with the least loss since the one before as well")
    asynchronous: bool = Field(True, description="write in a thread; training waits for the copy in memory only")


class ClusterSpec(Section):
    """Workers of Ray Train and what each one takes."""

    workers: Annotated[int, Field(gt=0)] | tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] = Field(
        2, description="one number, or [least, most]: as many as there is room for, also after some were lost"
    )
    resize_interval_s: float = Field(
        60, gt=0, description="with [least, most]: how often it is looked whether there is room for more"
    )
    cpus_per_worker: float = Field(0.5, ge=0)
    gpus_per_worker: float = Field(0, ge=0)
    threads_per_worker: int = Field(1, gt=0, description="torch threads on a worker without a GPU")
    hang_timeout_s: float | None = Field(
        900, gt=0, description="a worker that takes longer for a step ends itself, and all start again; null: never"
    )
    max_failures: int = Field(3, ge=-1, description="worker groups that may be lost before the run fails; -1: any")

    @model_validator(mode="after")
    def _least_before_most(self) -> ClusterSpec:
        if self.min_workers > self.max_workers:
            raise ValueError(f"workers={[self.min_workers, self.max_workers]}: expected [least, most]")
        return self

    @property
    def min_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class TrackingSpec(Section):
    """Where MLflow keeps the run."""

    enabled: bool = True
    uri: str | None = Field(None, description="MLflow tracking URI; null: a SQLite file beside the runs")
    experiment: str = "imprint"
    system_metrics: bool = True

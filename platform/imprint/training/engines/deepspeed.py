"""The DeepSpeed engine: ZeRO stages 0 to 3 behind the same few calls as the plain engine.

Checkpoints are those of every engine: whole fp32 parameters and AdamW moments by parameter name, gathered from the
ranks, so a run may go on with another stage, another engine or another number of workers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from imprint.backbone.precision import computing
from imprint.config.training import EngineSpec, OptimizerSpec
from imprint.errors import CheckpointError, TrainingError
from imprint.objective import Batch, Objective, StepOutput
from imprint.training.engines.torch import skip_unless_finite

log = logging.getLogger(__name__)
_MOMENTS = ("exp_avg", "exp_avg_sq")
_BUCKET = 50_000_000  # elements that are reduced at once: DeepSpeed's default of ten times that takes 2 GB of its own


class DeepSpeedEngine:
    """One rank of a DeepSpeed run; torch.distributed must be up, also for one rank.

    DeepSpeed takes the objective apart when it starts (stage 3 leaves each rank a part of every parameter), so it
    starts at the first use and `load` must come before that.
    """

    def __init__(
        self, objective: Objective, engine: EngineSpec, optimizer: OptimizerSpec, *, accumulation: int = 1
    ) -> None:
        if not dist.is_initialized():
            raise TrainingError("starting DeepSpeed: torch.distributed is not up; start it first (gloo or nccl)")
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.objective, self.spec, self.optimizer_spec = objective, engine, optimizer
        self.accumulation = accumulation
        self.named = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        self._shapes = {name: p.shape for name, p in self.named.items()}
        self._device = next(iter(self.named.values())).device
        self._backwards = 0
        self._started: Any = None

    # -- a step ---------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        """Forward pass; in bf16 also under autocast, since frozen parts and inputs may be fp32."""
        engine = self._engine()
        with computing(self.spec.precision, self._device):
            loss, metrics, *by_timestep = engine(batch, generator)
        return StepOutput(loss, metrics, tuple(by_timestep) or None)

    def backward(self, loss: Tensor, accumulation: int) -> None:
        """Accumulate; DeepSpeed divides by the number of accumulated passes itself."""
        engine = self._engine()
        engine.backward(loss)
        self._backwards += 1
        if self._backwards < accumulation:
            engine.step()  # counts the pass; parameters change at the last one only

    def step(self, learning_rate: float) -> Tensor:
        """Clip, update, clear; the gradient norm before clipping."""
        engine = self._engine()
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]
        norm = self._plain_norm() if self._is_plain else None
        if norm is not None:
            skip_unless_finite(engine.optimizer, norm)
        engine.step()
        self._backwards = 0
        return torch.as_tensor(engine.get_global_grad_norm() or 0.0) if norm is None else norm

    def mean(self, values: Tensor) -> Tensor:
        values = values.to(self._device)  # nccl takes tensors of its GPU only
        dist.all_reduce(values)
        return values / self.world_size

    # -- state ----------------------------------------------------------------------------------------------

    def parameters(self) -> dict[str, Tensor]:
        """What trains, whole, in fp32: the master weights in bf16 runs. Every rank must call it."""
        from deepspeed.utils import safe_get_full_fp32_param

        self._engine()
        if self._is_plain:
            return {name: p.detach() for name, p in self.named.items()}
        return {name: safe_get_full_fp32_param(p).detach() for name, p in self.named.items()}

    def optimizer_state(self) -> dict[str, Tensor]:
        """AdamW's moments, whole, as `<moment>/<parameter>`. Every rank must call it."""
        from deepspeed.utils import safe_get_full_optimizer_state

        engine = self._engine()
        state: dict[str, Tensor] = {}
        if self._is_plain:
            for name, p in self.named.items():
                for moment, value in engine.optimizer.state.get(p, {}).items():
                    state[f"{moment}/{name}"] = torch.as_tensor(value).detach()
            return state
        flat = self._flat_states()
        if not flat:
            return state
        self._link_moments()
        step = max(torch.as_tensor(moments["step"]).float() for moments in flat)
        for name, p in self.named.items():
            state[f"step/{name}"] = step.clone()
            for moment in _MOMENTS:
                state[f"{moment}/{name}"] = safe_get_full_optimizer_state(p, moment).detach()
        return state

    def master(self) -> dict[str, Tensor]:
        """This rank's partitions in fp32, flat: an average over them takes 1/n of the memory and no communication."""
        self._engine()
        if self._is_plain:
            return {name: p.detach() for name, p in self.named.items()}
        return {f"flat/{number}": flat.detach() for number, flat in enumerate(self._flat_parameters())}

    @torch.no_grad()
    def whole(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gathered by DeepSpeed as the master weights are, in whose place the parts stand meanwhile."""
        if self._is_plain:
            return dict(parts)
        with self._masters_kept() as masters:
            for name, flat in masters.items():
                flat.copy_(parts[name])
            return {name: value.clone() for name, value in self.parameters().items()}

    @torch.no_grad()
    def parts(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        self._engine()
        if self._is_plain:
            return {name: whole[name].to(p.device, torch.float32, copy=True) for name, p in self.named.items()}
        with self._masters_kept() as masters:
            for name, p in self.named.items():
                value = whole[name].to(self._device, torch.float32)
                if self.spec.zero_stage < 3:
                    safe_set_full_fp32_param(p, value)
                else:
                    safe_set_local_fp32_param(p, self._own_part(p, value))
            return {name: flat.clone() for name, flat in masters.items()}

    @contextmanager
    def _masters_kept(self) -> Iterator[dict[str, Tensor]]:
        """The master partitions, which are put back as they were at the end."""
        masters = self.master()
        before = {name: flat.clone() for name, flat in masters.items()}
        try:
            yield masters
        finally:
            for name, flat in masters.items():
                flat.copy_(before[name])

    def load(self, parameters: dict[str, Tensor], optimizer_state: dict[str, Tensor]) -> None:
        """Put a saved state back, before the first step.

        Raises:
            TrainingError: DeepSpeed has started already.
            CheckpointError: a parameter is missing, or of another shape.
        """
        if self._started is not None:
            raise TrainingError("loading a state into DeepSpeed: training has begun; load before the first step")
        with torch.no_grad():
            for name, p in self.named.items():
                saved = parameters.get(name)
                if saved is None or saved.shape != p.shape:
                    got = "nothing" if saved is None else f"shape {tuple(saved.shape)}"
                    raise CheckpointError(
                        f"loading parameter {name}: got {got}, expected shape {tuple(p.shape)}; "
                        "the job's model differs from the one that was saved"
                    )
                p.copy_(saved)
        self._engine()
        if not self._is_plain:  # in bf16 DeepSpeed makes its master weights of the rounded ones
            exact = self.parts(parameters)
            for name, flat in self.master().items():
                flat.copy_(exact[name])
        if optimizer_state:
            self._load_moments(optimizer_state)

    # -- DeepSpeed's inside ---------------------------------------------------------------------------------

    @property
    def _is_plain(self) -> bool:
        """Stage 0 in fp32: DeepSpeed keeps the optimizer as it is."""
        return self.spec.zero_stage == 0 and self.spec.precision == "fp32"

    def _engine(self) -> Any:
        if self._started is None:
            self._started = _start(self.objective, self.spec, self.optimizer_spec, self.accumulation)
        return self._started

    def _plain_norm(self) -> Tensor:
        gradients = [p.grad for p in self.named.values() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients, foreach=True).detach()

    def _flat_parameters(self) -> list[Tensor]:
        """The fp32 partitions of this rank that AdamW steps on."""
        zero = self._engine().optimizer
        for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
            if hasattr(zero, name):  # stage 3; stages 1 and 2; stage 0 in bf16
                return list(getattr(zero, name))
        raise TrainingError(f"reading DeepSpeed's optimizer: {type(zero).__name__} is not known; use deepspeed 0.19")

    def _flat_states(self) -> list[dict[str, Tensor]]:
        inner = self._engine().optimizer.optimizer
        return [inner.state[p] for p in self._flat_parameters() if inner.state.get(p)]

    def _link_moments(self) -> None:
        """Stages 1 and 2 map moments to parameters once, after the first parameter group's first step, when the other
        groups have none yet (DeepSpeed 0.19.8, `_optimizer_step`): so do it again."""
        if self.spec.zero_stage < 3:
            zero = self._engine().optimizer
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()

    def _load_moments(self, saved: dict[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        engine = self._engine()
        missing = [name for name in self.named if f"step/{name}" not in saved]
        if missing:
            raise CheckpointError(f"loading the optimizer: no moments of {missing[0]} and {len(missing) - 1} more")
        if self._is_plain:
            for name, p in self.named.items():
                engine.optimizer.state[p] = {
                    moment: saved[f"{moment}/{name}"].to(p.device).clone() for moment in ("step", *_MOMENTS)
                }
            return
        step = max(value for key, value in saved.items() if key.startswith("step/"))
        inner = engine.optimizer.optimizer
        for p in self._flat_parameters():
            inner.state[p] = {
                "step": step.to(p.device, torch.float32).clone(), **{m: torch.zeros_like(p) for m in _MOMENTS}
            }  # fmt: skip
        self._link_moments()
        for name, p in self.named.items():
            for moment in _MOMENTS:
                value = saved[f"{moment}/{name}"].to(self._device, torch.float32)
                if self.spec.zero_stage < 3:
                    safe_set_full_optimizer_state(p, value, moment)
                else:
                    safe_set_local_optimizer_state(p, self._own_part(p, value), moment)

    def _own_part(self, p: Tensor, value: Tensor) -> Tensor:
        """This rank's piece of a whole tensor, padded as stage 3 pads it."""
        size = p.ds_tensor.numel()
        padded = torch.zeros(size * self.world_size, dtype=value.dtype, device=value.device)
        padded[: value.numel()] = value.flatten()
        return padded[self.rank * size : (self.rank + 1) * size]


class _LossAndMetrics(nn.Module):
    """The objective with a tuple for its output: DeepSpeed's hooks look for tensors in tuples and dicts only."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Any, ...]:
        output = self.objective(batch, generator)
        return output.loss, output.metrics, *(output.by_timestep or ())


def _start(objective: Objective, spec: EngineSpec, optimizer: OptimizerSpec, accumulation: int) -> Any:
    device = next(objective.parameters()).device
    on_cpu = device.type == "cpu"
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))  # torchrun and Ray Train set it
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if on_cpu:
        # Starting its communication compiles an op, half a minute, that only tensor-parallel inference calls.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    groups = objective.parameter_groups()
    adamw = torch.optim.AdamW(
        groups, lr=optimizer.learning_rate, betas=optimizer.betas, eps=optimizer.epsilon,
        weight_decay=optimizer.weight_decay, fused=True,
    )  # fmt: skip
    engine, *_ = deepspeed.initialize(
        model=_LossAndMetrics(objective), optimizer=adamw, dist_init_required=False,
        config=_config(spec, optimizer, accumulation, sum(p.numel() for group in groups for p in group["params"])),
    )  # fmt: skip
    _leave_out_steps_that_are_not_finite(engine, adamw, spec)
    return engine


def _leave_out_steps_that_are_not_finite(engine: Any, adamw: torch.optim.Optimizer, spec: EngineSpec) -> None:
    """DeepSpeed 0.19 looks for gradients that are not finite in fp16, and in bf16 below stage 3 only."""
    zero = engine.optimizer
    if spec.zero_stage == 3:

        def check(update_scale: bool = True) -> bool:
            zero.overflow = False
            zero.check_overflow()
            return zero._loss_scale_update_and_overflow_cleanup() if update_scale else zero.overflow

        zero._overflow_check_and_loss_scale_update = check
    elif spec.zero_stage:
        zero.check_grad_overflow = True


def _config(spec: EngineSpec, optimizer: OptimizerSpec, accumulation: int, trained: int) -> dict[str, Any]:
    """DeepSpeed's own config. The loop knows the batch; 1 here only satisfies DeepSpeed's arithmetic."""
    bucket = min(_BUCKET, trained + trained % 2)  # stages 1 and 2 take even ones only
    zero: dict[str, Any] = {
        "stage": spec.zero_stage, "overlap_comm": False, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket,
    }  # fmt: skip
    memory = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if spec.offload != "none":
        zero["offload_optimizer"] = memory
    if spec.offload == "all":
        zero["offload_param"] = memory
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": optimizer.clip_norm or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW is vectorised on CPUs as well
        "bf16": {"enabled": spec.precision == "bf16"},
        "steps_per_print": 1_000_000_000,
    }

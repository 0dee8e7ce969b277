"""The plain engine: torch autograd and AdamW, gradients averaged over ranks where there are several."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from imprint.backbone.precision import computing
from imprint.config.training import EngineSpec, OptimizerSpec
from imprint.errors import CheckpointError
from imprint.training.batches import Batch
from imprint.training.objective import Objective, StepOutput


class TorchEngine:
    """One process, or several under torch.distributed (gradients are all-reduced once a step)."""

    def __init__(self, objective: Objective, engine: EngineSpec, optimizer: OptimizerSpec) -> None:
        self.objective = objective
        self.clip_norm = optimizer.clip_norm
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.named = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        self.device = next(iter(self.named.values())).device
        self.precision = engine.precision
        self.optimizer = torch.optim.AdamW(
            objective.parameter_groups(), lr=optimizer.learning_rate, betas=optimizer.betas, eps=optimizer.epsilon,
            weight_decay=optimizer.weight_decay, fused=True,
        )  # fmt: skip

    def forward(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        """Forward pass, under bf16 autocast where the engine's precision says so (weights stay fp32)."""
        with computing(self.precision, self.device):
            return self.objective(batch, generator)

    def backward(self, loss: Tensor, accumulation: int) -> None:
        (loss / accumulation).backward()

    def step(self, learning_rate: float) -> Tensor:
        gradients = [p.grad for p in self.named.values() if p.grad is not None]
        if self.world_size > 1:
            self._all_reduce()
        if self.clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.named.values(), self.clip_norm, foreach=True)
        else:
            norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm.detach()

    def _all_reduce(self) -> None:
        """One collective for all gradients: a parameter unused on one rank counts as a zero gradient there."""
        for p in self.named.values():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = torch.cat([p.grad.flatten() for p in self.named.values()])
        dist.all_reduce(flat)
        flat /= self.world_size
        offset = 0
        for p in self.named.values():
            p.grad.copy_(flat[offset : offset + p.numel()].view_as(p))
            offset += p.numel()

    def parameters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.named.items()}

    def optimizer_state(self) -> dict[str, Tensor]:
        state = {}
        for name, p in self.named.items():
            for moment, value in self.optimizer.state.get(p, {}).items():
                state[f"{moment}/{name}"] = torch.as_tensor(value).detach()
        return state

    def load(self, parameters: dict[str, Tensor], optimizer_state: dict[str, Tensor]) -> None:
        """Put a saved state back.

        Raises:
            CheckpointError: a parameter is missing, or of another shape.
        """
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
        for name, p in self.named.items():
            moments = {
                key.partition("/")[0]: value.clone()
                for key, value in optimizer_state.items()
                if key.partition("/")[2] == name
            }
            if moments:
                self.optimizer.state[p] = {
                    moment: value if moment == "step" else value.to(p.device, p.dtype)
                    for moment, value in moments.items()
                }

    def mean(self, values: Tensor) -> Tensor:
        if self.world_size > 1:
            dist.all_reduce(values)
            values = values / self.world_size
        return values

"""What a run reports of itself, without a device sync at each step."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

TIMESTEP_BINS = 4


@dataclass
class Meter:
    """Sums since the last report: losses, seconds waited for data and for checkpoints, pictures seen.

    Sums stay on the device. A value that is not finite counts as none, so that one bad step does not hide the others.
    """

    total_steps: int
    workers: int = 1
    flops_per_image: float | None = None
    peak_flops: float | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _counts: dict[str, Tensor] = field(default_factory=dict)
    _waited: float = 0.0
    _blocked: float = 0.0
    _samples: int = 0
    _since: float = field(default_factory=time.perf_counter)
    _steps: int = 0

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add detached scalars; they stay on their device until `report`."""
        for name, value in metrics.items():
            value = value.detach().float()
            finite = value.isfinite()
            self._add(name, torch.where(finite, value, 0), finite.float())

    def add_by_timestep(self, places: Float[Tensor, "b"], errors: Float[Tensor, "b"]) -> None:
        """Squared errors by where in the schedule their timesteps lie, in [0, 1)."""
        bins = (places * TIMESTEP_BINS).long().clamp(0, TIMESTEP_BINS - 1)
        finite = errors.isfinite()
        zeros = torch.zeros(TIMESTEP_BINS, device=errors.device)
        sums = zeros.index_add(0, bins, torch.where(finite, errors, 0).float())
        self._add("loss_by_timestep", sums, zeros.index_add(0, bins, finite.float()))

    def _add(self, name: str, value: Tensor, count: Tensor) -> None:
        if name in self._sums:
            self._sums[name] = self._sums[name] + value
            self._counts[name] = self._counts[name] + count
        else:
            self._sums[name], self._counts[name] = value, count

    def waited(self, seconds: float) -> None:
        """Seconds spent waiting for the next batch."""
        self._waited += seconds

    def blocked(self, seconds: float) -> None:
        """Seconds that training stood still for a checkpoint."""
        self._blocked += seconds

    @property
    def steps(self) -> int:
        """Steps since the last report."""
        return self._steps

    def stepped(self, samples: int) -> None:
        """One optimizer step over `samples` pictures (all ranks)."""
        self._samples += samples
        self._steps += 1

    def report(self, step: int) -> dict[str, float]:
        """Means since the last report: every metric, speed, shares of time, memory of this process, ETA.

        A metric without a finite value is NaN. `mfu` is there where the GPU's peak is known, `teraflops` (a worker's)
        where FLOPs were counted.
        """
        sums = {name: (total / self._counts[name]).tolist() for name, total in self._sums.items()}
        seconds = max(time.perf_counter() - self._since, 1e-9)  # after the one sync above
        record: dict[str, float] = {}
        for name, value in sums.items():
            if isinstance(value, list):
                edges = range(len(value))
                record |= {
                    f"{name}/{100 * e // len(value)}-{100 * (e + 1) // len(value)}": value[e]
                    for e in edges
                }  # fmt: skip
            else:
                record[name] = value
        step_seconds = seconds / max(1, self._steps)
        record |= {
            "images_per_second": self._samples / seconds,
            "images_per_second_per_worker": self._samples / seconds / self.workers,
            "step_seconds": step_seconds,
            "data_wait_share": self._waited / seconds,
            "checkpoint_blocked_seconds": self._blocked,
            "memory_gb": self._memory() / 1e9,
            "eta_seconds": step_seconds * (self.total_steps - step),
        }
        if self.flops_per_image is not None:
            achieved = self.flops_per_image * self._samples / seconds / self.workers
            record["teraflops"] = achieved / 1e12
            if self.peak_flops is not None:
                record["mfu"] = achieved / self.peak_flops
        self._sums, self._counts = {}, {}
        self._waited, self._blocked, self._samples, self._steps = 0.0, 0.0, 0, 0
        self._since = time.perf_counter()
        return record

    def _memory(self) -> float:
        """Peak bytes: on a GPU of what torch holds there, else of the process."""
        if self.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.device))
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

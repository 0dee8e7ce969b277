"""What a run reports of itself, without a device sync at each step."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Meter:
    """Sums since the last report: losses, seconds waited for data, pictures seen."""

    total_steps: int
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)
    _waited: float = 0.0
    _samples: int = 0
    _since: float = field(default_factory=time.perf_counter)
    _steps: int = 0

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add detached scalars; they stay on their device until `report`."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=value.device)) + value.detach().float()
            self._counts[name] = self._counts.get(name, 0) + 1

    def waited(self, seconds: float) -> None:
        """Seconds spent waiting for the next batch."""
        self._waited += seconds

    def stepped(self, samples: int) -> None:
        """One optimizer step over `samples` pictures (all ranks)."""
        self._samples += samples
        self._steps += 1

    def report(self, step: int) -> dict[str, float]:
        """Means since the last report: every metric, images_per_second, step_seconds, data_wait_share, eta_seconds."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        record = {name: float(total / self._counts[name]) for name, total in self._sums.items()}
        step_seconds = seconds / max(1, self._steps)
        record |= {
            "images_per_second": self._samples / seconds,
            "step_seconds": step_seconds,
            "data_wait_share": self._waited / seconds,
            "eta_seconds": step_seconds * (self.total_steps - step),
        }
        self._sums, self._counts = {}, {}
        self._waited, self._samples, self._steps = 0.0, 0, 0
        self._since = time.perf_counter()
        return record

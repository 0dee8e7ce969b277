"""What personalizing one concept costs: seconds, and memory beyond what was held before."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from imprint.training.heap import give_back_freed_memory

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MIB = 1 << 20


@dataclass
class Cost:
    """Filled when the block ends. `memory_mib` is the peak above the start: of the GPU's allocator where there is a
    GPU, else of the process; None where the system does not say."""

    seconds: float = 0.0
    memory_mib: float | None = None


@contextmanager
def measured(device: torch.device) -> Iterator[Cost]:
    """Measure a block; work that a GPU was given is waited for."""
    cost = Cost()
    before = _start(device)
    began = time.perf_counter()
    try:
        yield cost
    finally:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        cost.seconds = time.perf_counter() - began
        peak = _peak(device)
        cost.memory_mib = None if before is None or peak is None else max(0.0, (peak - before) / MIB)


def _start(device: torch.device) -> int | None:
    """What is held now, with the peak set back to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    give_back_freed_memory()  # else the second block finds what the first one freed, and seems to need nothing
    try:
        _CLEAR.write_text("5")  # proc(5): resets the peak resident set size
    except OSError:
        return None
    return _status("VmRSS")


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(key: str) -> int | None:
    """Bytes of a line of /proc/self/status, which has kB."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:")), None)

"""What the programs for GPUs share: the device, peak memory, time, and tables; a CPU serves for tests."""

from __future__ import annotations

import argparse
import gc
import json
import platform
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from imprint.training.peaks import peak_flops


def device_options(parser: argparse.ArgumentParser) -> None:
    """Options that every program has."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--reduced", action="store_true", help="the same classes a few channels wide, for tests")
    parser.add_argument("--json", type=Path, help="where the numbers go")


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.machine(),
        "peak_teraflops": (peak_flops(device) or 0) / 1e12 or None,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda},
    }


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device, *, warm: int, times: int) -> float:
    """Mean seconds of `work`, after `warm` calls that do not count."""
    for _ in range(warm):
        work()
    synchronize(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    synchronize(device)
    return (time.perf_counter() - began) / times


def clear_memory(device: torch.device) -> None:
    """Begin a new peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float:
    """Largest memory since `clear_memory`, GB; on a CPU the largest that the process ever had."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def attempt(measure: Callable[[], dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """A row, or one that says that memory ran out."""
    clear_memory(device)
    try:
        return measure()
    except torch.cuda.OutOfMemoryError:
        return {"error": "out of memory"}
    finally:
        clear_memory(device)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as Markdown; numbers of three digits."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    lines += [f"| {' | '.join(_cell(row.get(name)) for name in names)} |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:.0f}" if isinstance(
        value, float
    ) else str(value)  # fmt: skip


def finish(result: dict[str, Any], target: Path | None) -> None:
    """Print the tables and write the JSON."""
    told = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items() if version)
    print(f"\n{told['device']} ({versions})\n")
    print(table(result["rows"]), flush=True)
    if target is not None:
        target.write_text(json.dumps(result, indent=1) + "\n")

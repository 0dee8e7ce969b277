"""CPU time and peak memory of this process and of the workers that it started, from /proc."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import psutil

_INTERVAL = 0.02  # seconds between two looks at private memory; the peak of resident memory is the kernel's own


class CpuMeter:
    """CPU seconds since it was made: of this process, and of all processes below it."""

    def __init__(self) -> None:
        self._own, self._others = _cpu()

    def read(self) -> tuple[float, float]:
        own, others = _cpu()
        return own - self._own, sum(others[pid] - self._others.get(pid, 0.0) for pid in others)


class MemoryWatch:
    """The largest memory that any one worker had while the block ran, in MB.

    `resident_mb` is the kernel's VmHWM: it has a worker's pages of Ray's shared object store in it as well.
    `private_mb` is the peak of RssAnon, what the worker alone holds.
    """

    def __init__(self) -> None:
        self.resident_mb = self.private_mb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        workers: list[int] = []
        looks = 0
        while not self._stop.wait(_INTERVAL):
            if looks % 10 == 0:
                workers = [process.pid for process in psutil.Process().children(recursive=True) if _is_worker(process)]
            looks += 1
            for pid in workers:
                status = _status(pid)
                self.resident_mb = max(self.resident_mb, status.get("VmHWM", 0.0))
                self.private_mb = max(self.private_mb, status.get("RssAnon", 0.0))


def _is_worker(process: psutil.Process) -> bool:
    """A Ray worker, or a process of a DataLoader; Ray's own daemons are neither."""
    try:
        name = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return name.startswith("ray::") or "data_readers.py" in name


def _status(pid: int) -> dict[str, float]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if line.startswith(("VmHWM", "RssAnon")))
    return {name: int(value.split()[0]) / 1000 for name, value in pairs}


def _cpu() -> tuple[float, dict[int, float]]:
    me = psutil.Process()
    others: dict[int, float] = {}
    for process in me.children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        others[process.pid] = times.user + times.system
    own = me.cpu_times()
    return own.user + own.system, others

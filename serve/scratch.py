"""Folders for libraries that want files: in memory, and gone with the block."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MEMORY = Path("/dev/shm")
_PREFIX = "imprint-serve-"


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory, readable by this user alone."""
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=MEMORY if MEMORY.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_left_over(root: Path = MEMORY) -> None:
    """Remove the folders of processes that died before they could."""
    for folder in root.glob(f"{_PREFIX}*"):
        with suppress(ValueError, OSError):
            owner = int(folder.name.removeprefix(_PREFIX).split("-")[0])
            if not Path(f"/proc/{owner}").exists():
                shutil.rmtree(folder, ignore_errors=True)

"""The C library's heap, on processors."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h."""


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed for the next step, in place of giving it back to the system and asking for it anew.

    Without, each step of training faults in most of its activations again, page by page: with `imprint-tiny` and 16
    pictures in fp32 35 thousand faults a step, and 6 to 15 % of its time. The process stays as large as its largest
    step was. False where the C library is another one, and nothing is changed.
    """
    try:
        change = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(change(_MMAP_THRESHOLD, 31 << 20)) and bool(change(_TRIM_THRESHOLD, 2**31 - 1))


def give_back_freed_memory() -> None:
    """Have glibc give what is freed back to the system once, so that what is held now can be measured."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return

"""The data plane. `read_webdataset` is loaded when it is asked for: it needs Ray, and shards can be read without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imprint.pipelines.reader import read_webdataset

__all__ = ["read_webdataset"]


def __getattr__(name: str) -> Any:
    if name == "read_webdataset":
        from imprint.pipelines.reader import read_webdataset

        return read_webdataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The exception tree. Every error that Imprint raises on purpose is one of these.

    ImprintError
    ├── ConfigError          a job file, an option or an override is wrong          (exit code 2)
    ├── BackboneError        a backbone cannot be loaded, or lacks what a method needs
    ├── DataError            shards, manifests, samples
    │   ├── ShardError       a whole shard is missing, cut or unreadable
    │   └── SampleError      one sample is bad
    ├── ConceptError         a saved concept cannot be read, or belongs to another backbone
    ├── CheckpointError      a checkpoint is missing, cut or of another shape
    ├── StorageError         no space left, no permission
    └── TrainingError        training cannot go on (loss is not finite, a worker was lost)

A message says what was being done, what was got, what was expected and how to mend it. Errors cross Ray
processes, so they pickle: the constructor's arguments are kept as they came.
"""

from __future__ import annotations

from typing import Any


class ImprintError(Exception):
    """Base of all. `where` names the shard, sample, rank, file or request that the error belongs to."""

    exit_code = 1

    def __init__(self, message: str, **where: Any) -> None:
        super().__init__(message)
        self.message = message
        self.where = where

    def __str__(self) -> str:
        if not self.where:
            return self.message
        place = ", ".join(f"{name}={value}" for name, value in self.where.items())
        return f"{self.message} [{place}]"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.where)


def _rebuild(kind: type[ImprintError], message: str, where: dict[str, Any]) -> ImprintError:
    return kind(message, **where)


class ConfigError(ImprintError):
    """A job file, an option or an override is wrong; nothing was started."""

    exit_code = 2


class BackboneError(ImprintError):
    """A backbone cannot be loaded, or lacks what a method needs."""


class DataError(ImprintError):
    """Shards, manifests or samples are not what they should be."""


class ShardError(DataError):
    """A whole shard is missing, cut short or unreadable."""


class SampleError(DataError):
    """One sample is bad."""


class ConceptError(ImprintError):
    """A saved concept cannot be read, or belongs to another backbone."""


class CheckpointError(ImprintError):
    """A checkpoint is missing, cut short or of another shape."""


class StorageError(ImprintError):
    """The disk is full, or may not be written."""


class TrainingError(ImprintError):
    """Training cannot go on."""

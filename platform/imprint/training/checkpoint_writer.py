"""Writes checkpoints while training goes on: training waits for a copy in memory, a thread does the rest."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path

import torch
from torch import Tensor

from imprint.config.training import CheckpointSpec
from imprint.training.checkpoint import TrainingState, save_checkpoint


class CheckpointWriter:
    """One at a time: the next waits for the one before. An error of the disk is raised where training comes by next."""

    def __init__(self, directory: Path, spec: CheckpointSpec) -> None:
        self.directory, self.spec = directory, spec
        self.seconds: float | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, state: TrainingState) -> None:
        """Take a copy and start writing it; where `asynchronous` is off, write it.

        Raises:
            StorageError: this checkpoint, or the one before, could not be written.
        """
        self.finish()
        if not self.spec.asynchronous:
            self._write(state)
            self._raise()
            return
        self._thread = threading.Thread(target=self._write, args=(_copied(state),), name="checkpoint")
        self._thread.start()

    def finish(self) -> None:
        """Wait until what was begun is on disk.

        Raises:
            StorageError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, state: TrainingState) -> None:
        began = time.perf_counter()
        try:
            save_checkpoint(self.directory, state, keep=self.spec.keep, keep_best=self.spec.keep_best)
        except BaseException as error:
            self._error = error
        self.seconds = time.perf_counter() - began


def _copied(state: TrainingState) -> TrainingState:
    """The tensors on the CPU, in memory that training does not change; copies from a GPU run side by side."""

    def copied(values: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        if values is None:
            return None
        return {name: value.detach().to("cpu", copy=True, non_blocking=True) for name, value in values.items()}

    copy = dataclasses.replace(
        state, parameters=copied(state.parameters), optimizer=copied(state.optimizer), ema=copied(state.ema)
    )
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()
    return copy

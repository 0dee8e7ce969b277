"""Tuning in one process: the base model and the encoders are loaded once, and are after each tune what they were."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import torch
from PIL import Image

from imprint.backbone import Backbone
from imprint.errors import ImprintError
from imprint.methods import METHODS
from imprint.serve.artifacts import pack
from imprint.serve.intake import read_pictures
from imprint.serve.jobs import TuneJob
from imprint.serve.problems import Problem, concealed
from imprint.serve.safety import SafetyChecker, load_checker
from imprint.serve.scratch import memory_folder, sweep_left_over
from imprint.serve.settings import ServeSpec, tune_spec
from imprint.serve.weights import exact_digest
from imprint.tuning import personalize
from imprint.tuning.pictures import as_pictures, split_alpha

log = logging.getLogger(__name__)


class Stopped(Exception):
    """A tune was canceled."""


class TunerEngine:
    """Tunes one subject at a time."""

    def __init__(self, spec: ServeSpec) -> None:
        """
        Raises:
            BackboneError: the base cannot be loaded.
            CheckpointError: an encoder is missing or made for another base.
        """
        sweep_left_over()
        self.spec = spec
        self.backbone = Backbone.load(spec.backbone, device=spec.device)
        self.digest = exact_digest(self.backbone)
        self.encoders = {name: METHODS[name].load_encoder(path, self.backbone) for name, path in spec.encoders.items()}
        wanted = spec.safety.enabled and "uploads" in spec.safety.check
        self.checker: SafetyChecker | None = load_checker(spec.safety) if wanted else None

    def tune(
        self,
        job: TuneJob,
        pictures: bytes,
        stopped: threading.Event,
        on_step: Callable[[int, float], None],
    ) -> bytes:
        """The packed concept.

        Raises:
            Stopped: `stopped` was set.
            Problem: the pictures or the settings will not do, or memory ran out.
        """

        def callback(step: int, loss: float) -> None:
            if stopped.is_set():
                raise Stopped
            on_step(step, loss)

        if stopped.is_set():
            raise Stopped
        try:
            return self._tune(job, pictures, callback)
        except (Stopped, Problem):
            raise
        except (torch.OutOfMemoryError, MemoryError):
            raise Problem.of(
                422, "out-of-memory", "the pictures or the method need more memory than there is; send smaller ones"
            ) from None
        except ImprintError as error:
            raise Problem.of(422, "tuning-failed", error.message) from None
        except Exception as error:
            raise concealed(error) from None

    def _tune(self, job: TuneJob, pictures: bytes, callback: Callable[[int, float], None]) -> bytes:
        images = [Image.fromarray(pixels) for pixels in read_pictures(pictures)]
        if self.checker is not None and any(verdict.flagged for verdict in self.checker(images)):
            raise Problem.of(422, "unsafe-picture", "images: the safety checker refused one of them")
        given = as_pictures([split_alpha(image) for image in images], image_size=self.backbone.image_size)
        with memory_folder() as folder:
            concept = personalize(
                self.backbone,
                given,
                tune_spec(self.spec, job.method, job.steps, class_images=str(folder)),
                encoder=self.encoders.get(job.method),
                class_noun=job.class_noun,
                seed=job.seed,
                callback=callback,
            )
        return pack(concept)

    def base_is_whole(self) -> bool:
        """Whether the base is what was loaded, bit for bit."""
        whole = exact_digest(self.backbone) == self.digest
        if not whole:
            log.error("the base model's weights changed; this replica is given up")
        return whole

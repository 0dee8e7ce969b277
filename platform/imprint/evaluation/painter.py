"""How each column of the report is drawn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from imprint.backbone import PLACEHOLDER, Backbone
from imprint.config.jobs.evaluate import Evaluate
from imprint.config.methods import FewStepSpec, SampleSpec
from imprint.errors import DataError
from imprint.evaluation.columns import Column, Drawn, Source, as_tensors, columns_of, has_encoder, to_uint8
from imprint.evaluation.subjects import Picture, Subject
from imprint.methods import METHODS
from imprint.methods.base import Learned, Pictures
from imprint.sampling.draw import draw_prompts


class Painter:
    """Draws all columns of subjects, with one method on one backbone. Seeds are the same over columns.

    `pretrained` is what the method's `load_encoder` gave, or the backbone where it has no encoder.
    """

    def __init__(self, backbone: Backbone, pretrained: Any, spec: Evaluate) -> None:
        self.backbone = backbone
        self.pretrained = pretrained
        self.spec = spec
        self.method: ModuleType = METHODS[spec.tuning.method]
        self.columns = columns_of(spec)

    def untuned(self, subjects: Sequence[Subject], wrong: Sequence[Picture]) -> list[Drawn]:
        """All columns without tuning, many subjects in a batch; `wrong` has for each a picture of somebody else."""
        shown = {"encoder": [subject.reference for subject in subjects], "wrong_reference": wrong}
        images: list[dict[str, UInt8[np.ndarray, "k h w 3"]]] = [{} for _ in subjects]
        for column in self.columns:
            if column.source not in ("class_noun", *shown) or (column.source in shown and not has_encoder(self.spec)):
                continue
            prompts = [self.prompt(subject, column) for subject in subjects for _ in self._copies]
            seeds = [seed for subject in subjects for seed in self.seeds(subject)]
            if column.source == "class_noun":
                drawn = draw_prompts(self.backbone, prompts, self._plain_sampling, seeds=seeds)
            else:
                drawn = self._by_the_encoder(shown[column.source], prompts, seeds)
            for own, pictures in zip(images, np.split(to_uint8(drawn), len(subjects)), strict=True):
                own[column.name] = pictures
        return [Drawn(subject.number, own) for subject, own in zip(subjects, images, strict=True)]

    def tuned(self, subject: Subject, victim: Subject) -> list[Drawn]:
        """Tune on the reference picture, and draw the columns that show what came of it.

        Without an encoder it is the wrong reference of another subject, the `victim`, too.
        """
        began = time.perf_counter()
        learned = self._tune(subject, self.spec.tuning)
        seconds = time.perf_counter() - began
        found = [Drawn(subject.number, self._draw(learned, subject, "tuned"), seconds)]
        if not has_encoder(self.spec):
            found.append(Drawn(victim.number, self._draw(learned, victim, "wrong_reference")))
        return found

    def baseline(self, subject: Subject) -> Drawn:
        """The columns of the baseline, tuned on the same picture."""
        assert self.spec.baseline is not None
        learned = self._tune(subject, self.spec.baseline)
        return Drawn(subject.number, self._draw(learned, subject, "baseline"))

    def prompt(self, subject: Subject, column: Column) -> str:
        """The prompt of one cell."""
        words = f"a {self.noun(subject)}" if column.source == "class_noun" else PLACEHOLDER
        template = self.spec.scenes.template if column.scene else self.spec.prompt
        return template.format(words, **subject.scene)

    def noun(self, subject: Subject) -> str:
        """What the subject is: the domain word of the encoder, else what its own sample says.

        Raises:
            DataError: neither says it.
        """
        noun = getattr(getattr(self.pretrained, "spec", None), "domain_word", None) or subject.reference.noun
        if not noun:
            raise DataError(
                f"evaluating {self.spec.tuning.method}: the subject {subject.identity} has no class_noun in its json, "
                "which a method without a domain needs; add it to the shards"
            )
        return str(noun)

    def seeds(self, subject: Subject) -> list[int]:
        """One for each picture of a cell."""
        return [self.spec.seed + subject.number * self.spec.images_per_prompt + copy for copy in self._copies]

    @property
    def _copies(self) -> range:
        return range(self.spec.images_per_prompt)

    @property
    def _plain_sampling(self) -> SampleSpec:
        """The sampler of pictures that are not of the method: fusion is ProFusion's alone."""
        return self.spec.sampling.model_copy(update={"fusion": None})

    def _tune(self, subject: Subject, spec: FewStepSpec) -> Learned:
        images, masks = as_tensors(subject.reference)
        pictures = Pictures(images, masks, [subject.reference.context] if subject.reference.context else None)
        own = spec is self.spec.tuning
        method = self.method if own else METHODS[spec.method]  # type: ignore[attr-defined]
        pretrained = self.pretrained if own else self.backbone
        seed = self.spec.seed + subject.number
        return method.tune(pretrained, pictures, spec, class_noun=self.noun(subject), seed=seed)

    def _draw(self, learned: Learned, subject: Subject, source: Source) -> dict[str, UInt8[np.ndarray, "k h w 3"]]:
        """The columns of one source, all in one go."""
        columns = [column for column in self.columns if column.source == source]
        prompts = [self.prompt(subject, column) for column in columns for _ in self._copies]
        sampling = self.spec.sampling if learned.method == self.spec.tuning.method else self._plain_sampling
        drawn = METHODS[learned.method].sample(
            self.backbone, learned, prompts, sampling, seeds=self.seeds(subject) * len(columns)
        )
        split = np.split(to_uint8(drawn), len(columns))
        return {column.name: own for column, own in zip(columns, split, strict=True)}

    def _by_the_encoder(
        self, pictures: Sequence[Picture], prompts: Sequence[str], seeds: Sequence[int]
    ) -> Float[Tensor, "n 3 h w"]:
        """A picture for each prompt; each of `pictures` has as many prompts as there are copies."""
        images, masks = (
            torch.cat(each).repeat_interleave(len(self._copies), 0)
            for each in zip(*(as_tensors(picture) for picture in pictures), strict=True)
        )
        return self.method.preview(self.pretrained, images, prompts, self.spec.sampling, masks=masks, seeds=seeds)

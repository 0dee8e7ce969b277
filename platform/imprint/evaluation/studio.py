"""A contender of a benchmark at work: tuned on a sitter's pictures, then drawn with every prompt, seed by seed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from imprint.backbone import PLACEHOLDER, Backbone
from imprint.config.jobs.benchmark import Contender, Sitting
from imprint.config.methods import FewStepSpec, SampleSpec
from imprint.errors import ConceptError, ConfigError
from imprint.evaluation.columns import as_tensors, to_uint8
from imprint.evaluation.cost import measured
from imprint.evaluation.portrait import Portrait
from imprint.evaluation.sitters import Sitter
from imprint.features.clip import ClipFeatures
from imprint.methods import METHODS
from imprint.methods.base import Learned, Pictures
from imprint.methods.phrases import tuned_backbone
from imprint.sampling.draw import draw_prompts

log = logging.getLogger(__name__)
BESIDE = "a photo of {} beside {}"
"""The prompt of two subjects."""

CHANGES_THE_CLASS = ("e4t", "dreambooth", "lora", "profusion")
"""Methods after which the UNet itself is another one, so that the class noun alone is drawn differently."""


class Studio:
    """One contender, loaded; None is the class noun alone, with no subject in it."""

    def __init__(
        self, contender: Contender | None, spec: Sitting, *, device: str | torch.device = "cpu", class_pictures: int = 0
    ) -> None:
        """
        Raises:
            BackboneError, CheckpointError: backbone, CLIP or encoder cannot be loaded.
        """
        self.contender, self.spec, self.class_pictures = contender, spec, class_pictures
        self.backbone = Backbone.load((contender and contender.backbone) or spec.backbone, device=device)
        self.sampling: SampleSpec = (contender and contender.sampling) or spec.sampling
        self._last: tuple[int, Learned, dict[str, float]] | None = None
        self.pretrained: Any = self.backbone
        if contender is not None and contender.encoder is not None:
            clip = ClipFeatures.load(contender.clip, device=device) if contender.clip else None
            method = METHODS[contender.tuning.method]
            self.pretrained = method.load_encoder(contender.encoder, self.backbone, clip=clip)

    def tunes_alike(self, contender: Contender | None) -> bool:
        """Whether what another contender learns is the same."""
        return (self.contender and self.contender.tuned_as()) == (contender and contender.tuned_as())

    def sample_as(self, contender: Contender | None) -> None:
        """Draw from now on as a contender that tunes alike."""
        self.sampling = (contender and contender.sampling) or self.spec.sampling

    def portray(self, sitter: Sitter) -> Portrait:
        """Tune, and draw all prompts.

        Raises:
            ConfigError, TrainingError: see the method's own `tune` and `sample`.
        """
        if self.contender is None:
            prompts = [prompt.about(f"a {sitter.noun}") for prompt in sitter.prompts]
            images, seconds = self._draw(sitter, prompts, lambda every, seeds: draw_prompts(
                self.backbone, every, self._plain, seeds=seeds))  # fmt: skip
            return Portrait(images, {"draw_seconds": seconds}, self._class(self.backbone, sitter))
        learned, cost = self._tune(sitter)
        prompts = [prompt.about(PLACEHOLDER) for prompt in sitter.prompts]
        method = METHODS[learned.method]
        images, seconds = self._draw(sitter, prompts, lambda every, seeds: method.sample(
            self.backbone, learned, every, self.sampling, seeds=seeds))  # fmt: skip
        changed = learned.method in CHANGES_THE_CLASS and self.class_pictures
        drawn = self._class(tuned_backbone(self.backbone, learned), sitter) if changed else None
        return Portrait(images, cost | {"draw_seconds": seconds}, drawn)

    def portray_both(self, one: Sitter, other: Sitter) -> UInt8[np.ndarray, "k h w 3"] | None:
        """Two sitters in one picture, k copies; None where what the method learns of two does not merge."""
        if self.contender is None:
            prompt = BESIDE.format(f"a {one.noun}", f"a {other.noun}")
            return to_uint8(draw_prompts(self.backbone, [prompt] * len(self.seeds(one)), self._plain,
                                         seeds=self.seeds(one)))  # fmt: skip
        method = METHODS[self.contender.tuning.method]
        if not hasattr(method, "merge") or _tunes_whole_weights(self.contender.tuning):
            return None
        learned = [self._tune(sitter)[0] for sitter in (one, other)]
        try:
            merged = method.merge(learned, [1.0, 1.0])
        except (ConceptError, ConfigError) as error:
            log.info("%s: not both in one picture: %s", self.contender.tuning.method, error)
            return None
        prompt = BESIDE.format(*merged.placeholders)
        seeds = self.seeds(one)
        return to_uint8(method.sample(self.backbone, merged, [prompt] * len(seeds), self.sampling, seeds=seeds))

    def noun(self, sitter: Sitter) -> str:
        """What the sitter is: the domain word of the encoder, else its own class noun."""
        return str(getattr(getattr(self.pretrained, "spec", None), "domain_word", None) or sitter.noun)

    def seeds(self, sitter: Sitter) -> list[int]:
        """One for each copy; the same over prompts and contenders."""
        copies = self.spec.images_per_prompt
        return [self.spec.seed + sitter.number * copies + copy for copy in range(copies)]

    @property
    def _plain(self) -> SampleSpec:
        """The sampler of pictures that are not of the method: fusion is ProFusion's alone."""
        return self.sampling.model_copy(update={"fusion": None})

    def _tune(self, sitter: Sitter) -> tuple[Learned, dict[str, float]]:
        """What was learned and what it cost; of the last sitter it is still known."""
        assert self.contender is not None
        if self._last is not None and self._last[0] == sitter.number:
            return self._last[1:]
        self._last = None
        each = [as_tensors(picture) for picture in sitter.references]
        images, masks = (torch.cat(tensors) for tensors in zip(*each, strict=True))
        contexts = [picture.context for picture in sitter.references]
        pictures = Pictures(images, masks, contexts if all(contexts) else None)
        steps = 0

        def count(step: int, loss: float) -> None:
            nonlocal steps
            steps = step

        tuning = self.contender.tuning
        with measured(self.backbone.device) as cost:
            learned = METHODS[tuning.method].tune(
                self.pretrained, pictures, tuning, class_noun=self.noun(sitter), seed=self.spec.seed + sitter.number,
                callback=count,
            )  # fmt: skip
        found = {"seconds": cost.seconds, "steps": float(steps), "kilobytes": _bytes(learned.tensors) / 1000}
        if cost.memory_mib is not None:
            found["memory_mib"] = cost.memory_mib
        self._last = sitter.number, learned, found
        return learned, found

    def _draw(
        self, sitter: Sitter, prompts: list[str], draw: Callable[[list[str], list[int]], Tensor]
    ) -> tuple[UInt8[np.ndarray, "p k h w 3"], float]:
        """The pictures, and the seconds that each took."""
        seeds = self.seeds(sitter)
        with measured(self.backbone.device) as cost:
            drawn = draw([prompt for prompt in prompts for _ in seeds], seeds * len(prompts))
        images = to_uint8(drawn)
        return images.reshape(len(prompts), len(seeds), *images.shape[1:]), cost.seconds / len(images)

    def _class(self, backbone: Backbone, sitter: Sitter) -> UInt8[np.ndarray, "c h w 3"] | None:
        if not self.class_pictures:
            return None
        # By the sitter's own noun, and with equal seeds for all, so that what differs is the model.
        prompts = [f"a {sitter.noun}"] * self.class_pictures
        return to_uint8(draw_prompts(backbone, prompts, self._plain, seeds=range(self.class_pictures)))


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _tunes_whole_weights(tuning: FewStepSpec) -> bool:
    """DreamBooth's and ProFusion's changes of whole weights do not add up; known before anything is tuned."""
    return getattr(tuning, "train", None) == "full" or bool(tuning.steps and getattr(tuning, "attention", False))

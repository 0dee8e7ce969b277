"""What every method has in common: what tuning leaves behind, and the doors it goes through."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from imprint.backbone import PLACEHOLDER, Backbone
from imprint.config.methods import FewStepSpec, SampleSpec

TuneCallback = Callable[[int, float], None]
"""Called after each step with the number of steps done and the loss."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """What is known of a concept: pictures in [-1, 1], and for each a mask and context phrases where there are any."""

    images: Float[Tensor, "n 3 h w"]
    masks: Float[Tensor, "n 1 h w"] | None = None
    contexts: Sequence[str] | None = None


@dataclass(frozen=True)
class Learned:
    """What a method learned of one concept: all that sampling needs beside the backbone.

    `tensors` goes to a safetensors file and `settings`, plain JSON, beside it.
    """

    method: str
    class_noun: str
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def placeholders(self) -> tuple[str, ...]:
        """What stands for the subjects in prompts: `<concept>`; several, numbered from 1, after merging."""
        return numbered_placeholders(int(self.settings.get("subjects", 1)))


def numbered_placeholders(count: int) -> tuple[str, ...]:
    """`<concept>` for one subject; `<concept-1>`, `<concept-2>`, ... for several."""
    if count == 1:
        return (PLACEHOLDER,)
    return tuple(f"{PLACEHOLDER[:-1]}-{number + 1}{PLACEHOLDER[-1]}" for number in range(count))


class Method(Protocol):
    """What the package of a method offers; `imprint.methods.METHODS` holds these packages by name.

    A package may have more doors:

    - `load_encoder(path, backbone, *, clip=None)` loads what its pretraining left, an
      `imprint.methods.pretrained.EncoderParts`. Where it is there, `tune` gets what it gives as the first argument;
      where it is not, `tune` gets the backbone. With it come `pretrain(backbone, spec, clip)`, the objective of
      pretraining (`imprint.methods.pretraining.EncoderObjective`), and
      `preview(parts, images, prompts, spec, masks=, seeds=)`, pictures of many subjects by the encoder alone.
    - `merge(learned, weights) -> Learned` puts concepts of one backbone together; without it merging is refused.
    - `export(learned, names) -> imprint.methods.portable.Portable` says what the concept is in the terms of other
      programs; without it export is refused. `names` are words for the subjects where the user chose some.

    No door changes the backbone or the pretrained parts.
    """

    def tune(
        self,
        pretrained: Any,
        pictures: Pictures,
        spec: FewStepSpec,
        *,
        class_noun: str | None = None,
        seed: int = 0,
        callback: TuneCallback | None = None,
    ) -> Learned: ...

    def sample(
        self,
        backbone: Backbone,
        learned: Learned,
        prompts: Sequence[str],
        spec: SampleSpec,
        *,
        seeds: Sequence[int] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Float[Tensor, "n 3 h w"]: ...

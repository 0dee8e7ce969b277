"""Whose prompts a benchmark draws: DreamBench's two lists, and protocols for the default data sets.

DreamBench has 30 subjects, 25 prompts and 4 pictures of each (DreamBooth, CVPR 2023, arXiv:2208.12242). Its prompts
read "a [V] [class noun] in the jungle"; here `{}` is all of "a [V] [class noun]", so the five that put an adjective
before it read "{} that is red" in place of "a red [V] [class noun]".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from imprint.config.jobs.benchmark import ProtocolName, Sitting
from imprint.config.jobs.evaluate import SceneSpec
from imprint.errors import ConfigError
from imprint.evaluation.subjects import ASKED, choose_scene

PLAIN = "plain"
"""The kind of prompts that ask for nothing but the subject; scored by themselves."""

_PLACES = (
    "in the jungle", "in the snow", "on the beach", "on a cobblestone street", "on top of pink fabric",
    "on top of a wooden floor", "with a city in the background", "with a mountain in the background",
    "with a blue house in the background", "on top of a purple rug in a forest",
)  # fmt: skip
_OBJECT_PLACES = (
    "with a wheat field in the background", "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background", "floating on top of water", "floating in an ocean of milk",
    "on top of green grass with sunflowers around it", "on top of a mirror",
    "on top of the sidewalk in a crowded street", "on top of a dirt road", "on top of a white rug",
)  # fmt: skip
_CLOTHES = (
    "wearing a red hat", "wearing a santa hat", "wearing a rainbow scarf", "wearing a black top hat and a monocle",
    "in a chef outfit", "in a firefighter outfit", "in a police outfit", "wearing pink glasses",
    "wearing a yellow shirt", "in a purple wizard outfit",
)  # fmt: skip
_PROPERTIES = ("red", "purple", "shiny", "wet", "cube shaped")
_CLOTHING = ("t-shirt", "hoodie")
_STYLES = ("noto", "twemoji", "fluent 3d", "fluent flat", "emojione", "fxemoji")


@dataclass(frozen=True)
class Prompt:
    """`{}` in `text` is the subject; `asks` is what a reader must find in the picture, attribute to value."""

    text: str
    kind: str
    asks: Mapping[str, str] = field(default_factory=dict)

    def about(self, words: str) -> str:
        """The prompt with these words for the subject."""
        return self.text.replace("{}", words)


def dreambench(*, live: bool) -> tuple[Prompt, ...]:
    """The 25 prompts of an object, or of a live subject."""
    return (
        *(Prompt(f"{{}} {place}", "recontextualise") for place in _PLACES),
        *(Prompt(f"{{}} {clothes}", "accessorise") for clothes in _CLOTHES if live),
        *(Prompt(f"{{}} {place}", "recontextualise") for place in _OBJECT_PLACES if not live),
        *(Prompt(f"{{}} that is {word}", "modify") for word in _PROPERTIES),
    )


def faces(attributes: Mapping[str, str], scenes: SceneSpec, generator: np.random.Generator) -> tuple[Prompt, ...]:
    """Six prompts of an avatar, none of which asks for what its own picture shows.

    Recontextualise is another background, accessorise are glasses, restyle is another colour of clothes. The last asks
    for the background, glasses and expression of the others at once.
    """
    scene = choose_scene(attributes, scenes, generator)
    colour = _other(scenes.backgrounds, {attributes.get("clothing_color"), scene["background"]}, generator)
    clothing = _other(_CLOTHING, {attributes.get("clothing")}, generator)
    return (
        Prompt("a photo of {}, on a gray background", PLAIN),
        Prompt(f"a photo of {{}}, on a {scene['background']} background", "recontextualise",
               {"background": scene["background"]}),
        Prompt(f"a photo of {{}}, with {scene['glasses']}", "accessorise", {"glasses": scene["glasses"]}),
        Prompt(f"a photo of {{}}, {scene['expression']}", "express", {"expression": scene["expression"]}),
        Prompt(f"a photo of {{}}, wearing a {colour} {clothing}", "restyle", {"clothing_color": colour}),
        Prompt(scenes.template.format("{}", **scene), "all at once", {name: scene[name] for name in ASKED}),
    )  # fmt: skip


def objects(attributes: Mapping[str, str], scenes: SceneSpec, generator: np.random.Generator) -> tuple[Prompt, ...]:
    """Five prompts of an emoji's concept: a plain one, two other backgrounds, and two other vendors' styles."""
    first = _other(scenes.backgrounds, {attributes.get("background")}, generator)
    second = _other(scenes.backgrounds, {attributes.get("background"), first}, generator)
    style = _other(_STYLES, {attributes.get("style")}, generator)
    another = _other(_STYLES, {attributes.get("style"), style}, generator)
    return (
        Prompt("a photo of {}, on a gray background", PLAIN),
        *(Prompt(f"a photo of {{}}, on a {word} background", "recontextualise", {"background": word})
          for word in (first, second)),
        *(Prompt(f"{{}}, {word} style", "restyle") for word in (style, another)),
    )  # fmt: skip


def _other(values: Sequence[str], taken: set[str | None], generator: np.random.Generator) -> str:
    left = [value for value in values if value not in taken]
    return left[int(generator.integers(len(left)))]


_BY_ATTRIBUTES: Mapping[str, Callable[[Mapping[str, str], SceneSpec, np.random.Generator], tuple[Prompt, ...]]] = {
    "faces": faces,
    "objects": objects,
}


def prompts_for(spec: Sitting, number: int, attributes: Mapping[str, str], *, live: bool) -> tuple[Prompt, ...]:
    """The prompts of one subject: a pure function of the job and the subject's number.

    Raises:
        ConfigError: a word of the protocol is not in its lists.
    """
    if spec.prompts:
        return tuple(Prompt(one.text, one.kind, dict(one.asks)) for one in spec.prompts)
    name: ProtocolName = spec.protocol
    if name == "dreambench":
        return dreambench(live=live)
    try:
        return _BY_ATTRIBUTES[name](attributes, spec.scenes, np.random.default_rng([spec.seed, number]))
    except ValueError as error:
        raise ConfigError(
            f"protocol {name}: scenes has too few words to ask for one that the subject's picture does not show "
            f"({error}); give each list three or more"
        ) from error

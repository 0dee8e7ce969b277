"""True captions of a face, from short to complete, in the words of face_words."""

from __future__ import annotations

from typing import NamedTuple

from imprint.pipelines.datasets import face_words as words
from imprint.pipelines.datasets.draw import Draw
from imprint.pipelines.datasets.face_identity import Identity
from imprint.pipelines.datasets.face_variant import Variant, glasses_words

_OPENINGS = {"": 0.6, "a picture of": 0.12, "a portrait of": 0.12, "a photo of": 0.08, "an avatar of": 0.08}
_COMPLETE_SHARE = 0.7
_TAGS_SHARE = 0.1
_BACKGROUND_FIRST_SHARE = 0.1
# In a complete caption each phrase stands with this probability; skin and nose are seldom what people name.
_MENTIONS = {
    "expression": 0.85,
    "hair": 0.85,
    "facial_hair": 0.9,
    "skin": 0.4,
    "nose": 0.1,
    "glasses": 0.9,
    "clothing": 0.7,
    "hat": 0.9,
    "background": 0.92,
}


class Captions(NamedTuple):
    """`caption` is the sample's text; `identity` and `context` are its two halves, complete."""

    caption: str
    identity: str
    context: str


def class_noun(identity: Identity) -> str:
    """The word for what is shown: a beard or a moustache makes a man, anyone else is a person."""
    return "person" if identity.facial_hair == words.NO_FACIAL_HAIR else "man"


def phrases(identity: Identity, variant: Variant, background: str) -> dict[str, str]:
    """All that can be said, by attribute. Nothing hidden is named: no hair under a hat."""
    found = {
        "expression": variant.expression,
        "skin": words.SKINS[identity.skin],
        "background": background,
    }
    if identity.nose != "DEFAULT":
        found["nose"] = words.NOSES[identity.nose]
    if variant.hat == words.NO_HAT:
        hair_color = words.HAIR_COLORS.get(identity.hair_color, "")
        found["hair"] = words.with_color(words.HAIRS[identity.hair], hair_color)
    else:
        found["hat"] = words.with_color(words.HATS[variant.hat], variant.hat_color)
    if identity.facial_hair != words.NO_FACIAL_HAIR:
        beard_color = words.HAIR_COLORS[identity.facial_hair_color]
        found["facial_hair"] = words.with_color(words.FACIAL_HAIRS[identity.facial_hair], beard_color)
    if variant.glasses != words.NO_GLASSES:
        found["glasses"] = glasses_words(variant)
    clothing = words.with_color(words.CLOTHES[variant.clothing], variant.clothing_color)
    graphic = f" {words.GRAPHICS[variant.graphic]}" if variant.clothing == "GRAPHIC_SHIRT" else ""
    found["clothing"] = clothing + graphic
    return found


def draw_captions(draw: Draw, identity: Identity, variant: Variant, background: str) -> Captions:
    """A caption that names some of what is there, and nothing that is not; and the two complete halves."""
    known = phrases(identity, variant, background)
    if draw.chance(_COMPLETE_SHARE):
        named = {part for part in known if draw.chance(_MENTIONS[part])}
    else:
        named = set(draw.shuffled(sorted(known))[: draw.integer(0, 3)])
    said = {part: known[part] for part in known if part in named}
    noun = _noun(draw, identity)
    caption = _tags(draw, noun, said) if draw.chance(_TAGS_SHARE) else _sentence(draw, noun, said)
    return Captions(caption, _identity_phrases(known), _context_phrases(known))


def _noun(draw: Draw, identity: Identity) -> str:
    usual = class_noun(identity)
    return draw.weighted({usual: 0.85, "person": 0.09, "face": 0.06} if usual == "man" else {usual: 0.92, "face": 0.08})


def _sentence(draw: Draw, noun: str, said: dict[str, str]) -> str:
    expression = said.get("expression", "")
    before = expression and words.EXPRESSIONS[expression].before_noun
    head = f"{expression} {noun}" if before else noun
    opening = draw.weighted(_OPENINGS)
    text = f"{_article(head)} {head}"
    if expression and not before:
        text += f" {expression}"
    features = [said[part] for part in ("facial_hair", "hair", "skin", "nose", "glasses") if part in said]
    if features:
        text += " with " + _join(draw.shuffled(features))
    worn = [said[part] for part in ("hat", "clothing") if part in said]
    if worn:
        text += ", wearing " + _join(worn)
    background = said.get("background")
    if background and not opening and draw.chance(_BACKGROUND_FIRST_SHARE):
        return f"{background}, {text}"
    if opening:
        text = f"{opening} {text}"
    if background:
        text += f", {background}" if features or worn else f" {background}"
    return text


def _tags(draw: Draw, noun: str, said: dict[str, str]) -> str:
    rest = [text for part, text in said.items() if part != "background"]
    return ", ".join([noun, *draw.shuffled(rest), *([said["background"]] if "background" in said else [])])


def _identity_phrases(known: dict[str, str]) -> str:
    parts = [known[part] for part in ("facial_hair", "hair", "skin", "nose") if part in known]
    return "with " + _join(parts)


def _context_phrases(known: dict[str, str]) -> str:
    parts = [known["expression"]]
    if "glasses" in known:
        parts.append(f"with {known['glasses']}")
    parts.append("wearing " + _join([known[part] for part in ("hat", "clothing") if part in known]))
    return ", ".join([*parts, known["background"]])


def _join(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _article(head: str) -> str:
    return "an" if head[0] in "aeiou" else "a"

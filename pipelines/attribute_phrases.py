"""From the attributes of a picture, as a reader names them, to phrases of a caption."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from imprint.evaluation.face_labels import NOT_PLAIN
from imprint.pipelines.captions import Written
from imprint.pipelines.datasets import face_words as words

_ABSENT = frozenset({"none", NOT_PLAIN})
_COLORS = {"hair_color": "hair", "facial_hair_color": "facial_hair", "hat_color": "hat"}  # said with what they colour
# "curly hair" -> "curly {} hair": what has a place for its colour.
_COLORED = {
    words.without_color(phrase): phrase
    for phrase in (*words.HAIRS.values(), *words.FACIAL_HAIRS.values(), *words.HATS.values())
}
_PHRASES = {
    "background": "on a {} background", "glasses": "with {}", "expression": "{}", "hat": "wearing {}",
    "clothing_color": "wearing {} clothes", "hair": "with {}", "facial_hair": "with {}", "skin": "with {}",
    "nose": "with {}",
}  # fmt: skip
_HIDDEN_BY_HAT = ("hair", "hair_color")


def attribute_phrases(values: Mapping[str, str | None], identity: Collection[str]) -> Written:
    """Fine phrases of what is known; None and "none" are not said, and neither is the hair under a hat.

    `identity` names the attributes that say who it is. An attribute of another kind than those of faces is said by
    its value alone.
    """
    known = {name: value for name, value in values.items() if value and value not in _ABSENT}
    if "hat" in known:
        known = {name: value for name, value in known.items() if name not in _HIDDEN_BY_HAT}
    who, rest = list[str](), list[str]()
    for name, value in known.items():
        if _COLORS.get(name) in values:
            continue
        colour = next((known.get(other, "") for other, of in _COLORS.items() if of == name), "")
        phrase = _PHRASES.get(name, "{}").format(_with_color(value, colour))
        (who if name in identity else rest).append(phrase)
    return Written(identity=", ".join(who), context=", ".join(rest))


def _with_color(value: str, colour: str) -> str:
    if value in _COLORED:
        return " ".join(words.with_color(_COLORED[value], colour).split())
    return f"{colour} {value}".strip()

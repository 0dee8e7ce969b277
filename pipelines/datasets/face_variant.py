"""How one picture of an identity differs from the others: expression, glasses, clothes, hat and placing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from imprint.pipelines.datasets import face_words as words
from imprint.pipelines.datasets.draw import Draw
from imprint.pipelines.datasets.face_identity import Identity

_GLASSES_SHARES = {"none": 0.5, "clear": 0.3, "dark": 0.2}


@dataclass(frozen=True)
class Placing:
    """Where the head is: `scale` of the subject, `shift_x` and `shift_down` in shares of the picture's side."""

    scale: float
    shift_x: float
    shift_down: float
    flip: bool


@dataclass(frozen=True)
class Variant:
    """What varies within an identity; names of python-avatars' enum members, except for colours and expression."""

    expression: str
    eyes: str
    eyebrows: str
    mouth: str
    glasses: str
    clothing: str
    clothing_color: str
    graphic: str
    hat: str
    hat_color: str
    placing: Placing


def draw_variant(draw: Draw, hat_share: float) -> Variant:
    """One variant. Dark glasses and an eyepatch are never put over an expression that is in the eyes."""
    name = draw.weighted({name: expression.weight for name, expression in words.EXPRESSIONS.items()})
    expression = words.EXPRESSIONS[name]
    shares = {**_GLASSES_SHARES, "dark": 0.0} if expression.in_eyes else _GLASSES_SHARES
    tables = {"none": (words.NO_GLASSES,), "clear": words.CLEAR_GLASSES, "dark": words.DARK_GLASSES}
    return Variant(
        expression=name,
        eyes=draw.choice(expression.eyes),
        eyebrows=draw.choice(expression.eyebrows),
        mouth=draw.choice(expression.mouths),
        glasses=draw.choice(tuple(tables[draw.weighted(shares)])),
        clothing=draw.weighted({name: 3.0 if name in _COMMON_CLOTHES else 1.0 for name in words.CLOTHES}),
        clothing_color=draw.choice(tuple(words.CLOTHING_COLORS)),
        graphic=draw.choice(tuple(words.GRAPHICS)),
        hat=draw.choice(tuple(words.HATS)) if draw.chance(hat_share) else words.NO_HAT,
        hat_color=draw.choice(tuple(words.CLOTHING_COLORS)),
        placing=Placing(
            scale=draw.between(0.85, 1.05),
            shift_x=draw.between(-0.05, 0.05),
            shift_down=draw.between(0.0, 0.05),
            flip=draw.chance(0.5),
        ),
    )


_COMMON_CLOTHES = frozenset({"HOODIE", "SHIRT_CREW_NECK", "SHIRT_V_NECK", "COLLAR_SWEATER"})


def attributes(identity: Identity, variant: Variant) -> dict[str, Any]:
    """All of a picture in words, "none" where there is none. Under a hat the hair is known but not seen."""
    bare_chin = identity.facial_hair == words.NO_FACIAL_HAIR
    dark = variant.glasses in words.DARK_GLASSES
    clothing = words.without_color(words.CLOTHES[variant.clothing])
    if variant.clothing == "GRAPHIC_SHIRT":
        clothing = f"{clothing} {words.GRAPHICS[variant.graphic]}"
    has_hat = variant.hat != words.NO_HAT
    return {
        "skin": words.SKINS[identity.skin],
        "hair": words.without_color(words.HAIRS[identity.hair]),
        "hair_color": words.HAIR_COLORS.get(identity.hair_color, "none"),
        "facial_hair": "none" if bare_chin else words.without_color(words.FACIAL_HAIRS[identity.facial_hair]),
        "facial_hair_color": words.HAIR_COLORS.get(identity.facial_hair_color, "none"),
        "nose": words.NOSES[identity.nose],
        "expression": variant.expression,
        "eyes": words.HIDDEN_EYES if dark else words.EYES[variant.eyes],
        "eyebrows": words.EYEBROWS[variant.eyebrows],
        "mouth": words.MOUTHS[variant.mouth],
        "glasses": glasses_words(variant),
        "clothing": clothing,
        "clothing_color": "none" if variant.clothing == "ASTRONAUT_SUIT" else variant.clothing_color,
        "hat": words.without_color(words.HATS[variant.hat]) if has_hat else "none",
        "hat_color": variant.hat_color if has_hat else "none",
    }


def glasses_words(variant: Variant) -> str:
    """What is worn on the eyes, or "none"."""
    return {**words.CLEAR_GLASSES, **words.DARK_GLASSES}.get(variant.glasses, "none")

"""What every part of an avatar is called in plain English: the vocabulary of captions and attributes.

The keys are the names of python-avatars' enums, the values the words. Left out on purpose: hair that ignores its
colour (SHAVED_SIDES, STRAIGHT_2), has no place for a beard (LOOSE_HAIR, LONG_HAIR_CURLY, CURLY_2), is cut off
(BRIDE), is a hat (HAT, ASTRONAUT), or looks like another at 64 px (CAESAR_SIDE_PART, BUZZCUT, SHORT_ROUND,
TWIST_LONG_HAIR_2); hats that hide the face; clothes and graphics with writing on them.
"""

from __future__ import annotations

from typing import NamedTuple

SKINS = {
    "TANNED": "orange skin",
    "YELLOW": "yellow skin",
    "PALE": "pale skin",
    "LIGHT": "light skin",
    "BROWN": "tan skin",
    "DARK_BROWN": "brown skin",
    "BLACK": "dark brown skin",
}

# "{}" is where the colour goes in a caption; without it the words are the attribute.
HAIRS = {
    "NONE": "a bald head",
    "SIDES": "thin {} hair at the sides",
    "BIG_HAIR": "big {} hair",
    "BOB": "a {} bob",
    "BUN": "a {} hair bun",
    "CAESAR": "very short {} hair",
    "CURLY": "curly {} hair",
    "CURVY": "long wavy {} hair",
    "DREADS": "long {} dreadlocks",
    "FRIDA": "{} hair with flowers",
    "FRIZZLE": "a tuft of {} hair",
    "FRO_BAND": "a {} afro with a headband",
    "FRO": "a {} afro",
    "LONG_NOT_TOO_LONG": "medium long {} hair",
    "MIA_WALLACE": "a {} bob with bangs",
    "SHAGGY_MULLET": "a {} mullet",
    "SHAGGY": "shaggy {} hair",
    "SHORT_CURLY": "short curly {} hair",
    "SHORT_DREADS_1": "short {} dreadlocks",
    "SHORT_DREADS_2": "frizzy {} hair",
    "SHORT_FLAT": "short {} hair",
    "SHORT_WAVED": "short wavy {} hair",
    "STRAIGHT_1": "long swept {} hair",
    "STRAIGHT_STRAND": "long straight {} hair",
    "BRAIDS": "{} braids",
    "CORNROWS": "{} cornrows",
    "DREADLOCKS": "{} twists",
    "EINSTEIN_HAIR": "wild {} hair",
    "ELVIS": "a {} curl on top",
    "EVIL_SPIKE": "spiky {} hair",
    "HALF_SHAVED": "half shaved {} hair",
    "MOHAWK": "a {} mohawk",
    "MOWGLI": "tousled {} hair",
    "PIXIE": "a {} pixie cut",
    "POMPADOUR": "a {} pompadour",
    "QUIFF": "a {} quiff",
    "TWIST_LONG_HAIR": "long twisted {} hair",
    "WICK": "shoulder length {} hair",
    "WILD": "messy {} hair",
}
BALD = "NONE"

HAIR_COLORS = {
    "AUBURN": "auburn",
    "BLACK": "black",
    "BLONDE": "dark blond",
    "BLONDE_GOLDEN": "blond",
    "BROWN": "brown",
    "BROWN_DARK": "dark brown",
    "PASTEL_PINK": "pink",
    "PLATINUM": "platinum blond",
    "RED": "red",
    "SILVER_GRAY": "silver",
}

FACIAL_HAIRS = {
    "BEARD_LIGHT": "a short {} beard",
    "BEARD_MAGESTIC": "a big {} beard",
    "BEARD_MEDIUM": "a {} beard",
    "WICK_BEARD": "a thin {} beard",
    "MOUSTACHE_FANCY": "a curled {} moustache",
    "MOUSTACHE_MAGNUM": "a {} moustache",
    "EINSTEIN_MOUSTACHE": "a bushy {} moustache",
}
NO_FACIAL_HAIR = "NONE"

NOSES = {"DEFAULT": "a regular nose", "SMALL": "a small nose", "WIDE": "a wide nose"}

EYES = {
    "CLOSED": "closed eyes",
    "CRY": "a tear in the eye",
    "DEFAULT": "open eyes",
    "EYE_ROLL": "rolling eyes",
    "HAPPY": "happy eyes",
    "HEART": "heart eyes",
    "SIDE": "eyes looking aside",
    "SQUINT": "squinting eyes",
    "SURPRISED": "wide eyes",
    "WINK_WACKY": "one eye wide and one closed",
    "WINK": "one eye closed",
    "X_DIZZY": "crossed out eyes",
}
HIDDEN_EYES = "hidden eyes"

EYEBROWS = {
    "ANGRY": "angry eyebrows",
    "ANGRY_NATURAL": "angry eyebrows",
    "DEFAULT": "relaxed eyebrows",
    "DEFAULT_NATURAL": "relaxed eyebrows",
    "FLAT_NATURAL": "flat eyebrows",
    "RAISED_EXCITED": "raised eyebrows",
    "RAISED_EXCITED_NATURAL": "raised eyebrows",
    "SAD_CONCERNED": "sad eyebrows",
    "SAD_CONCERNED_NATURAL": "sad eyebrows",
    "UP_DOWN": "one raised eyebrow",
    "UP_DOWN_NATURAL": "one raised eyebrow",
}

MOUTHS = {
    "BIG_SMILE": "a wide smile",
    "CONCERNED": "a worried mouth",
    "DEFAULT": "an open smile",
    "DISBELIEF": "an open mouth",
    "EATING": "full cheeks",
    "GRIMACE": "clenched teeth",
    "SAD": "a frown",
    "SCREAM_OPEN": "a screaming mouth",
    "SERIOUS": "a straight mouth",
    "SMILE": "a smile",
    "TONGUE": "the tongue out",
    "TWINKLE": "a gentle smile",
    "VOMIT": "green vomit",
}


class Expression(NamedTuple):
    """How a face looks: the parts that show it, and where its word goes in a caption.

    `in_eyes` says that the eyes carry it, so nothing may hide them.
    """

    mouths: tuple[str, ...]
    eyes: tuple[str, ...]
    eyebrows: tuple[str, ...]
    weight: float
    in_eyes: bool = False
    before_noun: bool = True


_RELAXED = ("DEFAULT", "DEFAULT_NATURAL")
_RAISED = ("RAISED_EXCITED", "RAISED_EXCITED_NATURAL")
_SAD = ("SAD_CONCERNED", "SAD_CONCERNED_NATURAL")
_ANGRY = ("ANGRY", "ANGRY_NATURAL")
_FLAT = ("FLAT_NATURAL", "DEFAULT_NATURAL")

EXPRESSIONS = {
    "smiling": Expression(("SMILE", "TWINKLE", "DEFAULT"), ("DEFAULT", "HAPPY", "SIDE"), _RELAXED + _RAISED, 5),
    "laughing": Expression(("BIG_SMILE",), ("HAPPY", "DEFAULT"), _RELAXED + _RAISED, 3),
    "sad": Expression(("SAD",), ("DEFAULT", "SQUINT"), _SAD, 3),
    "serious": Expression(("SERIOUS",), ("DEFAULT", "SIDE", "SQUINT"), _FLAT, 3),
    "angry": Expression(("SAD", "SERIOUS"), ("DEFAULT", "SQUINT"), _ANGRY, 3),
    "surprised": Expression(("DISBELIEF",), ("SURPRISED",), _RAISED, 3, in_eyes=True),
    "screaming": Expression(("SCREAM_OPEN",), ("DEFAULT", "SURPRISED"), _RAISED + _ANGRY, 2),
    "worried": Expression(("CONCERNED",), ("DEFAULT", "SQUINT"), _SAD, 1.5),
    "grimacing": Expression(("GRIMACE",), ("DEFAULT", "SQUINT"), _RELAXED + _FLAT, 1.5),
    "crying": Expression(("SAD",), ("CRY",), _SAD, 1.5, in_eyes=True),
    "winking": Expression(("SMILE", "TWINKLE"), ("WINK", "WINK_WACKY"), ("UP_DOWN", *_RELAXED), 2, in_eyes=True),
    "sleeping": Expression(("SERIOUS", "TWINKLE"), ("CLOSED",), _RELAXED, 1.5, in_eyes=True),
    "bored": Expression(("SERIOUS",), ("EYE_ROLL",), _FLAT, 1, in_eyes=True),
    "dizzy": Expression(("CONCERNED", "DISBELIEF"), ("X_DIZZY",), _SAD, 1, in_eyes=True),
    "sick": Expression(("VOMIT",), ("DEFAULT", "SQUINT"), _SAD, 1),
    "in love": Expression(("SMILE", "BIG_SMILE"), ("HEART",), _RAISED, 1.5, in_eyes=True, before_noun=False),
    "eating": Expression(("EATING",), ("DEFAULT", "HAPPY"), _RELAXED, 1, before_noun=False),
    "sticking out the tongue": Expression(("TONGUE",), ("DEFAULT", "HAPPY"), _RELAXED, 1.5, before_noun=False),
}

NO_GLASSES = "NONE"
CLEAR_GLASSES = {
    "ROUND": "round glasses",
    "PRESCRIPTION_1": "white glasses",
    "PRESCRIPTION_2": "black glasses",
}
DARK_GLASSES = {
    "SUNGLASSES": "sunglasses",
    "WAYFARERS": "sunglasses",
    "SUNGLASSES_2": "purple sunglasses",
    "WAYFARERS_2": "purple sunglasses",
    "KURT": "white sunglasses",
    "EYEPATCH": "an eyepatch",
}

# Clothes take any colour; these have the names of the background colours but are a little apart from them.
CLOTHING_COLORS = {
    "red": "#E8453C",
    "orange": "#F79A3E",
    "yellow": "#FFE066",
    "green": "#53B86A",
    "blue": "#5199E4",
    "purple": "#9B5FD0",
    "pink": "#FF7FB0",
    "white": "#FFFFFF",
    "gray": "#A3A6A9",
    "black": "#262E33",
    "brown": "#8F5B36",
}

# "{}" is the colour of what python-avatars colours; a space suit keeps its own.
CLOTHES = {
    "HOODIE": "a {} hoodie",
    "SHIRT_CREW_NECK": "a {} t-shirt",
    "SHIRT_V_NECK": "a {} v-neck shirt",
    "SHIRT_SCOOP_NECK": "a {} scoop neck shirt",
    "COLLAR_SWEATER": "a {} sweater with a white collar",
    "OVERALL": "{} overalls",
    "BLAZER_SHIRT": "a blazer over a {} shirt",
    "BLAZER_SWEATER": "a blazer over a {} sweater",
    "SHIRT_WICK": "a black suit with a {} tie",
    "BOND_SUIT": "a tuxedo with a {} shirt",
    "CHEF": "a {} chef jacket",
    "GLADIATOR": "{} armor",
    "JEDI_ROBE": "a black robe over a {} shirt",
    "ASTRONAUT_SUIT": "a space suit",
    "GRAPHIC_SHIRT": "a {} shirt",
}
GRAPHICS = {
    "BAT": "with a bat on it",
    "BEAR": "with a bear on it",
    "DEER": "with a deer on it",
    "DIAMOND": "with a diamond on it",
    "PIZZA": "with a pizza on it",
    "SKULL": "with a skull on it",
}

NO_HAT = "none"
HATS = {
    "HAT": "a {} wide hat",
    "TURBAN": "a {} turban",
    "WINTER_HAT_1": "a {} winter hat",
    "WINTER_HAT_2": "a {} knitted hat",
    "WINTER_HAT_3": "a {} santa hat",
    "WINTER_HAT_4": "a {} hat with cat ears",
}


def with_color(phrase: str, color: str) -> str:
    """`phrase` with `color` in its place, and the article that goes with it: "an orange hoodie"."""
    filled = phrase.format(color)
    if filled.startswith("a ") and filled[2] in "aeiou":
        return "an " + filled[2:]
    return filled


def without_color(phrase: str) -> str:
    """The bare name: "a {} bob" gives "bob", "curly {} hair" gives "curly hair"."""
    return " ".join(phrase.replace("{}", "").removeprefix("a ").removeprefix("an ").split())

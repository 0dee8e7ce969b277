"""An avatar as pixels: python-avatars writes the SVG, resvg draws it, alpha included."""

from __future__ import annotations

import io

import numpy as np
import python_avatars as pa
import resvg_py
from numpy.typing import NDArray
from PIL import Image

from imprint.errors import DataError
from imprint.pipelines.datasets import face_words as words
from imprint.pipelines.datasets.face_identity import Identity
from imprint.pipelines.datasets.face_variant import Placing, Variant

# The canvas that python-avatars gives to every SVG, and its height alone as the side of the square picture.
_CANVAS = 'width="264px" height="280px" viewBox="0 0 264 280"'
_WIDTH, _SIDE = 264, 280


def render_face(identity: Identity, variant: Variant, size: int) -> NDArray[np.uint8]:
    """RGBA [size, size, 4], straight alpha: the head and shoulders, standing on the lower edge.

    Raises:
        DataError: python-avatars or resvg gave something else than expected.
    """
    svg = _avatar(identity, variant).render()
    framed = svg.replace(_CANVAS, f'width="{size}px" height="{size}px" viewBox="{_view(variant.placing)}"', 1)
    if framed == svg:
        raise DataError(
            f"drawing a face: the SVG of python-avatars does not start with the canvas {_CANVAS}; "
            "install python-avatars 1.4.1",
            identity=identity.key,
        )
    with Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=framed, skip_system_fonts=True))) as image:
        pixels = np.asarray(image.convert("RGBA"))
    if pixels.shape != (size, size, 4):
        raise DataError(f"drawing a face: resvg gave {pixels.shape}, expected {(size, size, 4)}", identity=identity.key)
    return np.ascontiguousarray(pixels[:, ::-1] if variant.placing.flip else pixels)


def _view(placing: Placing) -> str:
    """The viewBox that shows the head at `scale`; the canvas' lower edge is never above the picture's."""
    side = _SIDE / placing.scale
    left = _WIDTH / 2 - side * (0.5 + placing.shift_x)
    top = _SIDE - side * (1.0 + placing.shift_down)
    return f"{left:.3f} {top:.3f} {side:.3f} {side:.3f}"


def _avatar(identity: Identity, variant: Variant) -> pa.Avatar:
    hair_color = pa.HairColor[identity.hair_color] if identity.hair_color != "NONE" else pa.HairColor.BLACK
    bare_chin = identity.facial_hair == words.NO_FACIAL_HAIR
    has_hat = variant.hat != words.NO_HAT
    return pa.Avatar(
        style=pa.AvatarStyle.TRANSPARENT,
        top=pa.HatType[variant.hat] if has_hat else pa.HairType[identity.hair],
        hat_color=words.CLOTHING_COLORS[variant.hat_color],
        skin_color=pa.SkinColor[identity.skin],
        hair_color=hair_color,
        facial_hair=pa.FacialHairType[identity.facial_hair],
        facial_hair_color=hair_color if bare_chin else pa.HairColor[identity.facial_hair_color],
        nose=pa.NoseType[identity.nose],
        eyes=pa.EyeType[variant.eyes],
        eyebrows=pa.EyebrowType[variant.eyebrows],
        mouth=pa.MouthType[variant.mouth],
        accessory=pa.AccessoryType[variant.glasses],
        clothing=pa.ClothingType[variant.clothing],
        clothing_color=words.CLOTHING_COLORS[variant.clothing_color],
        shirt_graphic=pa.ClothingGraphic[variant.graphic],
    )

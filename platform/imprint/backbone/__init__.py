"""A text-to-image model behind one interface."""

from imprint.backbone.attention import AttentionProjection
from imprint.backbone.base import Backbone
from imprint.backbone.families import FAMILIES, Family
from imprint.backbone.noise import NoiseSchedule, PredictionType
from imprint.backbone.text import PLACEHOLDER, TextConditioning, TokenReplacements

__all__ = [
    "FAMILIES",
    "PLACEHOLDER",
    "AttentionProjection",
    "Backbone",
    "Family",
    "NoiseSchedule",
    "PredictionType",
    "TextConditioning",
    "TokenReplacements",
]

"""Config sections of the personalization methods: what a YAML file may say of each. A new method is one file here."""

from imprint.config.base import Section
from imprint.config.methods.e4t import E4TEncoderSpec, E4TSpec, E4TTuneSpec, LearningRates, WeightOffsetsSpec
from imprint.config.methods.prompts import DEFAULT_TEMPLATES
from imprint.config.methods.sampling import SampleSpec

TUNE_SPECS: dict[str, type[Section]] = {"e4t": E4TTuneSpec}
"""The tuning spec of each method, by the method's name."""

__all__ = [
    "DEFAULT_TEMPLATES",
    "TUNE_SPECS",
    "E4TEncoderSpec",
    "E4TSpec",
    "E4TTuneSpec",
    "LearningRates",
    "SampleSpec",
    "WeightOffsetsSpec",
]

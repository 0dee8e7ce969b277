"""Config sections of the personalization methods: what a YAML file may say of each. A new method is one file here."""

from imprint.config.methods.dreambooth import DreamBoothTuneSpec, PriorSpec
from imprint.config.methods.e4t import E4TEncoderSpec, E4TSpec, E4TTuneSpec, LearningRates, WeightOffsetsSpec
from imprint.config.methods.lora import LoraTuneSpec
from imprint.config.methods.prompts import DEFAULT_TEMPLATES
from imprint.config.methods.sampling import AncestralSampleSpec, SampleSpec
from imprint.config.methods.taming import DroppingSpec, ObjectEncoderSpec, TamingSpec, TamingTuneSpec
from imprint.config.methods.textual_inversion import TextualInversionTuneSpec
from imprint.config.methods.tuning import FewStepSpec, IdentifierSpec, LoraSpec, PhraseSpec

TUNE_SPECS: dict[str, type[FewStepSpec]] = {
    "e4t": E4TTuneSpec,
    "dreambooth": DreamBoothTuneSpec,
    "lora": LoraTuneSpec,
    "textual_inversion": TextualInversionTuneSpec,
    "taming": TamingTuneSpec,
}
"""The tuning spec of each method, by the method's name."""

__all__ = [
    "DEFAULT_TEMPLATES",
    "TUNE_SPECS",
    "AncestralSampleSpec",
    "DreamBoothTuneSpec",
    "DroppingSpec",
    "E4TEncoderSpec",
    "E4TSpec",
    "E4TTuneSpec",
    "FewStepSpec",
    "IdentifierSpec",
    "LearningRates",
    "LoraSpec",
    "LoraTuneSpec",
    "ObjectEncoderSpec",
    "PhraseSpec",
    "PriorSpec",
    "SampleSpec",
    "TamingSpec",
    "TamingTuneSpec",
    "TextualInversionTuneSpec",
    "WeightOffsetsSpec",
]

"""Config sections of the personalization methods: what a YAML file may say of each. A new method is one file here."""

from imprint.config.methods.domain_agnostic import (
    ContrastiveSpec,
    DomainAgnosticEncoderSpec,
    DomainAgnosticSpec,
    DomainAgnosticTuneSpec,
    DualPathSpec,
    HyperNetworkSpec,
)
from imprint.config.methods.dreambooth import DreamBoothTuneSpec, PriorSpec
from imprint.config.methods.e4t import E4TEncoderSpec, E4TSpec, E4TTuneSpec, LearningRates, WeightOffsetsSpec
from imprint.config.methods.lora import LoraTuneSpec
from imprint.config.methods.pretraining import EncoderSpec, PretrainSpec
from imprint.config.methods.profusion import (
    AugmentationSpec,
    InpaintingSpec,
    PlacementSpec,
    ProFusionSpec,
    ProFusionTuneSpec,
    PromptNetSpec,
)
from imprint.config.methods.prompts import DEFAULT_TEMPLATES
from imprint.config.methods.sampling import AncestralSampleSpec, FusionSpec, SampleSpec
from imprint.config.methods.super_resolution import SuperResolutionSampler, SuperResolutionTuneSpec
from imprint.config.methods.taming import DroppingSpec, ObjectEncoderSpec, TamingSpec, TamingTuneSpec
from imprint.config.methods.textual_inversion import TextualInversionTuneSpec
from imprint.config.methods.tuning import EarlyStoppingSpec, FewStepSpec, IdentifierSpec, LoraSpec, PhraseSpec

TUNE_SPECS: dict[str, type[FewStepSpec]] = {
    "e4t": E4TTuneSpec,
    "dreambooth": DreamBoothTuneSpec,
    "lora": LoraTuneSpec,
    "textual_inversion": TextualInversionTuneSpec,
    "domain_agnostic": DomainAgnosticTuneSpec,
    "profusion": ProFusionTuneSpec,
    "taming": TamingTuneSpec,
}
"""The tuning spec of each method, by the method's name."""

PRETRAIN_SPECS: dict[str, type[PretrainSpec]] = {
    "e4t": E4TSpec,
    "domain_agnostic": DomainAgnosticSpec,
    "profusion": ProFusionSpec,
}
"""The pretraining spec of each method that has an encoder."""

ENCODER_METHODS: tuple[str, ...] = (*PRETRAIN_SPECS, "taming")
"""Methods that start from something pretrained; taming's is a whole network."""

__all__ = [
    "DEFAULT_TEMPLATES",
    "ENCODER_METHODS",
    "PRETRAIN_SPECS",
    "TUNE_SPECS",
    "AncestralSampleSpec",
    "AugmentationSpec",
    "ContrastiveSpec",
    "DomainAgnosticEncoderSpec",
    "DomainAgnosticSpec",
    "DomainAgnosticTuneSpec",
    "DreamBoothTuneSpec",
    "DroppingSpec",
    "DualPathSpec",
    "E4TEncoderSpec",
    "E4TSpec",
    "E4TTuneSpec",
    "EarlyStoppingSpec",
    "EncoderSpec",
    "FewStepSpec",
    "FusionSpec",
    "HyperNetworkSpec",
    "IdentifierSpec",
    "InpaintingSpec",
    "LearningRates",
    "LoraSpec",
    "LoraTuneSpec",
    "ObjectEncoderSpec",
    "PhraseSpec",
    "PlacementSpec",
    "PretrainSpec",
    "PriorSpec",
    "ProFusionSpec",
    "ProFusionTuneSpec",
    "PromptNetSpec",
    "SampleSpec",
    "SuperResolutionSampler",
    "SuperResolutionTuneSpec",
    "TamingSpec",
    "TamingTuneSpec",
    "TextualInversionTuneSpec",
    "WeightOffsetsSpec",
]

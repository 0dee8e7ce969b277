"""Domain-agnostic tuning encoder: any concept from one picture, and 12 tuning steps. Arar et al., arXiv:2307.06925."""

from imprint.methods.domain_agnostic.artifact import load_encoder
from imprint.methods.domain_agnostic.learned import export, merge
from imprint.methods.domain_agnostic.objective import DomainAgnosticObjective
from imprint.methods.domain_agnostic.parts import DomainAgnosticParts
from imprint.methods.domain_agnostic.sample import preview, sample
from imprint.methods.domain_agnostic.tune import tune

pretrain = DomainAgnosticObjective

__all__ = [
    "DomainAgnosticObjective",
    "DomainAgnosticParts",
    "export",
    "load_encoder",
    "merge",
    "pretrain",
    "preview",
    "sample",
    "tune",
]

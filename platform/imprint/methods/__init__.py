"""The methods of the papers, by name. A method is a folder and one line here."""

from types import ModuleType

from imprint.methods import domain_agnostic, dreambooth, e4t, lora, profusion, taming, textual_inversion

METHODS: dict[str, ModuleType] = {
    "e4t": e4t,
    "dreambooth": dreambooth,
    "lora": lora,
    "textual_inversion": textual_inversion,
    "domain_agnostic": domain_agnostic,
    "profusion": profusion,
    "taming": taming,
}
"""Each offers the doors of `imprint.methods.base.Method`."""

"""The methods of the papers, by name. A method is a folder and one line here."""

from types import ModuleType

from imprint.methods import dreambooth, e4t, lora, taming, textual_inversion

METHODS: dict[str, ModuleType] = {
    "e4t": e4t,
    "dreambooth": dreambooth,
    "lora": lora,
    "textual_inversion": textual_inversion,
    "taming": taming,
}
"""Each offers the doors of `imprint.methods.base.Method`."""

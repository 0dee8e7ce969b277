"""The methods of the papers, by name. A method is a folder and one line here."""

from types import ModuleType

from imprint.methods import e4t

METHODS: dict[str, ModuleType] = {
    "e4t": e4t,
}
"""Each offers `load_encoder`, `tune` and `sample`."""

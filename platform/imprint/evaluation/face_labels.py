"""What of a face sample's json can be read off its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NOT_PLAIN = "not plain"
"""The class of every background that is not one plain colour."""

_UNDER_HATS = ("hair", "hair_color")


def visible_labels(attributes: Mapping[str, str], wanted: Sequence[str]) -> dict[str, str]:
    """The true class of each wanted attribute; without the hair where a hat hides it."""
    hidden = _UNDER_HATS if attributes.get("hat", "none") != "none" else ()
    labels = {name: attributes[name] for name in wanted if name in attributes and name not in hidden}
    if "background" in labels and attributes.get("background_kind", "plain") != "plain":
        labels["background"] = NOT_PLAIN
    return labels

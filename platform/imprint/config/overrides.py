"""Dotted overrides from the command line: `training.steps=20`, `data.shards.0=faces.tar`.

An override changes the plain data before it is validated, so a wrong one gets the same message as a wrong file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from imprint.config.source import Document, KeyPath, parse_value
from imprint.errors import ConfigError


def apply_overrides(document: Document, overrides: Sequence[str]) -> Document:
    """Return `document` with each `key.path=value` of `overrides` set, in order. Values are YAML.

    Raises:
        ConfigError: an override has no `=`, its value is not YAML, or its path leads through a single value.
    """
    data = _copy(document.data)
    origins = dict(document.origins)
    for override in overrides:
        path, value = parse_override(override)
        path = _assign(data, path, value, override)
        stale = [known for known in origins if known[: len(path)] == path]
        for known in stale:
            del origins[known]
        for length in range(1, len(path) + 1):  # sections that the override made are its own too
            origins.setdefault(path[:length], f"override {override!r}")
    return Document(name=document.name, data=data, origins=origins)


def parse_override(text: str) -> tuple[KeyPath, Any]:
    """Split `key.path=value` into the path's parts and the value that YAML reads.

    Raises:
        ConfigError: no `=`, an empty part, or a value that is not YAML.
    """
    dotted, sign, raw = text.partition("=")
    parts = tuple(dotted.strip().split("."))
    if not sign or not all(parts):
        raise ConfigError(f"override {text!r}: expected dotted.key=value, for example training.steps=20")
    try:
        return parts, parse_value(raw)
    except (yaml.YAMLError, ConfigError) as error:
        raise ConfigError(f"override {text!r}: the value {raw!r} is not valid YAML; quote it") from error


def _assign(data: dict[str, Any], parts: KeyPath, value: Any, text: str) -> KeyPath:
    """Set `value` in place and return the path with list positions as integers."""
    here: Any = data
    path: list[str | int] = []
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        key = _position(here, str(part), path, text) if isinstance(here, list) else part
        path.append(key)
        if last:
            here[key] = value
            break
        if isinstance(here, dict) and here.get(key) is None:
            here[key] = {}
        here = here[key]
        if not isinstance(here, dict | list):
            below = parts[depth + 1]
            raise ConfigError(f"override {text!r}: {_dotted(path)} is the single value {here!r}, it has no {below!r}")
    return tuple(path)


def _position(items: list[Any], part: str, path: Sequence[str | int], text: str) -> int:
    if part.isdecimal() and int(part) < len(items):
        return int(part)
    raise ConfigError(
        f"override {text!r}: {_dotted(path)} is a list of {len(items)}; got {part!r}, "
        f"expected a position from 0 to {len(items) - 1}, or give the whole list: {_dotted(path)}=[...]"
    )


def _copy(value: Any) -> Any:
    """Copy containers; an anchor used twice becomes two values, so that an override changes only one."""
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value


def _dotted(path: Sequence[str | int]) -> str:
    return ".".join(map(str, path))

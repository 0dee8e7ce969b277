"""YAML text in; plain data and the line of every key out.

PyYAML's safe loader, with three differences that a job file needs: it remembers where each key stands, it refuses a
key that is written twice (YAML keeps the last one silently), and it reads `1e-4` as a number (YAML 1.1 reads a string).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from imprint.errors import ConfigError

KeyPath = tuple[str | int, ...]

# A job file is written by hand. Past these it is a mistake, or aliases that unfold without end.
MAX_DEPTH = 32
MAX_NODES = 10_000


@dataclass(frozen=True)
class Document:
    """What a YAML text says: `data`, and in `origins` where each key path was written, as `file:line`."""

    name: str
    data: dict[str, Any]
    origins: dict[KeyPath, str] = field(default_factory=dict)

    def origin(self, path: KeyPath) -> str:
        """Return where `path`, or the nearest part of it that was written down, stands."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return self.name


class _Loader(yaml.SafeLoader):
    """Safe loader whose floats follow YAML 1.2's core schema."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def parse_document(text: str, name: str) -> Document:
    """Parse the YAML mapping in `text`; `name` is what messages call it, usually the file's path.

    Raises:
        ConfigError: not YAML, not a mapping, or a key stands there twice.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise ConfigError(f"{name}: the file is empty; expected keys such as 'job: pretrain_encoder'")
        walk = _Walk(loader, name)
        data = walk.build(node, ())
    except yaml.YAMLError as error:
        raise ConfigError(_syntax_message(name, error)) from error
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        raise ConfigError(f"{name}:1: got {_kind(data)} at the top, expected keys such as 'job: pretrain_encoder'")
    return Document(name=name, data=data, origins=walk.origins)


def parse_value(text: str) -> Any:
    """Parse one YAML value, as it stands after the `=` of an override.

    Raises:
        yaml.YAMLError: not YAML.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _Walk(loader, "override").build(node, ())
    finally:
        loader.dispose()


class _Walk:
    """Builds plain data from YAML nodes and notes the line of each key."""

    def __init__(self, loader: _Loader, name: str) -> None:
        self.loader = loader
        self.name = name
        self.origins: dict[KeyPath, str] = {}
        self.nodes = 0

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise ConfigError(
                f"{self._at(node)}: more than {MAX_NODES} values, or nested more than {MAX_DEPTH} deep; "
                "expected a job file (is an alias inside its own anchor?)"
            )
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                self.origins[(*path, index)] = self._at(item)
                items.append(self.build(item, (*path, index)))
            return items
        return self.loader.construct_object(node)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        self._refuse_duplicates(node, path)
        self.loader.flatten_mapping(node)  # `<<: *anchor`; keys of the mapping itself come last and win
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None:
                raise ConfigError(f"{self._at(key_node)}: a key is {_kind(key_node)}, expected a word")
            self.origins[(*path, key)] = self._at(key_node)
            built[key] = self.build(value_node, (*path, key))
        return built

    def _refuse_duplicates(self, node: yaml.MappingNode, path: KeyPath) -> None:
        first: dict[str, yaml.Node] = {}
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in first and key != "<<":
                dotted = ".".join(map(str, (*path, key)))
                line = first[key].start_mark.line + 1
                raise ConfigError(
                    f"{self._at(key_node)}: {dotted}: the key is written twice, first in line {line}; keep one"
                )
            first[key] = key_node

    def _at(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"


def _syntax_message(name: str, error: yaml.YAMLError) -> str:
    """One line out of PyYAML's several."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark is not None else name
    said = [getattr(error, "context", None), getattr(error, "problem", None)]
    detail = ", ".join(part for part in said if part) or " ".join(str(error).split())
    return f"{place}: not valid YAML: {detail}"


def _kind(value: Any) -> str:
    if isinstance(value, list | yaml.SequenceNode):
        return "a list"
    if isinstance(value, dict | yaml.MappingNode):
        return "a section"
    return f"the single value {value!r}"

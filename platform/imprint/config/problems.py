"""What is wrong with a job file, in one line for each key: place, key, what was got, what was expected, nearest key."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from imprint.config.source import Document, KeyPath

_SHOWN_KEYS = 12
_SHOWN_CHARACTERS = 60
_RAISED_BY_MODELS = ("value_error", "assertion_error")
_EXPECTED = (
    (re.compile(r"^Input should be "), ""),
    (re.compile(r", (unable to (parse|interpret)|got ).*$"), ""),
    (re.compile(r"^a valid (tuple|list|set)$"), "a list"),
    (re.compile(r"^a valid string$"), "text (quote it)"),
    (re.compile(r"^a valid dictionary( or instance of \w+)?$"), "a section of key: value lines"),
)


def describe_problems(document: Document, model: type[BaseModel], error: ValidationError) -> list[str]:
    """Return one line for each key of `document` that `error`, raised by validating it as `model`, is about.

    Lines come in the order in which the keys stand in the file. A value that fits no branch of a union is one line.
    """
    groups: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        groups.setdefault(_data_path(document.data, detail), []).append(detail)
    order = {path: position for position, path in enumerate(document.origins)}
    unknown = [path for path in groups if _is(groups[path], "extra_forbidden")]
    misspelt = {_meant(document.data, model, path) for path in unknown}
    lines = []
    for path in sorted(groups, key=lambda path: order.get(path, -1)):
        if _is(groups[path], "missing") and path in misspelt:
            continue  # said once, where the misspelt key stands
        problem = _problem(document.data, model, path, groups[path])
        key = ".".join(map(str, path))
        lines.append(f"{document.origin(path)}: {key}: {problem}" if key else f"{document.origin(path)}: {problem}")
    return lines


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the one of `known` that `word` was probably meant to be, or None."""
    matches = difflib.get_close_matches(word.lower().replace("-", "_"), list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def or_list(items: Sequence[str]) -> str:
    """Join as in `a, b or c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} or {items[-1]}"


def _data_path(data: Any, detail: ErrorDetails) -> KeyPath:
    """Turn pydantic's location into a path of the data: without the tags of unions, which are not in the file."""
    path: list[str | int] = []
    location = detail["loc"]
    for position, part in enumerate(location):
        inside = isinstance(data, dict) and part in data
        inside = inside or (isinstance(data, list) and isinstance(part, int) and part < len(data))
        if inside:
            data = data[part]
            path.append(part)
        elif detail["type"] == "missing" and position == len(location) - 1:
            path.append(part)
    return tuple(path)


def _problem(data: Any, model: type[BaseModel], path: KeyPath, details: list[ErrorDetails]) -> str:
    if _is(details, "extra_forbidden"):
        return _unknown_key(data, model, path)
    if _is(details, "missing"):
        return _missing_key(data, model, path)
    if _is(details, "union_tag_invalid"):
        return _unknown_tag(details[0])
    if own := [detail["msg"].partition(", ")[2] for detail in details if detail["type"] in _RAISED_BY_MODELS]:
        return "; ".join(dict.fromkeys(own))
    expected = or_list(list(dict.fromkeys(_expected(detail) for detail in details)))
    got = details[0]["input"]
    choices = [choice for detail in details for choice in _choices(detail)]
    hint = nearest(got, choices) if isinstance(got, str) and choices else None
    return f"got {_shown(got)}, expected {expected}" + (f"; did you mean {hint!r}?" if hint else "")


def _unknown_tag(detail: ErrorDetails) -> str:
    """A union's tag that names none of its sections."""
    context = detail.get("ctx", {})
    key, got, choices = str(context["discriminator"]).strip("'"), str(context["tag"]), _choices(detail)
    hint = nearest(got, choices)
    expected = or_list([repr(choice) for choice in choices])
    return f"got {got!r} as its {key}, expected {expected}" + (f"; did you mean {hint!r}?" if hint else "")


def _is(details: list[ErrorDetails], kind: str) -> bool:
    return all(detail["type"] == kind for detail in details)


def _known_keys(data: Any, model: type[BaseModel], path: KeyPath) -> list[str]:
    """The keys that may stand beside `path`."""
    return sorted({name for section in _models_at(model, data, path[:-1]) for name in section.model_fields})


def _meant(data: Any, model: type[BaseModel], path: KeyPath) -> KeyPath:
    """The key that the unknown one at `path` was probably meant to be, or `path` itself."""
    return (*path[:-1], nearest(str(path[-1]), _known_keys(data, model, path)) or path[-1])


def _unknown_key(data: Any, model: type[BaseModel], path: KeyPath) -> str:
    key = str(path[-1])
    known = _known_keys(data, model, path)
    meant = str(_meant(data, model, path)[-1])
    if meant == key:
        # Of a union the same place may have the key in another section; that is no other place.
        here = ".".join(map(str, path))
        meant = next((dotted for dotted in _dotted_keys(model) if dotted.split(".")[-1] == key and dotted != here), key)
    if meant != key:
        return f"unknown key; did you mean {meant!r}?"
    shown = ", ".join(known[:_SHOWN_KEYS]) + (", ..." if len(known) > _SHOWN_KEYS else "")
    return f"unknown key, expected one of: {shown}" if known else "unknown key"


def _missing_key(data: Any, model: type[BaseModel], path: KeyPath) -> str:
    for section in _models_at(model, data, path[:-1]):
        if (info := section.model_fields.get(str(path[-1]))) is not None and info.description:
            return f"the key is missing, expected {info.description}"
    return "the key is missing and has no default"


def _expected(detail: ErrorDetails) -> str:
    text = detail["msg"]
    for pattern, replacement in _EXPECTED:
        text = pattern.sub(replacement, text)
    return text


def _choices(detail: ErrorDetails) -> list[str]:
    """The words that a Literal, an enum or the tag of a union allows."""
    context = detail.get("ctx", {})
    return re.findall(r"'([^']*)'", str(context.get("expected", context.get("expected_tags", ""))))


def _shown(value: Any) -> str:
    text = "a section" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def _models_at(model: type[BaseModel], data: Any, path: KeyPath) -> list[type[BaseModel]]:
    """The sections that may stand at `path`; of a tagged union, those whose tag the data carries."""
    candidates: list[type[BaseModel]] = [model]
    for part in path:
        data = data[part]
        if isinstance(part, str):
            annotations = [c.model_fields[part].annotation for c in candidates if part in c.model_fields]
            candidates = [section for annotation in annotations for section in _sections(annotation)]
        candidates = [section for section in candidates if _tag_fits(section, data)] or candidates
    return candidates


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every section in a type, as in `A | None`, `tuple[A, ...]` or `Annotated[A | B, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _sections(argument)


def _tag_fits(section: type[BaseModel], data: Any) -> bool:
    if not isinstance(data, dict):
        return True
    for name, info in section.model_fields.items():
        literal = typing.get_origin(info.annotation) is typing.Literal
        if literal and name in data and data[name] not in typing.get_args(info.annotation):
            return False
    return True


def _dotted_keys(model: type[BaseModel], prefix: str = "", depth: int = 4) -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield prefix + name
        if depth:
            for section in _sections(info.annotation):
                yield from _dotted_keys(section, f"{prefix}{name}.", depth - 1)

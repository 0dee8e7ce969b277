"""Keys of a Serve config that Ray takes in silence and ignores."""

from __future__ import annotations

import typing
import warnings
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's models are written for an older pydantic
    from ray.runtime_env import RuntimeEnv
    from ray.serve.schema import ServeDeploySchema

# Values of these are the application's own.
_FREE = {"args", "user_config"}


def serve_config_problems(config: dict[str, Any]) -> list[str]:
    """Unknown keys, then what Ray itself refuses."""
    found = list(_unknown(config, ServeDeploySchema, ()))
    if not found:
        try:
            ServeDeploySchema.model_validate(config)
        except ValidationError as error:
            found = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
    return found


def _unknown(data: Any, model: type[BaseModel], path: tuple[str, ...]) -> Iterator[str]:
    fields = {info.alias or name: info.annotation for name, info in model.model_fields.items()}
    for key in sorted(data):
        here = (*path, str(key))
        if key not in fields:
            yield f"{'.'.join(here)}: unknown key"
        elif key == "runtime_env" and isinstance(data[key], dict):
            unknown = sorted(set(data[key]) - RuntimeEnv.known_fields)
            yield from (f"{'.'.join((*here, one))}: unknown key" for one in unknown)
        elif key not in _FREE:
            yield from _inside(data[key], fields[key], here)


def _inside(value: Any, annotation: Any, path: tuple[str, ...]) -> Iterator[str]:
    models = list(_models(annotation))
    if not models:
        return
    if isinstance(value, list):
        for index, one in enumerate(value):
            yield from _inside(one, annotation, (*path, str(index)))
    elif isinstance(value, dict):
        yield from _unknown(value, models[0], path)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)

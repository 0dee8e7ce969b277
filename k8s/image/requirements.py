"""Print what a pyproject.toml asks for, with some of its extras: `python requirements.py pyproject.toml EXTRA...`."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """The dependencies, and those of `extras`; an extra that names another one by the project's own name brings it."""
    project = tomllib.loads(pyproject.read_text())["project"]
    found = list(project["dependencies"])
    waiting = list(extras)
    while waiting:
        for one in project["optional-dependencies"][waiting.pop()]:
            own = re.fullmatch(rf"{project['name']}\[([\w,-]+)\]", one)
            if own:
                waiting += own[1].split(",")
            else:
                found.append(one)
    return found


if __name__ == "__main__":
    print("\n".join(requirements(Path(sys.argv[1]), sys.argv[2:])))

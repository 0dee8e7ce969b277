"""The command line, `imprint`. Each command is one module; what it needs is imported when it runs."""

from imprint.cli.app import main

__all__ = ["main"]

"""The command line, `imprint`. Each command is one module; what it needs is imported when it runs."""

from imprint.cli.app import app, main

__all__ = ["app", "main"]

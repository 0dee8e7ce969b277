"""Imprint: teach a text-to-image model your subject in seconds."""

__version__ = "0.1.0"

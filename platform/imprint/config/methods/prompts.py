"""Prompts that training and tuning draw from."""

DEFAULT_TEMPLATES = (
    "<concept>",
    "a photo of <concept>",
    "a picture of <concept>",
    "an image of <concept>",
)

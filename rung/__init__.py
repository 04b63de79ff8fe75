"""Rung raises a language model from raw text to an aligned assistant, one stage at a time."""

__version__ = "0.1.0"

"""Tiny models and toy drafters for tests of plugins and of the core itself. Nothing here needs a network or a file."""

from .drafters import Branching, Oracle, Scripted, TableDrafter
from .tiny import tiny_model, tiny_tokenizer

__all__ = ["Branching", "Oracle", "Scripted", "TableDrafter", "tiny_model", "tiny_tokenizer"]

"""For tests of plugins and of the core itself: tiny models, toy drafters and the conformance kit.

Nothing here needs a network or a file.
"""

from .drafters import Branching, Oracle, Scripted, TableDrafter
from .kit import Check, ConformanceError, Result, conformance, run
from .subject import Subject, TinyTarget
from .tiny import tiny_model, tiny_tokenizer

__all__ = [
    "Branching",
    "Check",
    "ConformanceError",
    "Oracle",
    "Result",
    "Scripted",
    "Subject",
    "TableDrafter",
    "TinyTarget",
    "conformance",
    "run",
    "tiny_model",
    "tiny_tokenizer",
]

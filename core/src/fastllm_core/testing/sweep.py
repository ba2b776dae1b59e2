"""Does a family work? Every column of docs/models.md for a tiny model of it, or the sentence that refuses it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..errors import UnsupportedModel
from ..weights import check_architecture
from .equality import check
from .families import Family

Outcome = Literal["works", "in part", "refused", "broken", "not built"]


@dataclass(frozen=True)
class Finding:
    """What became of one family."""

    outcome: Outcome
    reason: str = ""
    """Why it is refused, or could not be built at all."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """By column: "" where all is equal, "refused: ...", or what differs."""


def examine(family: Family) -> Finding:
    """Build a family's tiny model and run every check on it.

    "broken" is what works in transformers and neither works here nor is refused.
    """
    try:
        config = family.config()
        check_architecture(family.model_type, config, ())
        model = family.model()
    except UnsupportedModel as error:
        return Finding("refused", _bare(error))
    except Exception as error:
        return Finding("not built", _line(error))
    try:
        columns = check(model)
    except UnsupportedModel as error:
        return Finding("refused", _bare(error))
    except Exception as error:
        return Finding("broken", _line(error))
    failed = [text for text in columns.values() if text and not text.startswith("refused: ")]
    return Finding("broken" if failed else "in part" if any(columns.values()) else "works", columns=columns)


def _bare(error: UnsupportedModel) -> str:
    """The sentence without the model's name: it is the family that is refused."""
    return str(error).partition(") ")[2] or str(error)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()).partition('. ')[0][:160]}"

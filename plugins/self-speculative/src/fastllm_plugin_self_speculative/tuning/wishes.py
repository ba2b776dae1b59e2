"""What a search was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastllm_core import Config, ConfigError

from .objective import OBJECTIVES
from .space import SPACES
from .strategy import STRATEGIES


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was asked for; see `fastllm tune layers --help`."""

    config: Config
    objective: str = OBJECTIVES[0]
    searches: Sequence[str] = (STRATEGIES[0],)
    space: str = "sublayers"
    trials: int = 200
    minutes: float | None = None
    prompts: Path | None = None
    limit: int | None = None
    new_tokens: int = 64
    longest: int = 8
    most: float = 0.5
    costs: Path | None = None
    finalists: int = 3
    repeats: int = 5
    seed: int = 0
    output: Path | None = None
    fresh: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError if a name does not exist."""
        known = {"objective": OBJECTIVES, "space": tuple(SPACES), "search": STRATEGIES}
        for option, names in (("objective", [self.objective]), ("space", [self.space]), ("search", self.searches)):
            for name in names:
                if name not in known[option]:
                    raise ConfigError(f"--{option} {name}: does not exist; choose from {', '.join(known[option])}")
        if not self.searches:
            raise ConfigError(f"--search: name at least one of {', '.join(STRATEGIES)}")

"""Bayesian optimisation by Optuna: one suggestion from what is known.

Optuna, because it is maintained and released every few months, asks and tells without owning the loop, takes known
trials as they are, and has both models that people use for this: tree-structured Parzen estimators, which fit many
yes-or-no choices, and Gaussian processes (what the paper used). The package that the paper used optimises real numbers,
which had to be rounded; BoTorch and Ax bring a dependency tree as large as the rest of fastllm.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Final

from fastllm_core import ConfigError

from .space import Bounds, Values

SAMPLERS: Final = ("tpe", "gp")
STARTUP: Final = 4
"""Known trials below which a suggestion is a random draw."""


def suggested(sampler: str, bounds: Bounds, told: Sequence[tuple[Values, float]], seed: int) -> Values:
    """The values to try next. The same arguments give the same answer: nothing is kept between two calls.

    told: values and what came of them, larger being better.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that parts of a sampler may change in later releases; the pin is for that
        study = optuna.create_study(direction="maximize", sampler=_sampler(sampler, seed))
        choices = {name: _choice(low, high) for name, (low, high) in bounds.items()}
        study.add_trials(
            [optuna.create_trial(params=dict(values), distributions=choices, value=value) for values, value in told]
        )
        found: Mapping[str, Any] = study.ask(choices).params
    return {name: int(value) for name, value in found.items()}


def _sampler(name: str, seed: int) -> Any:
    import optuna

    if name == "gp":
        _need_scipy()
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP, deterministic_objective=True)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True)


def _need_scipy() -> None:
    if find_spec("scipy") is None:
        raise ConfigError('--search gp: needs scipy; pip install "fastllm-plugin-self-speculative[gp]"')


def _choice(low: int, high: int) -> Any:
    import optuna

    if (low, high) == (0, 1):
        return optuna.distributions.CategoricalDistribution((0, 1))
    return optuna.distributions.IntDistribution(low, high)

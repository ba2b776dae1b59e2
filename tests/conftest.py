"""What the tests of the whole share."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

HEROES = ("little dog", "brave girl named Mia", "small red car", "boy named Tom", "friendly bear")
PLACES = ("in the park", "by the sea", "in a big forest", "at the old farm", "on a high hill")
DEEDS = ("found a shiny key", "lost a toy", "wanted to fly", "met a new friend")
OPENINGS = (
    "Once upon a time, there was a {hero} who lived {place}. One day, the {hero} {deed}",
    "A {hero} {deed} {place}.",
)


@pytest.fixture(scope="session")
def story_openings() -> Callable[[int], list[str]]:
    """`story_openings(n)`: different beginnings of stories, in a mixed order, some of them cut after a word or two."""
    return _story_openings


def _story_openings(count: int) -> list[str]:
    stories = [
        opening.format(hero=hero, place=place, deed=deed)
        for opening, hero, place, deed in itertools.product(OPENINGS, HEROES, PLACES, DEEDS)
    ]
    rng = random.Random(1)
    rng.shuffle(stories)
    openings: dict[str, None] = {}
    for story in stories:
        words = story.split()
        openings[" ".join(words[: rng.randrange(1, len(words) + 1)])] = None
        openings[story] = None
    return list(openings)[:count]

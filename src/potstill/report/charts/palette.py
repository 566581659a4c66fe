"""One look for each method, the same in every chart, figure and table of every study.

Colours are Okabe and Ito's, which any colour vision can tell apart, a few of them moved until they
are visible on white and on black alike. The dash shows who writes the training text, so that colour
is never the only sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from potstill.algorithms.methods import METHODS
from potstill.algorithms.recipe import Recipe

COLOURS = (
    "#2a7fc1",  # blue
    "#e69f00",  # orange
    "#009e73",  # green
    "#d55e00",  # vermilion
    "#56b4e9",  # sky
    "#cc79a7",  # purple
    "#a89a1b",  # yellow, darkened
    "#8f6fd8",  # violet, for their black
)
SOLID, MIXED, TEACHER = (1, 0), (6, 4), (2, 3)  # who writes: the student, both, the teacher
OWN = ((7, 3, 2, 3), (10, 3), (10, 3, 2, 3))  # a study's own recipes


@dataclass(frozen=True)
class Look:
    """The style of a method's lines."""

    colour: str
    dash: tuple[int, ...]  # strokes and gaps, as SVG has them


def looks(known: Sequence[str]) -> dict[str, Look]:
    """A look for every name in `known`, built-in methods first."""
    styles = {}
    for i, name in enumerate(known):
        turn = (i - len(METHODS)) // len(COLOURS)
        dash = _writers(METHODS[name]) if name in METHODS else OWN[turn % len(OWN)]
        styles[name] = Look(COLOURS[i % len(COLOURS)], dash)
    return styles


def _writers(recipe: Recipe) -> tuple[int, ...]:
    if not recipe.uses_teacher:
        return SOLID
    return MIXED if recipe.uses_student else TEACHER

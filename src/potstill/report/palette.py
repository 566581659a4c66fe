"""One look for each method, the same in every chart, figure and table of every study.

Colours are Okabe and Ito's, told apart with any colour vision, a few of them moved until they
stand out on white and on black alike. The dash says who writes the training text, so that colour
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
SOLID, MIXED, TEACHER = "solid", "dash", "dot"
ARRAYS = {
    "solid": "none",
    "dash": "6 4",
    "dot": "2 3",
    "dashdot": "7 3 2 3",
    "longdash": "10 3",
    "longdashdot": "10 3 2 3",
}
OWN = ("dashdot", "longdash", "longdashdot")


@dataclass(frozen=True)
class Look:
    """How a method's lines are drawn."""

    colour: str
    dash: str  # plotly's names

    @property
    def array(self) -> str:
        """The dash as an SVG stroke-dasharray."""
        return ARRAYS[self.dash]


def looks(known: Sequence[str], recipes: dict[str, Recipe]) -> dict[str, Look]:
    """A look for every name in `known`, a study's own recipes last, with dashes of their own."""
    found = {}
    for i, name in enumerate(known):
        turn = (i - len(METHODS)) // len(COLOURS)
        dash = _writers(METHODS[name]) if name in METHODS else OWN[turn % len(OWN)]
        found[name] = Look(COLOURS[i % len(COLOURS)], dash)
    return found


def _writers(recipe: Recipe) -> str:
    if not recipe.uses_teacher:
        return SOLID
    return MIXED if recipe.uses_student else TEACHER

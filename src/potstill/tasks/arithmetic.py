"""`arithmetic`: generated word problems in GSM8K's answer format, for tiny models and honest
tests.

A story starts with a number of things and gains or loses some, `difficulty` times over. The
worked answer has one line a step and ends with `#### n`. Every problem's numbers hash into
exactly one split, so that train, dev and test cannot share an expression, whatever their seeds
and sizes. `dev` exists to choose settings on: no reported study grades on it. It leaves out
multiplication and division, which models of a million parameters do not learn in minutes.

Each problem has a key `first`, "gain" or "loss", by which several teachers can share them.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from potstill.errors import PotstillError
from potstill.tasks.grading import grade_number
from potstill.types import Grade, Problem

Split = Literal["train", "dev", "test"]
Style = Literal["words", "expressions"]

NAMES = ("Ann", "Ben", "Eva", "Jon", "Lea", "Max", "Mia", "Tom")
THINGS = ("apples", "books", "cards", "coins", "nuts", "pens", "shells", "stamps")
GAINS = ("finds", "buys", "gets", "wins")
LOSSES = ("loses", "sells", "gives away", "drops")


def split_of(expression: str) -> Split:
    """The one split that an expression such as "47+38-19" belongs to: 80 / 10 / 10 by its hash."""
    bucket = zlib.crc32(expression.encode()) % 10
    return "test" if bucket == 0 else "dev" if bucket == 1 else "train"


def _keys(expression: str) -> dict[str, str]:
    """What a problem has beside its question and answer.

    >>> _keys("47-38+19")
    {'first': 'loss'}
    """
    return {"first": "gain" if expression.lstrip("0123456789").startswith("+") else "loss"}


@dataclass(frozen=True)
class Arithmetic:
    """Word problems over chained sums.

    Args:
        difficulty: operations per problem, 1 to 8.
        digits: digits of each operand, 1 to 4.
        style: "words" (a short story) or "expressions" (`47+38-19=`).
        seed: picks the problems; the splits stay disjoint across seeds.
        train_size: training problems.
        test_size: held-out problems that can be graded on.
        held_out: "dev" grades on the dev split instead, to choose settings without touching test.
    """

    difficulty: int = 2
    digits: int = 2
    style: Style = "words"
    seed: int = 0
    train_size: int = 5000
    test_size: int = 1000
    held_out: Literal["test", "dev"] = "test"

    name = "arithmetic"

    @cached_property
    def train(self) -> Sequence[Problem]:
        return self.problems("train", self.train_size)

    @cached_property
    def test(self) -> Sequence[Problem]:
        return self.problems(self.held_out, self.test_size)

    def grade(self, problem: Problem, text: str) -> Grade:
        return grade_number(problem.answer, text)

    def __post_init__(self) -> None:
        for key, low, high in (
            ("difficulty", 1, 8),
            ("digits", 1, 4),
            ("train_size", 1, 10**6),
            ("test_size", 1, 10**5),
        ):
            value = getattr(self, key)
            if not low <= value <= high:
                raise PotstillError(
                    f"arithmetic's {key} is {low} to {high}, got {value}", f"set task.{key}"
                )

    def problems(self, split: Split, count: int) -> list[Problem]:
        """The first `count` distinct problems of a split, the same for the same seed."""
        rng = random.Random(f"{split}:{self.seed}:{self.difficulty}:{self.digits}")
        seen: dict[str, Problem] = {}
        for _ in range(200 * count + 10_000):
            if len(seen) == count:
                return list(seen.values())
            expression, steps, total = self._expression(rng)
            if split_of(expression) == split and expression not in seen:
                question = (
                    self._story(rng, expression) if self.style == "words" else f"{expression}="
                )
                solution = "\n".join([*steps, f"#### {total}"])
                seen[expression] = Problem(
                    f"{split}-{len(seen)}", question, str(total), solution, _keys(expression)
                )
        raise PotstillError(
            f"arithmetic has fewer than {count} {split} problems at difficulty {self.difficulty} "
            f"and {self.digits} digits",
            "ask for fewer problems, or raise difficulty or digits",
        )

    def _expression(self, rng: random.Random) -> tuple[str, list[str], int]:
        low, high = 10 ** (self.digits - 1), 10**self.digits - 1
        total = rng.randint(low, high)
        text, steps = str(total), []
        for _ in range(self.difficulty):
            operand = rng.randint(low, high)
            sign = "-" if operand <= total and rng.random() < 0.5 else "+"
            result = total + operand if sign == "+" else total - operand
            steps.append(f"{total}{sign}{operand}={result}")
            text += f"{sign}{operand}"
            total = result
        return text, steps, total

    @staticmethod
    def _story(rng: random.Random, expression: str) -> str:
        name, things = rng.choice(NAMES), rng.choice(THINGS)
        first, *rest = expression.replace("+", " +").replace("-", " -").split()
        parts = [f"{rng.choice(GAINS if term[0] == '+' else LOSSES)} {term[1:]}" for term in rest]
        deeds = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]
        return f"{name} has {first} {things}, {deeds}. How many {things} does {name} have?"

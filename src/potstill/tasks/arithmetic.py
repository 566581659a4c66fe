"""`arithmetic`: generated word problems in GSM8K's answer format, for tiny models.

A story starts with a number of things and gains or loses some, `difficulty` times over. The
worked answer has one line a step and ends with `#### n`. Every problem's numbers hash into
exactly one split, so that train, dev and test share no expression, whatever their seeds and
sizes. The dev split is for choosing settings: no reported study is evaluated on it. It leaves out
multiplication and division, which models of a million parameters do not learn in minutes.

Each problem has a key `first`, "gain" or "loss", by which it can be given to one of several
teachers.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from potstill.errors import PotstillError
from potstill.fields import CLOSED, limits, reported
from potstill.problems import Grade, Problem
from potstill.tasks.grading import grade_number

Split = Literal["train", "dev", "test"]
Style = Literal["words", "expressions"]

SHARES: dict[Split, float] = {"train": 0.8, "dev": 0.1, "test": 0.1}  # of all expressions
PATIENCE = 50_000  # draws without a new problem, after which there are no more

NAMES = ("Ann", "Ben", "Eva", "Jon", "Lea", "Max", "Mia", "Tom")
THINGS = ("apples", "books", "cards", "coins", "nuts", "pens", "shells", "stamps")
GAINS = ("finds", "buys", "gets", "wins")
LOSSES = ("loses", "sells", "gives away", "drops")


def split_of(expression: str) -> Split:
    """The one split that an expression such as "47+38-19" belongs to: 80 / 10 / 10 by its hash."""
    bucket = zlib.crc32(expression.encode()) % 10
    return "test" if bucket == 0 else "dev" if bucket == 1 else "train"


def _keys(expression: str) -> dict[str, str]:
    """The keys of a problem besides its question and answer.

    >>> _keys("47-38+19")
    {'first': 'loss'}
    """
    return {"first": "gain" if expression.lstrip("0123456789").startswith("+") else "loss"}


@reported('task "arithmetic"')
@dataclass(frozen=True, config=CLOSED)
class Arithmetic:
    """Word problems over chained sums.

    Args:
        difficulty: operations per problem, 1 to 8.
        digits: digits of each operand, 1 to 4.
        style: "words" (a short story) or "expressions" (`47+38-19=`).
        seed: picks the problems; the splits stay disjoint across seeds.
        train_size: number of training problems.
        test_size: number of held-out problems.
        held_out: "dev" takes the held-out problems from the dev split, to choose settings without
            touching test.
    """

    difficulty: Annotated[int, limits("1 to 8 operations", ge=1, le=8, strict=True)] = 2
    digits: Annotated[int, limits("1 to 4 digits", ge=1, le=4, strict=True)] = 2
    style: Style = "words"
    seed: Annotated[int, limits("below 2**63", gt=-(2**63), lt=2**63, strict=True)] = 0
    train_size: Annotated[int, limits("1 to 1,000,000 problems", ge=1, le=10**6, strict=True)] = (
        5000
    )
    test_size: Annotated[int, limits("1 to 100,000 problems", ge=1, le=10**5, strict=True)] = 1000
    held_out: Literal["test", "dev"] = "test"

    name = "arithmetic"

    @cached_property
    def train(self) -> Sequence[Problem]:
        return self.problems("train", self.train_size)

    @cached_property
    def test(self) -> Sequence[Problem]:
        return self.problems(self.held_out, self.test_size)

    @property
    def graded(self) -> bool:
        return True

    def grade(self, problem: Problem, text: str) -> Grade:
        return grade_number(problem.answer, text)

    def problems(self, split: Split, count: int) -> list[Problem]:
        """The first `count` distinct problems of a split, the same for the same seed."""
        rng = random.Random(f"{split}:{self.seed}:{self.difficulty}:{self.digits}")
        distinct: dict[str, Problem] = {}
        new = 0  # the draw that gave the last problem
        for draw in range(0 if count > self._most(split) else 200 * count + 10_000):
            if len(distinct) == count:
                return list(distinct.values())
            if draw - new > PATIENCE:
                break
            expression, steps, total = self._expression(rng)
            if split_of(expression) == split and expression not in distinct:
                question = (
                    self._story(rng, expression) if self.style == "words" else f"{expression}="
                )
                solution = "\n".join([*steps, f"#### {total}"])
                new = draw
                distinct[expression] = Problem(
                    f"{split}-{len(distinct)}", question, str(total), solution, _keys(expression)
                )
        raise PotstillError(
            f"arithmetic has fewer than {count} {split} problems at difficulty {self.difficulty} "
            f"and {self.digits} digits",
            "ask for fewer problems, or raise difficulty or digits",
        )

    def _most(self, split: Split) -> float:
        """A bound on the number of a split's problems, so that nothing looks for more in vain."""
        low, high = 10 ** (self.digits - 1), 10**self.digits - 1
        counts = np.ones(high + 1)  # of expressions by total
        counts[:low] = 0
        for _ in range(self.difficulty):
            size = len(counts)
            below = np.concatenate([[0.0], np.cumsum(counts)])  # of totals below i
            to = np.arange(size + high)
            added = below[np.clip(to - low + 1, 0, size)] - below[np.clip(to - high, 0, size)]
            taken = below[np.minimum(to + high + 1, size)] - below[np.minimum(to + low, size)]
            counts = added + taken
        mean = SHARES[split] * float(counts.sum())
        return mean + 6 * math.sqrt(mean)  # a split has its share by chance

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

"""Problems that are in two sets: training problems that are also evaluated on.

Two questions are the same where they differ in white space alone. It leaves out paraphrases.
"""

from __future__ import annotations

from collections.abc import Iterable

from potstill.problems import Problem


def question_key(text: str) -> str:
    """A text with its white space folded, for comparison.

    >>> question_key(" 2  +\\n2?") == question_key("2 + 2?")
    True
    """
    return " ".join(text.split())


def overlap(train: Iterable[Problem], held_out: Iterable[Problem]) -> list[tuple[Problem, Problem]]:
    """Held-out problems whose question is trained on, each with such a training problem.

    Args:
        train: the training problems.
        held_out: the problems of an evaluation.
    """
    trained = {question_key(problem.question): problem for problem in train}
    keys = ((problem, question_key(problem.question)) for problem in held_out)
    return [(problem, trained[key]) for problem, key in keys if key in trained]

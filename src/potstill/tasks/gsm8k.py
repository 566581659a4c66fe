"""`gsm8k`: grade-school maths word problems, from the hub or from files in the published format.

Source: Cobbe et al., arXiv 2110.14168. The calculator marks `<<a+b=c>>` are dropped from the
worked solutions. It leaves out few-shot prompting.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from potstill.errors import PotstillError
from potstill.fields import CLOSED, reported
from potstill.problems import Grade, Problem
from potstill.tasks.graders import Grader, GraderOption, checked, load_grader
from potstill.tasks.grading import strict_number
from potstill.tasks.strict_json import read_jsonl, with_question

HUB = "openai/gsm8k"
MARK = re.compile(r"<<(?:(?!<<).)*?>>")  # a calculator mark, which has no other in it


@reported('task "gsm8k"')
@dataclass(frozen=True, config=CLOSED)
class GSM8K:
    """GSM8K with its own train and test split.

    Args:
        train_path: local JSON Lines in the published format; empty loads the hub's train split.
        test_path: the same for the test split.
        prompt: the text that the model reads, with `{question}` in the question's place.
        grade: another grader than "gsm8k", see `potstill ls graders`.
    """

    train_path: str = ""
    test_path: str = ""
    prompt: Annotated[str, AfterValidator(with_question)] = (
        "{question}\nReason step by step and end with the answer after ####."
    )
    grader: GraderOption = None

    name = "gsm8k"
    graded = True

    @cached_property
    def train(self) -> Sequence[Problem]:
        return self._problems("train", self.train_path)

    @cached_property
    def test(self) -> Sequence[Problem]:
        return self._problems("test", self.test_path)

    @cached_property
    def graded_by(self) -> Grader:
        """The grader."""
        own: Grader | None = self.grader
        return own or load_grader("gsm8k")

    def grade(self, problem: Problem, text: str) -> Grade:
        return self.graded_by.grade(problem, text)

    def _problems(self, split: str, path: str) -> list[Problem]:
        rows = read_jsonl(path, ("question", "answer")) if path else _hub(split)
        problems = []
        for n, row in enumerate(rows, 1):
            number = strict_number(row["answer"])
            if number is None:
                raise PotstillError(
                    f"{path or HUB}, line {n}: a GSM8K answer ends with '#### number', got "
                    f"{row['answer'][-40:]!r}",
                    'for answers of another form use task = "jsonl"',
                )
            question = self.prompt.replace("{question}", row["question"])
            solution = MARK.sub("", row["answer"])
            problem = Problem(f"{split}-{n - 1}", question, str(number), solution)
            problems.append(checked(self.graded_by, problem, f"{path or HUB}, line {n}"))
        return problems


def _hub(split: str) -> list[dict[str, Any]]:
    from datasets import load_dataset

    try:
        return list(load_dataset(HUB, "main", split=split))
    except Exception as error:  # whatever the hub client raises, the remedy is the same
        raise PotstillError(
            f"cannot load {HUB} from the hub: {type(error).__name__}: {error}",
            "check the network, or set task.train_path and task.test_path to local JSONL files",
        ) from error

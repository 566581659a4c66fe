"""`jsonl`: a user's own prompts and answers, one JSON object a line.

The file is read as a whole and validated line by line before anything else happens; an error names
the line by its number. Other formats and shapes are read by the task `data`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from potstill.errors import PotstillError
from potstill.fields import CLOSED, brief, reported
from potstill.problems import Grade, Problem
from potstill.tasks.graders import Grader, GraderOption, checked, load_grader
from potstill.tasks.strict_json import as_text, with_question
from potstill.tasks.strict_json import read_jsonl as read_jsonl


@reported('task "jsonl"')
@dataclass(frozen=True, config=CLOSED)
class Jsonl:
    """Problems from two files of one JSON object a line.

    A record may have a worked "solution", and other keys for a context or for choosing its teacher.

    Args:
        train_path: file of the training problems.
        test_path: file of the held-out problems.
        match: "numeric" grades the number after #### (strict) and the last number (flexible);
            "exact" compares the text.
        grade: another grader in the place of `match`, see `potstill ls graders`.
        question_key: the key of the question.
        answer_key: the key of the reference answer.
        prompt: the text that the model reads, with `{question}` in the question's place.
    """

    train_path: str
    test_path: str
    match: Literal["exact", "numeric"] = "exact"
    question_key: str = "question"
    answer_key: str = "answer"
    prompt: Annotated[str, AfterValidator(with_question)] = "{question}"
    grader: GraderOption = None

    name = "jsonl"
    graded = True

    def __post_init__(self) -> None:
        if self.question_key == self.answer_key:
            raise PotstillError(
                f"question_key and answer_key are two keys, got {brief(self.answer_key)} twice",
                "name the key of each",
            )
        if self.grader is not None and self.match != "exact":
            raise PotstillError(
                f'match = "{self.match}" and grade are two graders', "leave one of them out"
            )

    @cached_property
    def train(self) -> Sequence[Problem]:
        return self._problems(self.train_path, "train")

    @cached_property
    def test(self) -> Sequence[Problem]:
        return self._problems(self.test_path, "test")

    @cached_property
    def graded_by(self) -> Grader:
        """The grader."""
        own: Grader | None = self.grader
        return own or load_grader("gsm8k" if self.match == "numeric" else "exact")

    def grade(self, problem: Problem, text: str) -> Grade:
        return self.graded_by.grade(problem, text)

    def _problems(self, path: str, split: str) -> list[Problem]:
        rows = read_jsonl(path, (self.question_key, self.answer_key))
        problems = []
        for n, row in enumerate(rows, 1):
            answer = row[self.answer_key]
            if self.match == "numeric":
                answer = answer.rsplit("####", 1)[-1].strip()
            question = self.prompt.replace("{question}", row[self.question_key])
            own = {self.question_key, self.answer_key}
            rest = {key: as_text(value) for key, value in row.items() if key not in own}
            solution = rest.pop("solution", "")
            problem = Problem(f"{split}-{n - 1}", question, answer, solution, rest)
            problems.append(checked(self.graded_by, problem, f"{path}, line {n}"))
        return problems

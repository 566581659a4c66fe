"""`gsm8k` and `lm_eval`: two readings of GSM8K's answers, which differ in small things.

`gsm8k` compares numbers: 12.0 is 12. `lm_eval` compares text as lm-evaluation-harness 0.4 does in
its task gsm8k, version 3.0: stop strings, the filters strict-match and flexible-extract, and
exact_match with its four expressions to ignore. It leaves out the few-shot prompt.
"""

from __future__ import annotations

import re

from pydantic.dataclasses import dataclass

from potstill.fields import CLOSED, reported
from potstill.problems import Grade, Problem
from potstill.tasks.graders.base import Identified, need_reference
from potstill.tasks.grading import grade_number, to_number

THOUSANDS = re.compile(r"[^,\d]*\d{1,3}(,\d{3})+(\.\d*)?[^\d,]*|[^,]*")

STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
INVALID = "[invalid]"
MARK = "#### "
UNTIL = ("Question:", "</s>", "<|im_end|>")


@reported('grader "gsm8k"')
@dataclass(frozen=True, config=CLOSED)
class GSM8KNumber(Identified):
    """The number after the first #### (strict), the last number (flexible); equal as numbers."""

    name = "gsm8k"

    def grade(self, problem: Problem, text: str) -> Grade:
        grade = grade_number(problem.answer, text)
        return Grade(float(grade.strict), float(grade.flexible), grade.format)

    def check(self, problem: Problem) -> None:
        answer = problem.answer
        if to_number(answer) is None:
            raise self.refuse(problem, "a numeric answer is a number", HINT)
        if not THOUSANDS.fullmatch(answer):
            raise self.refuse(problem, "a comma separates thousands", DECIMAL_HINT)
        if not grade_number(answer, f"#### {answer}").strict:
            raise self.refuse(problem, "a numeric answer is written in digits", SCIENTIFIC_HINT)


HINT = 'write the number, or set grade = "exact"'
DECIMAL_HINT = 'write 3.14, or set grade = { name = "number", decimal = "," }'
SCIENTIFIC_HINT = 'write all digits, or set grade = "number", which reads 1e16'


@reported('grader "lm_eval"')
@dataclass(frozen=True, config=CLOSED)
class LMEval(Identified):
    """lm-eval's gsm8k: strict-match and flexible-extract with exact_match.

    Args:
        until: strings at which a completion ends, itself left out.
    """

    until: tuple[str, ...] = UNTIL

    name = "lm_eval"

    def grade(self, problem: Problem, text: str) -> Grade:
        for stop in self.until:
            text = text.split(stop)[0] if stop else text
        strict = STRICT.search(text)
        numbers = [a or b for a, b in FLEXIBLE.findall(text)]
        gold = compared(problem.answer)
        first = strict.group(1).strip() if strict else INVALID
        last = numbers[-1].strip() if numbers else INVALID
        same = [float(compared(one) == gold) for one in (first, last)]
        return Grade(same[0], same[1], format=strict is not None)

    def check(self, problem: Problem) -> None:
        need_reference(self, problem)
        answer = compared(problem.answer)
        if not self.grade(problem, f"{MARK}{answer}").strict:
            raise self.refuse(
                problem,
                "lm-eval reads digits with full stops and commas, and compares text",
                'write the number in digits, or set grade = "number"',
            )


def compared(text: str) -> str:
    r"""A text as exact_match compares it: without `,`, `$`, what precedes `#### `, a full stop.

    The expressions are applied in this order; `(?s).*#### ` removes up to the last mark. Texts in
    numpy's arrays have no NUL at their end.

    >>> compared("He pays $1,234.\n#### 1,234."), compared("12.00")
    ('1234', '12.00')
    """
    text = text.replace(",", "").rstrip("\0").replace("$", "").rstrip("\0")
    text = text.rpartition(MARK)[2].rstrip("\0")
    return re.sub(r"\.$", "", text).rstrip("\0").lower()

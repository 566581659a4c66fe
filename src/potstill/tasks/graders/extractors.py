"""Graders that extract the answer: a pattern, a LaTeX box, what follows a mark, the last line.

Each can come before another grader in a list, as in ["boxed", "number"]. Alone it compares what it
extracts with the reference as text.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

import regex
from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from potstill.errors import PotstillError
from potstill.fields import CLOSED, brief, limits, reported
from potstill.problems import Grade, Problem
from potstill.tasks.graders.base import Extracting, GraderError
from potstill.tasks.grading import answer_of, grade_exact

LONGEST = 20_000  # characters of an answer that a box is looked for in, the last ones
_COUNT = re.compile(r"\{(\d+)")
MOST_REPEATS = 100_000  # all {...} of a pattern, multiplied
REFERENCE = "{answer}"


def compiled(pattern: str, **options: Any) -> Any:
    """Validator of a regular expression."""
    least = math.prod(max(1, int(count[:30])) for count in _COUNT.findall(pattern))
    if least > MOST_REPEATS:  # each is a copy of its part in memory
        raise PotstillError(
            f"a pattern repeats its parts at most {MOST_REPEATS:,} times, got {brief(pattern)}",
            "write * or + for a number without a limit",
        )
    try:
        return regex.compile(pattern.replace(REFERENCE, "x"), **options) and pattern
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise PotstillError(
            f"a pattern is a regular expression, got {brief(pattern)}: {error}",
            "write it in single quotes, so that TOML leaves backslashes as they are",
        ) from None


@reported('grader "regex"')
@dataclass(frozen=True, config=CLOSED)
class Regex(Extracting):
    """A regular expression.

    With a group, the group's text is compared with the reference. Without one, or with {answer} in
    it, a completion is right if the pattern matches; {answer} is replaced by the reference.

    Args:
        pattern: of Python's `re`.
        take: the first or the last match.
        ignore_case: of the pattern.
        timeout: seconds of a match; a pattern that takes longer is an error.
    """

    pattern: Annotated[str, AfterValidator(compiled)]
    take: Literal["last", "first"] = "last"
    ignore_case: Annotated[bool, limits("true or false", strict=True)] = False
    timeout: Annotated[float, limits("0.001 to 60 seconds", ge=0.001, le=60, strict=True)] = 1.0

    name = "regex"

    @property
    def _flags(self) -> int:
        return int(regex.IGNORECASE) if self.ignore_case else 0

    @property
    def _compares(self) -> bool:
        """True if a group is compared with the reference."""
        return REFERENCE not in self.pattern and bool(regex.compile(self.pattern).groups)

    def extract(self, text: str) -> str | None:
        return self._match(self.pattern, text, "the text")

    def grade(self, problem: Problem, text: str) -> Grade:
        pattern = self.pattern.replace(REFERENCE, regex.escape(problem.answer.strip()))
        extracted = self._match(pattern, answer_of(text), f'problem "{problem.id}"')
        there = extracted is not None
        if not self._compares:
            return Grade(float(there), float(there))
        grade = grade_exact(problem.answer, extracted or "")
        return Grade(float(there and grade.strict), float(there and grade.flexible), format=there)

    def check(self, problem: Problem) -> None:
        if self._compares or REFERENCE in self.pattern:
            super().check(problem)

    def _match(self, pattern: str, text: str, where: str) -> str | None:
        """The first group of a match, or else the match."""
        try:
            last = None
            for match in regex.finditer(pattern, text, flags=self._flags, timeout=self.timeout):
                last = match
                if self.take == "first":
                    break
        except TimeoutError:
            raise GraderError(
                f'grader "regex" takes more than {self.timeout:g} seconds on {where}: '
                f"{brief(self.pattern)}",
                "write a pattern without nested repeats such as (a+)+, or raise timeout",
            ) from None
        if last is None:
            return None
        groups = [group for group in last.groups() if group is not None]
        return str(groups[0] if groups else last[0])


@reported('grader "boxed"')
@dataclass(frozen=True, config=CLOSED)
class Boxed(Extracting):
    r"""The content of the last \boxed{...}, compared as LaTeX text without its spacing."""

    name = "boxed"

    def extract(self, text: str) -> str | None:
        return last_box(text)

    def grade(self, problem: Problem, text: str) -> Grade:
        answer = answer_of(text)
        extracted = self.extract(answer)
        gold = self.extract(problem.answer)
        gold = latex_text(problem.answer if gold is None else gold)
        same = latex_text(answer if extracted is None else extracted) == gold
        return Grade(float(same and extracted is not None), float(same), extracted is not None)


def last_box(text: str) -> str | None:
    r"""The content of the last \boxed or \fbox whose braces close, or None.

    >>> last_box(r"so \boxed{1} or \boxed{\frac{1}{2}}."), last_box(r"\boxed 7 and \boxed{")
    ('\\frac{1}{2}', '7')
    """
    text, last = text[-LONGEST:], None
    starts: list[int | None] = []  # of open braces: where a box's content begins, None: no box
    for match in _BRACE.finditer(text):
        if match[1]:
            last = match[1]
        elif match[0] == "}":
            start = starts.pop() if starts else None
            if start is not None:  # a box around another one has that one's content
                inside = text[start : match.start()].strip()
                last = last if last and _BOX.match(inside) and inside[-1] == "}" else inside
        elif match[0][0] != "\\" or match[0][1].isalpha():
            starts.append(match.end() if match[0] != "{" else None)
    return last


_BOX = re.compile(r"\\(?:boxed|fbox)\b")
_BRACE = re.compile(r"\\(?:boxed|fbox)(?:[ \t]{0,5}\{|[ \t]{1,5}(\w))|\\[\\{}]|[{}]")


_NOISE = re.compile(r"\\(?:left|right|displaystyle|,|;|:|!| )|[\s$]|\\(?=%)")
_FRAC = re.compile(r"\\[dtc]frac")
_SHORT = re.compile(r"\\frac(\d)(\d)")
_STYLE = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}")


def latex_text(text: str) -> str:
    r"""LaTeX without what does not change its meaning: spacing, sizes, text style.

    >>> latex_text(r"$\dfrac{1}{2}\,\text{ cm}$."), latex_text(r"\frac12")
    ('\\frac{1}{2}cm', '\\frac{1}{2}')
    """
    text = _FRAC.sub(r"\\frac", text)
    text = _NOISE.sub("", _STYLE.sub(r"\1", text))
    return _SHORT.sub(r"\\frac{\1}{\2}", text).rstrip(".")


@reported('grader "after"')
@dataclass(frozen=True, config=CLOSED)
class After(Extracting):
    """The text after a mark, to the end of its line.

    Args:
        mark: such as "####" or "Answer:".
        take: after the first or the last mark.
    """

    mark: Annotated[str, limits("not empty", min_length=1)] = "####"
    take: Literal["last", "first"] = "last"

    name = "after"

    def extract(self, text: str) -> str | None:
        _, mark, rest = (
            text.rpartition(self.mark) if self.take == "last" else text.partition(self.mark)
        )
        lines = rest.strip().splitlines()
        return (lines[0].strip() if lines else "") if mark else None


@reported('grader "line"')
@dataclass(frozen=True, config=CLOSED)
class Line(Extracting):
    """The last line that is not empty, or the first.

    Args:
        take: the first or the last line.
    """

    take: Literal["last", "first"] = "last"

    name = "line"

    def extract(self, text: str) -> str | None:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1 if self.take == "last" else 0] if lines else None

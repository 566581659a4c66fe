"""Render a problem as a prompt for each model, and dispatch calls to several teachers.

The student reads only the problem. The teacher reads it under its own template, after the pair's
context. With several teachers a key of the problem data names the teacher. A prompt keeps the id of
its problem, so two problems with the same question can have different hints and teachers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

from potstill.engines.completions import CompletionEncoder
from potstill.errors import PotstillError
from potstill.problems import Messages, Problem
from potstill.tasks.context.builder import PromptBuilder
from potstill.tasks.grading import THOUGHT
from potstill.types import Datum, Floats, Ids, ModelSpec, Prompt, Reading, Role, is_teacher

T = TypeVar("T")
NO_TEACHER = "the teacher is used, and the pair has none", "name a teacher in the pair's table"
EXAMPLES = 16  # completions by which it is decided how the model begins an answer


class Prompting:
    """Base class of engines: turn problems into prompts."""

    notes: tuple[str, ...] = ()
    _builder: PromptBuilder | None = None
    _route = ""
    two_renderings = False  # whether the teacher reads a question in other words than the student

    has_teacher = True  # false: the pair is a student alone
    eos: frozenset[int]
    vocabulary: int  # ids that are sampled
    student_spec: ModelSpec | None = None  # has the arguments of the student's chat template
    _examples: Sequence[Problem] = ()  # see `expect`

    windows: Mapping[Role, Any] = {}  # positions that "student" and "teacher" have, if known
    tokenizer: Any = None  # of transformers, if the engine has one

    def check_role(self, role: Role) -> None:
        """Raise `PotstillError` for the role of a teacher that the pair does not have."""
        if is_teacher(role) and not self.has_teacher:
            raise PotstillError(*NO_TEACHER)

    def encode(self, text: str | Messages, role: Role = "student") -> Ids:
        """Return prompt ids (P,), see `protocol.Engine`."""
        raise NotImplementedError

    def decode(self, tokens: Ids) -> str:
        """Return the text of ids, see `protocol.Engine`."""
        raise NotImplementedError

    def inform(self, builder: PromptBuilder | None, route: str = "") -> None:
        """Set the teacher's context and the key that selects a teacher, see `protocol.Engine`."""
        self._builder, self._route = builder, route
        self._prompts: dict[str, tuple[Problem, Prompt]] = {}
        if builder:
            self.notes += (f"only the teacher reads a context: {builder.context}",)
        if route:
            self.notes += (f'the problem field "{route}" selects the teacher',)

    def prompt(self, problem: Problem) -> Prompt:
        """Render a problem as each model reads it, and cache it if the teacher has a context."""
        if self._builder is None:
            return self._rendered(problem)
        cached = self._prompts.get(problem.id)  # searching for examples is slow
        if cached is None or not _are_one(cached[0], problem):
            cached = self._prompts[problem.id] = problem, self._rendered(problem)
        return cached[1]

    def _rendered(self, problem: Problem) -> Prompt:
        student = teacher = self.encode(problem.conversation)
        if self._builder:
            teacher = self._teacher_ids(self._builder.conversation(problem))
        elif self.two_renderings:
            teacher = self._teacher_ids(problem.conversation)
        route = problem.text(self._route) if self._route else ""
        return Prompt(student, teacher, problem.id, route)

    def without_context(self, problem: Problem) -> Prompt:
        """Render a problem as if the teacher had no context."""
        builder, self._builder = self._builder, None
        try:
            return self._rendered(problem)
        finally:
            self._builder = builder

    @property
    def has_context(self) -> bool:
        """True if the teacher reads a context."""
        return self._builder is not None

    def expect(self, problems: Sequence[Problem]) -> None:
        """Name the problems whose completions `encode_completion` will be asked for."""
        self._examples = problems

    def encode_completion(self, prompt: Prompt, text: str) -> Ids:
        """The ids (T,) of a completion of the data, see `protocol.Engine`."""
        try:
            ways = self._completions.ways(text, self.rendered(prompt, "student"))
        except PotstillError as error:
            raise PotstillError(f"{prompt.problem}: {error}", error.hint) from None
        return ways[-1 if len(ways) > 1 and self._without_space(prompt, text) else 0]

    @cached_property
    def _completions(self) -> CompletionEncoder:
        return CompletionEncoder(self.tokenizer, self.eos, self.vocabulary, self.student_spec)

    _spaceless: bool | None = None
    scorer: Callable[[Role, Sequence[Reading]], list[Floats]] | None = None  # of all processes

    def _without_space(self, prompt: Prompt, text: str) -> bool:
        """True if the model begins an answer without the space that its tokenizer adds.

        It is decided once, by the problems that are known from the start, so that a run that
        continues decides in the same way: by the log-probabilities of the teacher, which is frozen,
        or else of the student.
        """
        if self._spaceless is None:
            examples = islice((p for p in self._examples if p.completions), EXAMPLES)
            known = [(self.prompt(problem), problem.completions[0]) for problem in examples]
            ways = [
                (start, self._completions.ways(answer, self.rendered(start, "student")))
                for start, answer in known or [(prompt, text)]
            ]
            both = [(start, pair) for start, pair in ways if len(pair) > 1]
            role = "teacher" if self.has_teacher else "student"
            with_space, without = (
                (self.scorer or self.score)(role, [(start, pair[i]) for start, pair in both])
                for i in (0, 1)
            )
            gaps = [float(b.sum() - a.sum()) for a, b in zip(with_space, without, strict=True)]
            self._spaceless = sum(gaps) > 0
        return self._spaceless

    def score(self, role: Role, rows: Sequence[Reading]) -> list[Floats]:
        """Return log-probabilities, see `protocol.Engine`."""
        raise NotImplementedError

    def opening(self, prompt: Prompt, role: Role) -> str:
        """The mark of a thought that a prompt has opened, as some chat templates do; else ""."""
        opened = self.rendered(prompt, role).rstrip().endswith(THOUGHT[0])
        return THOUGHT[0] if opened else ""

    def rendered(self, prompt: Prompt, role: Role) -> str:
        """The text of a prompt with its special tokens, for the record."""
        if self.tokenizer is None:
            return self.decode(prompt.read_by(role))
        return str(self.tokenizer.decode(list(prompt.read_by(role))))

    @property
    def special_texts(self) -> list[str]:
        """Special tokens as they are written, those that texts cannot have by chance."""
        if self.tokenizer is None:
            return []
        added = self.tokenizer.added_tokens_decoder.values()
        names = {str(token.content) for token in added if token.special}
        return sorted(name for name in names if len(name) > 2)

    def special_in(self, text: str) -> list[str]:
        """Special tokens that a text contains as they are written."""
        return [name for name in self.special_texts if name in text]

    def unknown_in(self, prompt: Prompt) -> bool:
        """True if a prompt has the token of unknown characters."""
        if self.tokenizer is None:
            return False
        unknown = self.tokenizer.unk_token_id
        ends = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)  # of GPT-2, the same
        return unknown is not None and unknown not in ends and unknown in prompt.student

    def _teacher_ids(self, text: str | Messages) -> Ids:
        """Prompt ids for the teacher, in the student's vocabulary."""
        return self.encode(text, "teacher")


def _are_one(problem: Problem, other: Problem) -> bool:
    """True for one problem, which a table makes anew each time that it is read."""
    return problem is other or (problem == other and problem.extra == other.extra)


def by_reader(
    role: Role, prompts: Sequence[Prompt], call: Callable[[Role, list[int]], list[T]]
) -> list[T]:
    """Group prompts by the model that reads them, and return the results in the prompts' order.

    Args:
        role: the model; "teacher" means the teacher that each prompt selects.
        prompts: the prompts of all results.
        call: maps a model and the indices of its prompts to their results.
    """
    readers = [prompt.reader(role) for prompt in prompts] or [role]
    if len(set(readers)) == 1:
        return call(readers[0], list(range(len(prompts))))
    results: dict[int, T] = {}
    for reader in dict.fromkeys(readers):
        rows = [i for i, name in enumerate(readers) if name == reader]
        results.update(zip(rows, call(reader, rows), strict=True))
    return [results[i] for i in range(len(prompts))]


def addressed(datum: Datum) -> Datum:
    """Replace "teacher" in the losses of a datum by the teacher that its prompt selects."""
    reader = datum.prompt.reader("teacher")
    if reader == "teacher":
        return datum
    terms = tuple(
        replace(term, loss=replace(term.loss, to=reader)) if term.loss.to == "teacher" else term
        for term in datum.terms
    )
    return replace(datum, terms=terms)

"""Builds the teacher's prompt for each problem from a context and a task, and checks both.

The checks need files and problems, and no model: missing documents, examples that are evaluated,
hints that the data lack.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

import numpy as np

from potstill.errors import Errors, PotstillError
from potstill.problems import Messages, Problem
from potstill.tasks import Task
from potstill.tasks.context import Context
from potstill.tasks.context.kinds import Draft, FewShot, Hint, Retrieval
from potstill.tasks.context.retrieval import Search
from potstill.tasks.overlap import overlap, question_key
from potstill.tasks.reading import LONGEST_LINE, read_text
from potstill.tasks.rendering import is_raw
from potstill.tasks.strict_json import as_text, read_jsonl

TEXTS = (".txt", ".md")
MOST_ENTRIES = 100_000  # of a folder; more is not meant, such as all of a disk


class PromptBuilder:
    """Conversations that the teacher reads.

    Args:
        context: the pair's.
        task: training problems, which examples come from, and evaluated problems.
    """

    def __init__(self, context: Context, task: Task) -> None:
        self.context, self.task = context, task
        self._pools: dict[FewShot, Sequence[Problem]] = {}
        self._searches: dict[FewShot | Retrieval, Search] = {}
        self._documents: dict[Retrieval, list[str]] = {}

    @cached_property
    def _held_out(self) -> frozenset[str]:
        return frozenset(problem.id for problem in self.task.test)

    def conversation(self, problem: Problem) -> Messages:
        """The conversation that ends in a problem's question."""
        _check_messages(problem)
        draft = Draft.of(problem)
        for part in reversed(self.context.parts):
            draft = part.add(draft, problem, self)
        return draft.messages()

    def examples(self, part: FewShot, problem: Problem) -> Sequence[Problem]:
        pool = self._pool(part)
        if part.by == "similarity":
            order = self._search(part, (one.question for one in pool)).nearest(
                problem.question, part.n + 1
            )
            order.reverse()  # the nearest comes last, next to the question
            chosen = [one for one in (pool[i] for i in order) if not _is_same(one, problem)]
            return chosen[-part.n :]
        rng = np.random.default_rng([part.seed, len(pool)])
        few = rng.choice(len(pool), min(part.n + 1, len(pool)), replace=False)
        return [one for one in (pool[i] for i in few) if not _is_same(one, problem)][: part.n]

    def documents(self, part: Retrieval, problem: Problem) -> Sequence[str]:
        texts = self._texts(part)
        return [texts[i] for i in self._search(part, texts).nearest(problem.question, part.k)]

    def hint(self, part: Hint, problem: Problem) -> str:
        allowed = part.graded or problem.id not in self._held_out
        return problem.text(part.field) if allowed else ""

    @property
    def contents(self) -> tuple[str, ...]:
        """Everything that the teacher can be shown from files; the task's problems are not."""
        texts: list[str] = []
        for part in self.context.parts:
            if isinstance(part, Retrieval):
                texts += self._texts(part)
            elif isinstance(part, FewShot) and part.path:
                for one in self._pool(part):
                    texts += (one.question, one.answer, one.solution, repr(dict(one.extra)))
        return tuple(texts)

    def check(self, graded: Sequence[Problem]) -> None:
        """Check the task and the files. Opens no model.

        Args:
            graded: the held-out problems that the study evaluates.
        """
        for problem in (*graded, *self.task.train[:1]):
            _check_messages(problem)
        questions = {question_key(problem.question): problem.id for problem in graded}
        errors = Errors()
        for part in self.context.parts:
            with errors:
                if isinstance(part, FewShot):
                    self._check_examples(part, graded)
                elif isinstance(part, Retrieval):
                    self._check_documents(part, questions)
                elif isinstance(part, Hint):
                    self._check_hints(part, graded)
        errors.check()

    def _check_hints(self, part: Hint, graded: Sequence[Problem]) -> None:
        hinted = chain(self.task.train, graded if part.graded else ())
        lacking = [problem.id for problem in hinted if not problem.text(part.field).strip()]
        if lacking:
            count = len(self.task.train) + (len(graded) if part.graded else 0)
            raise PotstillError(
                f'a hint needs "{part.field}" of every problem, {len(lacking)} of '
                f"{count} lack it (first: {lacking[0]})",
                "name a field that the data have, or give the graded ones none with graded = false",
            )

    def _check_examples(self, part: FewShot, graded: Sequence[Problem]) -> None:
        pool = self._pool(part)
        if len(pool) <= part.n:
            raise PotstillError(
                f"few_shot shows {part.n} examples and never the problem itself, there are "
                f"{len(pool)}",
                f"lower n below {len(pool)}, or give more examples",
            )
        shared = [example.id for _, example in overlap(pool, graded)]
        if shared:
            raise PotstillError(
                f"examples are never graded: {len(shared)} of {len(graded)} graded problems are "
                f"among them (first: {shared[0]})",
                f"remove them from {part.path or 'the training problems'}",
            )
        empty = [one.id for one in pool if not part.shown(one).strip()]
        if empty:
            raise PotstillError(
                f'an example shows "{part.answer}", {len(empty)} of {len(pool)} have none '
                f"(first: {empty[0]})",
                "name a field that the data have, or leave answer out",
            )
        if part.by == "similarity":
            self._search(part, (one.question for one in pool))

    def _check_documents(self, part: Retrieval, questions: Mapping[str, str]) -> None:
        texts = self._texts(part)
        if len(texts) < part.k:
            raise PotstillError(
                f"retrieval shows {part.k} documents, {part.path} has {len(texts)}", "lower k"
            )
        for text in map(question_key, texts):
            held = next((name for question, name in questions.items() if question in text), None)
            if held is not None:
                raise PotstillError(
                    f"documents hold no graded problem: {part.path} has the question of {held}",
                    "remove the graded problems from the documents",
                )
        self._search(part, texts)

    def _pool(self, part: FewShot) -> Sequence[Problem]:
        """Where examples come from."""
        if not part.path:
            return self.task.train
        if part not in self._pools:
            rows = read_jsonl(part.path, ("question", "answer"))
            self._pools[part] = [
                Problem(
                    f"{part.path}, line {n}",
                    row["question"],
                    row["answer"],
                    as_text(row.get("solution")),
                    {key: as_text(value) for key, value in row.items()},
                )
                for n, row in enumerate(rows, 1)
            ]
        return self._pools[part]

    def _texts(self, part: Retrieval) -> list[str]:
        if part not in self._documents:
            self._documents[part] = _read(part)
        return self._documents[part]

    def _search(self, part: FewShot | Retrieval, texts: Iterable[str]) -> Search:
        if part not in self._searches:
            self._searches[part] = Search([*texts])
        return self._searches[part]


def _check_messages(problem: Problem) -> None:
    """Raise `PotstillError` for a raw text, which has no messages that a context could precede."""
    if is_raw(problem.messages):
        raise PotstillError(
            f"a context precedes a question or a conversation, {problem.id} is a raw text",
            "leave context out, or map the column of texts to question",
        )


def _is_same(example: Problem, problem: Problem) -> bool:
    """True for the problem itself, which is not one of its examples."""
    return example.question == problem.question and example.messages == problem.messages


def _read(part: Retrieval) -> list[str]:
    """The documents, those of a folder in the order of their names."""
    try:
        path = Path(part.path).expanduser()
        folder = path.is_dir()
        entries = list(islice(path.rglob("*"), MOST_ENTRIES + 1))
        files = sorted(file for file in entries if file.suffix in TEXTS and file.is_file())
    except (OSError, ValueError, RuntimeError) as error:  # a NUL or the ~ of an unknown user
        raise PotstillError(
            f'cannot read the documents in "{part.path}": {error}', "give a folder or a file"
        ) from None
    if not folder:
        return [row[part.key] for row in read_jsonl(path, (part.key,))]
    if len(entries) > MOST_ENTRIES:
        raise PotstillError(
            f'a folder of documents has at most {MOST_ENTRIES:,} entries, "{part.path}" has more',
            "give a smaller folder, or a JSON Lines file",
        )
    texts = [read_text(file, "give texts in UTF-8", LONGEST_LINE).strip() for file in files]
    if not any(texts):
        raise PotstillError(
            f'"{part.path}" holds no document',
            f"give a folder with {' or '.join(TEXTS)} files, or a JSON Lines file",
        )
    return [text for text in texts if text]

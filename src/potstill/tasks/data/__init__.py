"""`data`: the user's own data in any of the usual files, shapes and places.

Files or a data set of the Hub are rows (`sources`, `hub`), rows are problems by the shape of their
columns (`shapes`, `records`), and problems are in a table (`table`), which is memory-mapped where
it is large (`cache`). It leaves out graders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import field
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass

from potstill.errors import PotstillError
from potstill.fields import CLOSED, brief, limits, reported
from potstill.problems import Grade, Problem
from potstill.tasks.data.cache import table_of
from potstill.tasks.data.hub import files_of_split, open_split, rows_of_split
from potstill.tasks.data.records import Reading, Record
from potstill.tasks.data.shapes import check_columns
from potstill.tasks.data.sources import files_of, rows_of
from potstill.tasks.data.splits import arranged, split_keys
from potstill.tasks.data.table import Problems
from potstill.tasks.graders import Grader, load_grader
from potstill.tasks.strict_json import with_question

MOST = 10**9  # rows
NONE = "none"  # the grader of prompts alone
Paths = str | tuple[str, ...]
Count = Annotated[int, limits("0, which is all, or a number of rows", ge=0, le=MOST, strict=True)]


def _columns(columns: dict[str, Paths]) -> dict[str, Paths]:
    check_columns(columns)
    return columns


def _texts(paths: Any) -> Any:
    """Paths of Python as text."""
    if isinstance(paths, list | tuple):
        return [_texts(path) for path in paths]
    return str(paths) if isinstance(paths, Path) else paths


def _grader(spec: Any) -> Any:
    return spec if spec in (None, NONE) else load_grader(spec)


@reported('task "data"')
@dataclass(frozen=True, config=CLOSED)
class Data:
    """Problems from files, folders or a data set of the Hub, in the shape that their columns have.

    Args:
        train_path: file, folder or list of files of the training problems: JSON Lines, JSON, CSV,
            TSV or Parquet, gzipped or not.
        test_path: the same for the held-out problems.
        dataset: a data set of the Hub, OWNER/NAME, or a folder that `datasets` opens.
        subset: its configuration.
        train_split: its split for training.
        test_split: its held-out split.
        revision: its branch, tag or commit.
        columns: names of columns by their role: question, prompt, messages, text, answer,
            completion (one or several), solution, system.
        held_out: the share of the training source that is held out, where there is no test source.
        limit: most training problems; 0: all.
        test_limit: most held-out problems; 0: all.
        shuffle: take both in an order drawn by `seed`, instead of that of the source.
        seed: of `shuffle` and `held_out`.
        system: the text of a system message, for conversations without one.
        prompt: the text that the model reads, with `{question}` in the question's place.
        prompt_words: words of a raw text that are its prompt.
        use_completions: replies and completions of the data are the teacher's in training;
            false: the teacher writes its own.
        grade: the grader, see `potstill ls graders`; "none" for prompts alone. Default: "exact" if
            the held-out data have an answer column, otherwise none.
    """

    train_path: Annotated[Paths, BeforeValidator(_texts)] = ()
    test_path: Annotated[Paths, BeforeValidator(_texts)] = ()
    dataset: str = ""
    subset: str = ""
    train_split: Annotated[str, limits("the name of a split", min_length=1)] = "train"
    test_split: Annotated[str, limits("the name of a split", min_length=1)] = "test"
    revision: str = ""
    columns: Annotated[dict[str, Paths], AfterValidator(_columns)] = field(default_factory=dict)
    held_out: Annotated[float, limits("a share from 0 to below 1", ge=0, lt=1)] = 0.0
    limit: Count = 0
    test_limit: Count = 0
    shuffle: bool = False
    seed: Annotated[int, limits("0 to 2**63 - 1", ge=0, lt=2**63, strict=True)] = 0
    system: str = ""
    prompt: Annotated[str, AfterValidator(with_question)] = "{question}"
    prompt_words: Annotated[int, limits("1 to 100,000 words", ge=1, le=10**5, strict=True)] = 32
    use_completions: bool = True
    grader: Annotated[Any, BeforeValidator(_grader), Field(validation_alias="grade")] = None

    name = "data"

    def __post_init__(self) -> None:
        if bool(self.train_path) == bool(self.dataset):
            got = "both" if self.dataset else "neither"
            raise PotstillError(
                f"data come from train_path or from dataset, got {got}",
                'write train_path = "train.jsonl", or dataset = "openai/gsm8k"',
            )
        if self.test_path and self.held_out:
            raise PotstillError(
                f"held_out is for data without test_path, got {self.held_out:g} and "
                f"{brief(self.test_path)}",
                "leave one of them out",
            )
        if not (self.test_path or self.held_out or self.dataset):
            raise PotstillError(
                "there are no held-out problems: test_path and held_out are not set",
                "write test_path, or held_out = 0.1 for a tenth of the training file",
            )

    @cached_property
    def train(self) -> Sequence[Problem]:
        return self._problems("train")

    @cached_property
    def test(self) -> Sequence[Problem]:
        return self._problems("test")

    @cached_property
    def graded_by(self) -> Grader | None:
        """The grader; None for prompts alone."""
        if self.grader == NONE:
            return None
        if self.grader is not None:
            own: Grader = self.grader
            return own
        answers = pc.any(pc.equal(self._table("test")["given"], "answer")).as_py()
        return load_grader("exact") if answers else None

    @property
    def graded(self) -> bool:
        """True if completions are graded; False for prompts alone."""
        return self.graded_by is not None

    def grade(self, problem: Problem, text: str) -> Grade:
        assert self.graded_by is not None
        return self.graded_by.grade(problem, text)

    def _problems(self, split: str) -> Sequence[Problem]:
        """The problems of a split, arranged and checked."""
        table = self._table(split)
        rows = np.arange(table.num_rows)
        if self.held_out:
            rows = np.nonzero(self._is_held_out == (split == "test"))[0]
        limit = self.limit if split == "train" else self.test_limit
        rows = arranged(rows, limit, self.seed if self.shuffle else None)
        problems = Problems(table, split, rows)
        if split == "test":
            self._check_references(problems)
        return problems

    def _check_references(self, problems: Problems) -> None:
        """Check held-out problems without a reference answer, which some graders do not need."""
        lacking = problems.without_answer()
        if self.graded_by is None or not lacking:
            return
        first = problems[lacking[0]]
        try:
            self.graded_by.check(first)
        except PotstillError as error:
            raise PotstillError(
                f"{len(lacking):,} of {len(problems):,} held-out problems have no reference answer "
                f"(first: {first.id}): {error}",
                'remove them, or write grade = "none" for prompts alone',
            ) from None

    @cached_property
    def _is_held_out(self) -> npt.NDArray[np.bool_]:
        return split_keys(self._table("train")["key"], self.held_out, self.seed)

    @cached_property
    def _tables(self) -> dict[str, pa.Table]:
        return {}

    def _table(self, split: str) -> pa.Table:
        """The table of a split's source."""
        if self.held_out:
            split = "train"  # both are parts of one
        if split not in self._tables:
            self._tables[split] = self._read(split)
        return self._tables[split]

    def _read(self, split: str) -> pa.Table:
        own = self.train_path if split == "train" else self.test_path
        paths = (own,) if isinstance(own, str) and own else tuple(own)
        stop = (self.limit if split == "train" else self.test_limit) or None
        if self.shuffle or self.held_out:
            stop = None  # all of them are needed
        if paths:
            files = [file for path in paths for file in files_of(path)]
            sources = [partial(rows_of, file) for file in files]
            where = paths[0]
        else:
            name = self.train_split if split == "train" else self.test_split
            data = open_split(self.dataset, self.subset, name, self.revision)
            where = f"{self.dataset}, {name}"
            files, sources = files_of_split(data), [partial(rows_of_split, data, where)]

        def records() -> Iterator[Record]:
            read = (r for source in sources for r, _ in self._reading.records(source()))
            yield from islice(read, stop)

        table = table_of(files, (self._reading.identity, stop), records)
        if not table.num_rows:
            raise PotstillError(f'"{where}" is empty', "give at least one row of data")
        return table

    @cached_property
    def _reading(self) -> Reading:
        grader = self.grader or load_grader("exact")
        return Reading(
            self.columns,
            self.system,
            self.prompt,
            self.prompt_words,
            None if grader == NONE else grader,
            self.use_completions,
        )

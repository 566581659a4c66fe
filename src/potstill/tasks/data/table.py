"""Problems in an Arrow table, in memory or in a memory-mapped file; objects are made one by one.

The table has the parts of each problem as texts, its key (see `overlap`) and a digest of all of it,
so that leaks, held-out shares and digests need no object of a problem.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from potstill.problems import Problem
from potstill.tasks.data.records import Record
from potstill.tasks.overlap import KEY, messages_key, problem_key

ROWS = 10_000  # of a batch
MESSAGE = 12  # bytes of an earlier message in JSON, at least
SCHEMA = pa.schema(
    [
        *((name, pa.large_string()) for name in Record._fields),
        ("key", pa.binary(KEY)),
        ("digest", pa.binary(KEY)),
    ]
)


class Problems(Sequence[Problem]):
    """Rows of a table as problems.

    Args:
        table: in the columns of `SCHEMA`.
        split: the first part of ids, such as "train".
        rows: indices of the rows; default: all.
    """

    def __init__(
        self, table: pa.Table, split: str, rows: npt.NDArray[np.int64] | None = None
    ) -> None:
        self.table, self.split = table, split
        self.rows = np.arange(table.num_rows) if rows is None else rows
        self._batches = table.select(Record._fields).to_batches()
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Problem: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Problem]: ...

    def __getitem__(self, index: int | slice) -> Problem | Sequence[Problem]:
        if isinstance(index, slice):
            return Problems(self.table, self.split, self.rows[index])
        return next(self._problems(self.rows[[index]]))

    def __iter__(self) -> Iterator[Problem]:
        for start in range(0, len(self.rows), ROWS):
            yield from self._problems(self.rows[start : start + ROWS])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"<{len(self):,} problems of {self.split}>"

    def by_id(self, name: str) -> Problem:
        """The problem with an id.

        Raises:
            KeyError: there is none.
        """
        split, _, number = name.rpartition("-")
        if split != self.split or not number.isdecimal():
            raise KeyError(name)
        (places,) = np.nonzero(self.rows == int(number))
        if not len(places):
            raise KeyError(name)
        return self[int(places[0])]

    def longest(self, count: int) -> list[Problem]:
        """Some of the longest problems, longest first."""
        sizes = self._bytes("question") + self._bytes("earlier")
        places = np.argsort(-sizes, kind="stable")[:count]
        return [self[int(place)] for place in places]

    def containing(self, texts: Collection[str]) -> list[Problem]:
        """The problems with one of some texts in a message, in order."""
        there = np.zeros(self.table.num_rows, bool)
        for text in texts:
            for column, part in (("question", text), ("earlier", json.dumps(text)[1:-1])):
                there |= pc.match_substring(self.table[column], part).to_numpy()
        return [self[int(place)] for place in np.nonzero(there[self.rows])[0]]

    def with_keys(self, keys: Mapping[bytes, object]) -> Iterator[tuple[bytes, Problem]]:
        """The problems that have one of some keys, in order."""
        some = pa.array(list(keys), pa.binary(KEY))
        there = pc.is_in(self.table["key"], value_set=some).to_numpy()[self.rows]
        for place in np.nonzero(there)[0]:
            problem = self[int(place)]
            yield problem_key(problem), problem

    @property
    def digest(self) -> str:
        """A digest of all parts of all problems, in order."""
        chunks = [
            np.frombuffer(chunk.buffers()[1], f"S{KEY}", len(chunk), chunk.offset * KEY)
            for chunk in self.table["digest"].chunks
        ]
        every = np.concatenate(chunks)[self.rows] if len(self.rows) else np.array([], f"S{KEY}")
        return hashlib.sha256(every.tobytes()).hexdigest()

    def at(self, places: Sequence[int]) -> Problems:
        """The problems at some places."""
        return Problems(self.table, self.split, self.rows[np.asarray(places, np.int64)])

    def longer(self, limit: int, added: int) -> npt.NDArray[np.int64]:
        """Places of the problems that may have more bytes than a limit.

        Args:
            limit: for questions alone.
            added: bytes that a message before the question may have in addition to its text.
        """
        question, earlier = self._bytes("question"), self._bytes("earlier")
        return np.nonzero(question + earlier + added * -(-earlier // MESSAGE) > limit)[0]

    def completion_counts(self) -> list[int]:
        """The number of completions of each problem."""
        if not self._bytes("completions").any():
            return [0] * len(self)
        texts = self.table["completions"].to_pylist()
        return [len(json.loads(texts[row])) if texts[row] else 0 for row in self.rows]

    def _bytes(self, part: str) -> npt.NDArray[np.int64]:
        """Bytes of each problem's part."""
        sizes = pc.binary_length(self.table[part]).to_numpy()[self.rows]
        return np.asarray(sizes, np.int64)

    def without_answer(self) -> list[int]:
        """Places of the problems without a reference answer."""
        places: list[int] = np.nonzero(self._bytes("answer") == 0)[0].tolist()
        return places

    def _problems(self, rows: npt.NDArray[np.int64]) -> Iterator[Problem]:
        batch_of = np.searchsorted(self._starts, rows, "right") - 1
        for number, places in groupby(range(len(rows)), batch_of.__getitem__):
            some = rows[list(places)]  # of one batch: Arrow copies a table to take from it
            own = self._batches[number].take(pa.array(some - self._starts[number]))
            for n, parts in zip(some, zip(*own.to_pydict().values(), strict=True), strict=True):
                yield Record(*parts).problem(f"{self.split}-{n}")


def batches(records: Iterable[Record]) -> Iterator[pa.RecordBatch]:
    """Records as batches of the table."""
    block: list[Record] = []
    for record in records:
        block.append(record)
        if len(block) == ROWS:
            yield _batch(block)
            block = []
    if block:
        yield _batch(block)


def _batch(block: Sequence[Record]) -> pa.RecordBatch:
    keys = [messages_key(record.messages) for record in block]
    digests = [_digest(record) for record in block]
    parts = [list(part) for part in zip(*block, strict=True)]
    arrays = [pa.array(part, pa.large_string()) for part in parts]
    arrays += [pa.array(part, pa.binary(KEY)) for part in (keys, digests)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _digest(record: Record) -> bytes:
    data = "\x1f".join(record).encode()
    return hashlib.blake2b(data, digest_size=KEY).digest()


def write(path: Path, records: Iterable[Record]) -> None:
    """Write a table as an Arrow IPC file."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for batch in batches(records):
            writer.write_batch(batch)


def mapped(path: Path) -> pa.Table:
    """The table of an Arrow IPC file, memory-mapped.

    Raises:
        ValueError: it is not such a file, or has other columns.
        OSError: it cannot be read.
    """
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    if table.schema != SCHEMA:
        raise ValueError("it has other columns")
    return table


def in_memory(records: Iterable[Record]) -> pa.Table:
    """A table in memory."""
    return pa.Table.from_batches(batches(records), SCHEMA)

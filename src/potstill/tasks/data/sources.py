"""Rows of the files that a user names: JSON Lines, JSON, CSV, TSV and Parquet, gzipped or not.

A row is read when it is needed, so that a file may be larger than the memory. Each has its place,
for messages. It leaves out what the columns mean.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from potstill.errors import PotstillError
from potstill.tasks.data.values import number
from potstill.tasks.reading import (
    BOM,
    LONGEST_LINE,
    check_form,
    decoded,
    lines_of,
    open_regular,
    unreadable,
)
from potstill.tasks.strict_json import array, objects, parsed

LARGEST = 2**40  # bytes of a file, unpacked too
MOST_FILES = 100_000  # of a folder; more is not meant, such as all of a disk
PIECE = 2**20  # bytes of a JSON array that are read at once
BATCH = 1000  # rows of a Parquet file that are read at once
FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
HINT = f"give files that end in {', '.join(FORMATS)}, gzipped or not (.gz), or a folder of them"


class DataRow(NamedTuple):
    """A row of data with its place, such as "train.jsonl, line 3"."""

    where: str
    values: Mapping[str, Any]


def files_of(path: str) -> list[Path]:
    """The files of a path: itself, or those of a folder and its folders, sorted by name.

    Raises:
        PotstillError: there are none, or those of several splits.
    """
    try:
        place = Path(path).expanduser()
        folder = place.is_dir()
        entries = list(islice(place.rglob("*"), MOST_FILES + 1)) if folder else []
    except (OSError, ValueError, RuntimeError) as error:  # a NUL or the ~ of an unknown user
        raise unreadable(path, str(error), HINT) from None
    if not folder:
        return [place]
    if len(entries) > MOST_FILES:
        rule = f'a folder of data has at most {MOST_FILES:,} entries, "{path}" has more'
        raise PotstillError(rule, "give a smaller folder")
    visible = [e for e in entries if not any(p[0] in "._" for p in e.relative_to(place).parts)]
    files = sorted(file for file in visible if format_of(file) and file.is_file())
    if not files:
        raise PotstillError(f'"{path}" holds no file of data', HINT)
    splits = {kind for file in files for kind in ("train", "test") if file.name.startswith(kind)}
    if len(splits) > 1:
        raise PotstillError(
            f'a folder is one split, "{path}" has files of both train and test',
            f'name the files, or write dataset = "{path}", which takes each for its split',
        )
    return files


def format_of(file: Path) -> str:
    """The format by a file's name; empty if it has none of them.

    >>> format_of(Path("a/b.JSONL.gz")), format_of(Path("notes.md"))
    ('.jsonl', '')
    """
    name = file.name.lower().removesuffix(".gz")
    return next((form for form in FORMATS if name.endswith(form)), "")


def rows_of(file: Path) -> Iterator[DataRow]:
    """The rows of a file.

    Raises:
        PotstillError: it cannot be read, or a row is malformed.
    """
    form = format_of(file)
    if not form:
        with open_regular(file, HINT, LARGEST):  # one that is not there is named first
            raise PotstillError(f'the format of "{file}" is unknown by its name', HINT)
    try:
        with contextlib.ExitStack() as stack:
            data: IO[bytes] = stack.enter_context(open_regular(file, HINT, LARGEST))
            if file.name.lower().endswith(".gz"):
                data = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=data)))
            elif form != ".parquet":
                check_form(file, data.read(8), HINT)
                data.seek(0)
            yield from _READERS[form](data, file)
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(file, str(error) or type(error).__name__, HINT) from None


def _json_lines(data: IO[bytes], file: Path) -> Iterator[DataRow]:
    hint = "give a JSON Lines file in UTF-8; every line is one object"
    for where, values in objects(lines_of(data, file, hint), file, hint):
        yield DataRow(where, values)


def _json(data: IO[bytes], file: Path) -> Iterator[DataRow]:
    """An array of objects, an object with one such array, or JSON Lines."""
    hint = "give a list of objects, such as [{...}, {...}], or JSON Lines"
    first = data.read(64)
    check_form(file, first, hint)
    first = first.removeprefix(BOM).lstrip()
    while not first and (more := data.read(64)):
        first = more.lstrip()
    data.seek(0)
    if first.startswith(b"["):
        for where, values in array(_texts(data, file, hint), file, hint):
            yield DataRow(where, values)
        return
    text = "".join(islice(_texts(data, file, hint), LONGEST_LINE // PIECE + 1))
    try:
        whole = parsed(text, str(file), hint)
    except PotstillError:
        data.seek(0)
        yield from _json_lines(data, file)
        return
    yield from _inner(whole, file, hint)


def _inner(whole: Any, file: Path, hint: str) -> Iterator[DataRow]:
    """The rows of an object with one list of objects, or the object as the only row."""
    if not isinstance(whole, dict):
        raise PotstillError(f'"{file}" is not a list of objects', hint)
    lists = {key: value for key, value in whole.items() if _is_rows(value)}
    if not lists:
        yield DataRow(f"{file}, item 1", whole)
        return
    if len(lists) > 1:
        names = ", ".join(f'"{key}"' for key in lists)
        raise PotstillError(f'"{file}" has several lists of objects: {names}', hint)
    ((key, items),) = lists.items()
    for n, values in enumerate(items, 1):
        yield DataRow(f'{file}, item {n} of "{key}"', values)


def _is_rows(value: Any) -> bool:
    """True for a list of objects that are not messages of a conversation."""
    objects_alone = isinstance(value, list) and value and all(isinstance(v, dict) for v in value)
    return bool(objects_alone) and not {"role", "from"} & set(value[0])


def _texts(data: IO[bytes], file: Path, hint: str) -> Iterator[str]:
    """The text of a file in pieces, without its byte order mark."""
    decoder, at = codecs.getincrementaldecoder("utf-8")(), 0
    while piece := data.read(PIECE):
        try:
            text = decoder.decode(piece.removeprefix(BOM) if not at else piece)
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            rule = f"{file}: byte 0x{byte:02x} in the {PIECE:,} from {at:,} on is not UTF-8"
            raise PotstillError(rule, hint) from None
        at += len(piece)
        yield text
    decoded(decoder.getstate()[0], str(file), hint)


def _separated(data: IO[bytes], file: Path, mark: str) -> Iterator[DataRow]:
    """The rows of CSV with a header; a quoted value may have line ends."""
    hint = "give CSV in UTF-8 with a line of column names; a value with line ends is in quotes"
    csv.field_size_limit(LONGEST_LINE)
    text = io.TextIOWrapper(data, encoding="utf-8-sig", newline="")  # type: ignore[type-var]
    reader = csv.reader(text, delimiter=mark, strict=True)
    where = f"{file}, line 1"
    try:
        names = next(reader, [])
        _check_header(names, where, hint)
        while True:
            where = f"{file}, line {reader.line_num + 1}"
            cells = next(reader, None)
            if cells is None:
                return
            if not any(map(str.strip, cells)):  # a blank line, at the end or not
                if all(not any(map(str.strip, rest)) for rest in reader):
                    return
                raise PotstillError(f"{where}: the line is empty", hint)
            if len(cells) != len(names):
                rule = f"{where}: {len(names)} columns have {len(cells)} values"
                raise PotstillError(rule, hint)
            yield DataRow(where, dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise PotstillError(f"{where}: not CSV ({error})", hint) from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise PotstillError(f"{where} or after it: 0x{byte:02x} is not UTF-8", hint) from None
    finally:
        text.detach()  # the caller closes the file


def _check_header(names: Sequence[str], where: str, hint: str) -> None:
    if not any(name.strip() for name in names):
        raise PotstillError(f"{where}: no column names", hint)
    if len(names) == 1 and (marks := [mark for mark in ";\t|" if mark in names[0]]):
        rule = f"{where}: values are separated by commas, got {names[0][:60]!r}"
        raise PotstillError(rule, f"write commas in the place of {marks[0]!r}, or tabs and .tsv")
    if twice := [name for name in names if names.count(name) > 1]:
        raise PotstillError(f'{where}: the column "{twice[0]}" is there twice', hint)


def _csv(data: IO[bytes], file: Path) -> Iterator[DataRow]:
    return _separated(data, file, ",")


def _tsv(data: IO[bytes], file: Path) -> Iterator[DataRow]:
    return _separated(data, file, "\t")


def _parquet(data: IO[bytes], file: Path) -> Iterator[DataRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    hint = "give a Parquet file whose columns have texts, numbers or lists of messages"
    if not data.seekable() or isinstance(data, gzip.GzipFile):
        data = io.BytesIO(data.read(2**32))  # Parquet is read from its end
    n = 0
    try:
        table = pq.ParquetFile(data)
        for batch in table.iter_batches(BATCH, columns=readable(table.schema_arrow)):
            for values in rows_of_batch(batch):
                n += 1
                yield DataRow(f"{file}, row {n}", values)
    except pa.ArrowException as error:
        raise unreadable(file, f"it is not Parquet ({str(error)[:200]})", hint) from None
    except UnicodeDecodeError as error:
        raise PotstillError(f"{file}, row {n + 1} or after it: {error}", hint) from None


def readable(schema: Any) -> list[str]:
    """The columns of an Arrow schema that are not binary, such as images."""
    import pyarrow as pa

    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    images = [
        field.name
        for field in schema
        if pa.types.is_struct(field.type)
        and any(kind(inner.type) for inner in field.type for kind in binary)
    ]
    return [field.name for field in schema if field.name not in images]


def rows_of_batch(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow record batch; numbers become text with the digits of their type."""
    import pyarrow as pa

    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_floating(column.type):  # a float32 would get the digits of a float64
            present = column.is_valid().to_numpy(zero_copy_only=False)
            values = column.fill_null(0).to_numpy(zero_copy_only=False)
            pairs = zip(values, present, strict=True)
            columns[name] = [(number(v) or float(v)) if there else None for v, there in pairs]
        elif pa.types.is_integer(column.type) or pa.types.is_decimal(column.type):
            columns[name] = [v if v is None else number(v) for v in column.to_pylist()]
        else:
            columns[name] = column.to_pylist()
    for i in range(batch.num_rows):
        yield {name: values[i] for name, values in columns.items()}


_READERS = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}

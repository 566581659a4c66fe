"""Rows of a data set of the Hugging Face Hub, or of a folder that `datasets.load_dataset` opens.

The library keeps what it has read as memory-mapped files in its own cache. Code that comes with a
data set never runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.tasks.data.sources import BATCH, DataRow, readable, rows_of_batch

MESSAGE = 300  # characters of the library's error that are shown


def open_split(dataset: str, subset: str, split: str, revision: str) -> Any:
    """A split of a data set, as `datasets.Dataset`.

    Args:
        dataset: OWNER/NAME or a folder.
        subset: its configuration; empty: the only one.
        split: such as "train", or "train[:1000]".
        revision: a branch, tag or commit; empty: the newest.

    Raises:
        PotstillError: it cannot be loaded.
    """
    from datasets import load_dataset

    try:
        return load_dataset(dataset, subset or None, split=split, revision=revision or None)
    except Exception as error:  # whatever the library or the hub client raises
        lines = " ".join(str(error).split())
        raise PotstillError(
            f'cannot load split "{split}" of "{dataset}"'
            f"{f' ({subset})' if subset else ''}: {type(error).__name__}: {lines[:MESSAGE]}",
            _hint(dataset, lines),
        ) from None


def _hint(dataset: str, message: str) -> str:
    lowered = message.lower()
    if "split" in lowered:
        return "set train_split and test_split, or held_out for a share of the training split"
    if "config" in lowered:
        return "set subset to one of its configurations"
    if Path(dataset).expanduser().exists():
        return "give a folder of data files, such as train.jsonl and test.jsonl"
    return "check its name and the network, or set train_path and test_path to local files"


def rows_of_split(split: Any, where: str) -> Iterator[DataRow]:
    """The rows of a split."""
    n, names = 0, readable(split.features.arrow_schema)
    chosen = split.select_columns(names) if len(names) < len(split.column_names) else split
    for table in chosen.with_format("arrow").iter(batch_size=BATCH):
        for batch in table.to_batches():
            for values in rows_of_batch(batch):
                n += 1
                yield DataRow(f"{where}, row {n}", values)


def files_of_split(split: Any) -> list[Path]:
    """The memory-mapped files of a split, in the library's cache."""
    return [Path(entry["filename"]) for entry in split.cache_files]

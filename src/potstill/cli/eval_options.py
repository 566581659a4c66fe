"""Options of `potstill eval` as key=value words: those of the engine and those of the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from potstill.errors import PotstillError

if TYPE_CHECKING:
    from potstill.settings import TorchSettings


def engine_options(words: Sequence[str], threads: int) -> TorchSettings:
    """Settings of the torch engine from `engine.key=value` words.

    Keys are those of a study file; a key of `engine.student` may be written without the role.

    >>> engine_options(["engine.dtype=bfloat16", "engine.threads=2"], 1).student.dtype
    'bfloat16'
    """
    from pydantic import ValidationError

    from potstill.fields import explain
    from potstill.settings import TorchSettings
    from potstill.study.loading import override
    from potstill.study.reading import check_values
    from potstill.types import ModelSpec

    table: dict[str, Any] = {"threads": threads}
    for word in words:
        key = word.removeprefix("engine.")
        placed = key.split("=")[0].split(".")[0] in ModelSpec.__dataclass_fields__
        override(table, f"student.{key}" if placed else key)
    check_values(table, "engine")
    if "teacher" in table:
        raise PotstillError(
            "a model that is evaluated alone has no teacher, got engine.teacher",
            "write engine.KEY=VALUE, for example engine.dtype=bfloat16",
        )
    try:
        settings = TorchSettings.model_validate(table)
    except ValidationError as error:
        raise explain(error, "engine", TorchSettings) from None
    return settings.model_copy(update={"teacher": settings.student})


def task_options(words: Sequence[str]) -> dict[str, Any]:
    """Options of a task from `key=value` words; `task.` in front of a key is left out.

    >>> task_options(["difficulty=3", "task.match=exact"])
    {'difficulty': 3, 'match': 'exact'}
    """
    from potstill.study.loading import parse_value
    from potstill.study.reading import check_values

    options = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise PotstillError(f'a task option is key=value, got "{word}"', "e.g. difficulty=3")
        options[key.removeprefix("task.")] = parse_value(value)
    check_values(options, "task")
    return options

"""Options of `potstill eval`: how completions are drawn, and key=value words of engine and task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli import completion
from potstill.errors import PotstillError

if TYPE_CHECKING:
    from potstill.settings import TorchSettings


Problems = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=2,
        help="Held-out problems to evaluate on.  [default: 500, or as many as there are]",
        show_default=False,
    ),
]
MaxTokens = Annotated[int, typer.Option(metavar="N", min=1, help="Longest completion, in tokens.")]
Samples = Annotated[
    int, typer.Option(metavar="N", min=1, help="Completions of each problem (avg@n).")
]
Temperature = Annotated[
    float | None,
    typer.Option(
        metavar="T",
        help="Sampling temperature; 0 is greedy.  [default: 0, or 1 without a grader]",
        show_default=False,
    ),
]
TopP = Annotated[float, typer.Option(metavar="P", help="Nucleus of the sampler.")]
TopK = Annotated[int, typer.Option(metavar="K", help="Likeliest tokens to draw from; 0: all.")]
MinP = Annotated[
    float, typer.Option(metavar="P", help="Least share of the likeliest token's probability.")
]
PassAt = Annotated[
    str, typer.Option(metavar="K,...", help="Also estimate pass@k from the samples.")
]
Seed = Annotated[
    int | None,
    typer.Option(
        metavar="SEED", help="Draws the problems; default: the first ones.", show_default=False
    ),
]
Teacher = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help="Teacher to compare with, for a task without a grader.",
        autocompletion=completion.models,
    ),
]


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

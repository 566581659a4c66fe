"""`potstill eval`: the accuracy of any model on a task's held-out problems."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli import completion
from potstill.cli.app import READ, command
from potstill.cli.options import AsJson
from potstill.cli.tables import print_json
from potstill.cli.terminal import echo
from potstill.errors import PotstillError, out_of_memory

if TYPE_CHECKING:
    from potstill.problems import Problem
    from potstill.settings import TorchSettings


@command(
    "eval",
    READ,
    "potstill eval tiny-qwen/student",
    "potstill eval runs/quick/cells/tiny-qwen/hybrid/0/student difficulty=3",
    "potstill eval Qwen/Qwen3-0.6B --task gsm8k --max-tokens 512 engine.dtype=bfloat16",
)
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Model folder, Hub model ID, or an embedded model such as tiny-qwen/student.",
            autocompletion=completion.models,
        ),
    ],
    options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OPTION=VALUE]...",
            show_default=False,
            help="Options of the task, such as difficulty=3, and of the engine, such as "
            "engine.dtype=bfloat16, engine.device=cpu, engine.attention=eager, "
            "engine.trust_remote_code=true or engine.template.enable_thinking=true.",
        ),
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            metavar="TASK", help="Task, see `potstill ls tasks`.", autocompletion=completion.tasks
        ),
    ] = "arithmetic",
    problems: Annotated[
        int, typer.Option(metavar="N", min=2, help="Held-out problems to evaluate on.")
    ] = 500,
    max_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Longest completion, in tokens.")
    ] = 256,
    texts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the completions to this file, as JSONL."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model on a task's held-out problems."""
    result = evaluate_model(model, task, options or [], problems, max_tokens, texts)
    if as_json:
        print_json(result)
        return
    low, high = result["interval"]
    echo(
        f"strict {result['strict']:.1%} (95 % interval {low:.1%} to {high:.1%}), "
        f"flexible {result['flexible']:.1%}, {result['problems']} problems"
    )


def evaluate_model(
    model: str,
    task_name: str,
    options: Sequence[str],
    problems: int,
    max_tokens: int,
    texts: Path | None,
) -> dict[str, Any]:
    """Evaluate a model on held-out problems.

    Args:
        model: its folder or Hub ID, or `PAIR/ROLE` of an embedded one.
        task_name: a task of `potstill ls tasks`.
        options: the task's, `key=value`, and the engine's, `engine.key=value`.
        problems: how many.
        max_tokens: of a completion.
        texts: where completions are written, if anywhere.

    Returns:
        strict and flexible accuracy, and the 95 % interval of the strict one: Wilson's where every
        grade is right or wrong.

    Raises:
        PotstillError: the task has no grader, among others.
    """
    from potstill.digests import to_json
    from potstill.engines import zoo
    from potstill.engines.registry import open_engine
    from potstill.settings import Pair
    from potstill.study.storage import example, write_text
    from potstill.study.validation import check_model
    from potstill.tasks import is_graded, load_task
    from potstill.training.evaluation import evaluate as evaluated

    if texts and not texts.parent.is_dir():
        raise PotstillError(
            f'the folder "{texts.parent}" does not exist', "make it, then run again"
        )
    path = zoo.place(model)
    embedded = path != model
    if not embedded:
        check_model(name=model, where="model")
    own = [word for word in options if not word.startswith("engine.")]
    task = load_task(task_name, **task_options(own))
    if not is_graded(task):
        raise PotstillError(
            f"a model alone is measured by its grades, and the task {task_name} has no grader",
            "name a grader (grade=...); a study measures a student's KL to its teacher",
        )
    held_out = task.test[:problems]
    if len(held_out) < problems:
        raise PotstillError(
            f"the task has {len(held_out)} problems, asked for {problems}", "lower --problems"
        )
    threads = 1 if embedded else 0  # an embedded model is too small for more
    settings = engine_options([word for word in options if word not in own], threads)
    with _running(model):
        engine: Any = open_engine("torch", Pair(student=path, teacher=path), settings=settings)
        _check_length(engine, held_out, max_tokens)
        evaluation = evaluated(engine, "student", task, held_out, max_tokens)
    if texts:
        write_text(texts, "".join(to_json(example(0, row)) + "\n" for row in evaluation.rows))
    return {
        "model": model,
        "task": task_name,
        "problems": problems,
        "strict": evaluation.strict,
        "flexible": evaluation.flexible,
        "interval": share_interval(evaluation.by_problem["strict"].tolist()),
        "ended": sum(row.ended for row in evaluation.rows) / problems,
        "prompt": engine.rendered(engine.prompt(held_out[0]), "student"),
        "notes": list(engine.notes),
    }


def share_interval(grades: Sequence[float]) -> list[float]:
    """The 95 % interval of the mean of grades in [0, 1].

    >>> [round(end, 3) for end in share_interval([1.0, 0.0, 1.0, 1.0])]
    [0.301, 0.954]
    """
    if all(grade in (0.0, 1.0) for grade in grades):
        from scipy.stats import binomtest

        wilson = binomtest(round(sum(grades)), len(grades)).proportion_ci(method="wilson")
        return [float(wilson.low), float(wilson.high)]
    from potstill.stats.comparisons import interval
    from potstill.stats.mean_squares import mean_squares
    from potstill.stats.seeds import SeedVariance

    ends = interval(mean_squares([grades], seeded=False), SeedVariance(0.0, 0.0))
    return [ends.low, ends.high]


def _check_length(engine: Any, problems: Sequence[Problem], max_tokens: int) -> None:
    """Warn if the longest prompt and its completion exceed what the model was trained on."""
    from potstill.diagnostics.preflight.prompts import longest_prompts

    window = engine.windows["student"]
    _, size = longest_prompts(engine, problems)["student"]
    if window.tokens and size + max_tokens > window.tokens:
        error = window.error(engine.pair.student, size, max_tokens)
        if window.fixed:
            raise error
        echo(f"warning: {error}: the model was not trained beyond", file=sys.stderr)


@contextlib.contextmanager
def _running(model: str) -> Iterator[None]:
    """An exception of a model's own code becomes an error with a hint."""
    try:
        yield
    except (PotstillError, OSError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        hint = "--verbose shows where; compare the versions of torch and transformers"
        if out_of_memory(error):
            hint = "lower --max-tokens, or set engine.sample_tokens or engine.dtype=bfloat16"
        raise PotstillError(
            f'"{model}" cannot be run: {type(error).__name__}: {lines[0]}', hint
        ) from error


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

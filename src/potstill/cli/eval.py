"""`potstill eval`: any model on a task's held-out problems, graded or compared with a teacher."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli import completion
from potstill.cli.app import READ, command
from potstill.cli.eval_options import (
    MaxTokens,
    MinP,
    PassAt,
    Problems,
    Samples,
    Seed,
    Teacher,
    Temperature,
    TopK,
    TopP,
    engine_options,
    task_options,
)
from potstill.cli.options import AsJson
from potstill.cli.tables import print_json
from potstill.cli.terminal import echo
from potstill.errors import PotstillError, out_of_memory

if TYPE_CHECKING:
    from potstill.problems import Evaluation, Problem
    from potstill.settings import Eval

PROBLEMS = 500  # held-out problems, if none are named


@command(
    "eval",
    READ,
    "potstill eval tiny-qwen/student",
    "potstill eval runs/quick/cells/tiny-qwen/hybrid/0/student difficulty=3",
    "potstill eval Qwen/Qwen3-0.6B --task gsm8k --max-tokens 512 engine.dtype=bfloat16",
    "potstill eval tiny-qwen/student --samples 4 --temperature 0.7 --pass-at 1,4 --problems 100",
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
    problems: Problems = None,
    max_tokens: MaxTokens = 256,
    samples: Samples = 1,
    temperature: Temperature = None,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    pass_at: PassAt = "",
    seed: Seed = None,
    teacher: Teacher = "",
    texts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the completions to this file, as JSONL."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model on a task's held-out problems."""
    table = {
        "samples": samples,
        "temperature": temperature or 0.0,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "pass_at": _numbers(pass_at),
        "seed": seed,
    }
    result = evaluate_model(
        model, task, options or [], problems, max_tokens, texts, table=table, teacher=teacher
    )
    if as_json:
        print_json(result)
    else:
        echo(_sentence(result))


def _numbers(words: str) -> list[int]:
    try:
        return [int(word) for word in words.split(",") if word]
    except ValueError:
        raise PotstillError(
            f'--pass-at has numbers and commas, got "{words}"', "for example --pass-at 1,4"
        ) from None


def _sentence(result: dict[str, Any]) -> str:
    """The result of `evaluate_model` in a line."""
    problems = f"{result['problems']} problems"
    if "strict" in result:
        low, high = result["interval"]
        sampled = f" (avg@{result['samples']})" if result["samples"] > 1 else ""
        passed = "".join(f", {k} {v:.1%}" for k, v in result.items() if k.startswith("pass@"))
        return (
            f"strict {result['strict']:.1%}{sampled} (95 % interval {low:.1%} to {high:.1%}), "
            f"flexible {result['flexible']:.1%}{passed}, {problems}"
        )
    names = {
        "kl": "KL to the teacher",
        "teacher_loss": "teacher's loss",
        "student_loss": "model's loss on the reference completions",
    }
    known = [
        f"{label} {result[name]:.3f} (95 % interval {low:.3f} to {high:.3f})"
        for name, label in names.items()
        if name in result
        for low, high in [result["intervals"][name]]
    ]
    return f"{', '.join(known)}, nats per token, {problems}"


def evaluate_model(
    model: str,
    task_name: str,
    options: Sequence[str],
    problems: int | None,
    max_tokens: int,
    texts: Path | None,
    *,
    table: Mapping[str, Any] | None = None,
    teacher: str = "",
) -> dict[str, Any]:
    """Evaluate a model on held-out problems.

    Args:
        model: its folder or Hub ID, or `PAIR/ROLE` of an embedded one.
        task_name: a task of `potstill ls tasks`.
        options: the task's, `key=value`, and the engine's, `engine.key=value`.
        problems: how many; None: 500, or as many as there are.
        max_tokens: of a completion.
        texts: where completions are written, if anywhere.
        table: settings of `[eval]` on how completions are drawn.
        teacher: as `model`; a task without a grader compares with it.

    Returns:
        strict and flexible accuracy with the 95 % interval of the strict one; without a grader the
        distances from the teacher with theirs.
    """
    from potstill.digests import to_json
    from potstill.engines import zoo
    from potstill.engines.registry import open_engine
    from potstill.settings import Pair
    from potstill.study.storage import example, write_text
    from potstill.study.validation import check_model
    from potstill.tasks import is_graded, load_task
    from potstill.training.completing import held_out
    from potstill.training.evaluation import evaluate as evaluated

    if texts and not texts.parent.is_dir():
        raise PotstillError(
            f'the folder "{texts.parent}" does not exist', "make it, then run again"
        )
    chosen = _settings({**(table or {}), "problems": problems or PROBLEMS})
    path, teacher_path = zoo.place(model), zoo.place(teacher) if teacher else ""
    embedded = path != model
    for name, place, where in ((model, path, "model"), (teacher, teacher_path, "teacher")):
        if name and name == place:
            check_model(name=name, where=where)
    own = [word for word in options if not word.startswith("engine.")]
    task = load_task(task_name, **task_options(own))
    evaluated_on = held_out(task, chosen)
    if problems and len(evaluated_on) < problems:
        raise PotstillError(
            f"the task has {len(evaluated_on)} problems, asked for {problems}", "lower --problems"
        )
    if not is_graded(task):
        _check_reference(evaluated_on, teacher, chosen)
    threads = 1 if embedded else 0  # an embedded model is too small for more
    settings = engine_options([word for word in options if word not in own], threads)
    with _running(model):
        pair = Pair(student=path, teacher=teacher_path)
        engine: Any = open_engine("torch", pair, settings=settings)
        _check_length(engine, evaluated_on, max_tokens)
        evaluation = evaluated(engine, "student", task, evaluated_on, max_tokens, chosen)
    if texts:
        write_text(texts, "".join(to_json(example(0, row)) + "\n" for row in evaluation.rows))
    return {
        "model": model,
        "task": task_name,
        "problems": evaluation.problems,
        "samples": evaluation.samples,
        **_measures(evaluation),
        "ended": sum(row.ended for row in evaluation.rows) / len(evaluation.rows),
        "prompt": engine.rendered(engine.prompt(evaluated_on[0]), "student"),
        "notes": list(engine.notes),
    }


def _settings(table: Mapping[str, Any]) -> Eval:
    from pydantic import ValidationError

    from potstill.fields import explain
    from potstill.settings import Eval

    try:
        return Eval.model_validate(table)
    except ValidationError as error:
        raise explain(error, "eval", Eval) from None


def _check_reference(problems: Sequence[Problem], teacher: str, settings: Eval) -> None:
    """Without a grader, a model is compared with a teacher or with completions of the data."""
    if not teacher and not all(problem.completions for problem in problems):
        raise PotstillError(
            "the task has no grader, and a model is then compared with a teacher or with "
            "completions of the data; there is neither",
            "add --teacher MODEL, a grader, or a completion column",
        )
    if settings.temperature not in (0.0, 1.0) or settings.pass_at:
        raise PotstillError(
            "without a grader, completions are drawn at temperature 1 and are not counted as right",
            "leave --temperature and --pass-at out",
        )


def _measures(evaluation: Evaluation) -> dict[str, Any]:
    """Means of an evaluation with their 95 % intervals over problems."""
    from scipy.stats import binomtest

    from potstill.stats.comparisons import Comparisons
    from potstill.stats.mean_squares import mean_squares

    values = evaluation.by_problem
    samples = {n: mean_squares([column], shares=evaluation.graded) for n, column in values.items()}
    family = Comparisons(samples)
    ends = {name: family.interval(name) for name in values}
    intervals = {name: [end.low, end.high] for name, end in ends.items()}
    means = {name: float(column.mean()) for name, column in values.items()}
    if not evaluation.graded:
        return {**means, "intervals": intervals, "estimator": evaluation.estimator}
    strict = values["strict"]
    if all(value in (0.0, 1.0) for value in strict):
        wilson = binomtest(int(strict.sum()), len(strict)).proportion_ci(method="wilson")
        intervals["strict"] = [wilson.low, wilson.high]
    return {**means, "interval": intervals["strict"]}


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

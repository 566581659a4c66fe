"""`potstill zoo`: the embedded pairs as folders, and made again from a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli import completion
from potstill.cli.app import LOOK, app, command, zoo_app
from potstill.cli.ls import listing
from potstill.cli.options import AsJson
from potstill.cli.tables import print_json, print_table
from potstill.cli.terminal import echo
from potstill.errors import PotstillError, did_you_mean

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from potstill.problems import Evaluation
    from potstill.types import Role

ROLES = ("student", "teacher", "both")
PROBLEMS = 500  # held-out problems behind an accuracy of an embedded model

app.add_typer(zoo_app, rich_help_panel=LOOK)


@command("ls", None, "potstill zoo ls", to=zoo_app)
def zoo_ls(as_json: AsJson = False) -> None:
    """List the embedded pairs."""
    rows = listing("pairs")
    if as_json:
        print_json(rows)
    else:
        print_table(rows)


@command("save", None, "potstill zoo save tiny-qwen --out runs/models", to=zoo_app)
def zoo_save(
    pair: Annotated[
        str,
        typer.Argument(
            metavar="PAIR", help="Pair, see `potstill ls pairs`.", autocompletion=completion.pairs
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write to.")] = Path(
        "runs/models"
    ),
    dtype: Annotated[
        str,
        typer.Option(
            metavar="DTYPE",
            help="float32, bfloat16 or float16.",
            autocompletion=completion.dtypes,
        ),
    ] = "float32",
) -> None:
    """Copy an embedded pair to ordinary model folders, for a server or to look at."""
    from potstill.engines.zoo.save import save_pair

    echo(save_pair(pair, out, dtype))


@command(
    "build",
    None,
    "potstill zoo build",
    "potstill zoo build tiny-qwen --seed 0 --out runs/zoo",
    to=zoo_app,
)
def zoo_build(
    pairs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PAIR]...",
            show_default=False,
            help="Pairs, see `potstill ls pairs`. [default: all]",
            autocompletion=completion.pairs,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write to.")] = Path(
        "runs/zoo"
    ),
    seed: Annotated[
        int, typer.Option(metavar="N", help="Seed of the weights and the problems.")
    ] = 0,
    role: Annotated[
        str,
        typer.Option(
            metavar="ROLE", help="student, teacher or both.", autocompletion=completion.roles
        ),
    ] = "both",
) -> None:
    """Train the embedded pairs again from a seed and print their accuracies.

    It takes one to three minutes a model.
    """
    for row in build_zoo(pairs or [], out, seed, role):
        echo(
            f"{row['pair']} {row['role']}: {row['accuracy']:.1%} of {row['problems']} problems, "
            f"{row['flexible']:.1%} with the flexible extractor"
        )


def build_zoo(names: Sequence[str], out: Path, seed: int, role: str) -> Iterator[dict[str, Any]]:
    """Train embedded pairs under a progress bar, and evaluate each model.

    Args:
        names: pairs; empty: all.
        out: folder that gets a folder for each model.
        seed: of the weights and the problems.
        role: one of `ROLES`.
    """
    from rich.console import Console
    from rich.progress import Progress

    from potstill.engines import zoo

    places = _places(names, out, role)
    for (pair, one), place in places.items():
        if not place.exists():  # some pairs share a model
            from potstill.engines.zoo.build import build

            with Progress(console=Console(stderr=True)) as progress:
                bar = progress.add_task(f"{pair} {one}", total=None)

                build(*zoo.model(pair, one), place, seed, _advance(progress, bar))
        evaluation = _evaluation(place, pair, one)
        yield {
            "pair": pair,
            "role": one,
            "accuracy": evaluation.strict,
            "flexible": evaluation.flexible,
            "problems": PROBLEMS,
        }


def _advance(progress: Progress, bar: TaskID) -> Callable[[int, int, float], None]:
    """A callback that moves a bar: steps done, steps in all, loss."""
    return lambda done, of, loss: progress.update(bar, completed=done, total=of)


def _places(names: Sequence[str], out: Path, role: str) -> dict[tuple[str, str], Path]:
    """The folder of each model to train; none of them exists."""
    from potstill.engines import zoo

    for name in names:
        if name not in zoo.PAIRS:
            raise PotstillError(f'unknown pair "{name}"', did_you_mean(name, zoo.PAIRS, "pairs"))
    if role not in ROLES:
        raise PotstillError(f'unknown role "{role}"', did_you_mean(role, ROLES, "roles"))
    roles = ("teacher", "student") if role == "both" else (role,)
    models = [(pair, one) for pair in names or list(zoo.PAIRS) for one in roles]
    places = {model: out.joinpath(*zoo.model(*model)) for model in models}
    taken = [place for place in places.values() if place.exists()]
    if taken:
        raise PotstillError(f'"{taken[0]}" exists already', "use another --out")
    return places


def _evaluation(folder: Path, pair: str, role: str) -> Evaluation:
    """Evaluate a stored model on held-out problems, a teacher with its pair's context."""
    from potstill.engines import zoo
    from potstill.engines.registry import open_engine
    from potstill.settings import Pair
    from potstill.tasks import load_task
    from potstill.training.evaluation import evaluate

    task = load_task("arithmetic")
    models = Pair(student=str(folder), teacher=str(folder), context=zoo.CONTEXTS.get(pair, {}))
    engine = open_engine("torch", models, task=task)
    which: Role = "teacher" if role == "teacher" else "student"
    return evaluate(engine, which, task, task.test[:PROBLEMS], max_tokens=32)

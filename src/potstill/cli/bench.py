"""`potstill bench`: how fast a pair runs on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from potstill.cli.app import TOOLS, command
from potstill.cli.options import AsJson, PairName, Words, study_of
from potstill.cli.tables import print_json, print_table
from potstill.cli.terminal import echo
from potstill.errors import PotstillError, did_you_mean

if TYPE_CHECKING:
    from potstill.cli.speed import Bench


@command(
    "bench",
    TOOLS,
    "potstill bench",
    "potstill bench mine.toml --pair qwen train.batch_size=8",
)
def bench(
    words: Words = None,
    pair: PairName = None,
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, help="Steps to time, after one to warm up.")
    ] = 5,
    as_json: AsJson = False,
) -> None:
    """Time sampling, scoring and training, as a share of what this machine allows.

    The bounds are measured first: memory bandwidth and matrix products, with the study's threads
    and dtype. The learning rate is 0, so nothing is trained.
    """
    from potstill.cli.speed import bench as measured

    study = study_of(words)
    pair = pair or next(iter(study.models))
    if pair not in study.models:
        raise PotstillError(f'no pair "{pair}" here', did_you_mean(pair, study.models, "pairs"))
    result = measured(study, pair, repeats)
    if as_json:
        print_json(result.to_json())
    else:
        echo(heading(result))
        print_table(rows(result), spare=("tokens/s", "of a step"))


def heading(result: Bench) -> str:
    """The pair, its batch and the machine."""
    return (
        f"{result.pair}, {result.method}: {result.batch} rows of {result.prompt:.0f} + "
        f"{result.completion:.0f} tokens, peak {result.peak / 1e9:.2f} GB\n"
        f"this machine: {result.bandwidth / 1e9:.1f} GB/s from memory, "
        f"{result.matmul / 1e9:.0f} GFLOP/s in matrix products\n"
    )


def rows(result: Bench) -> list[dict[str, str]]:
    """The speeds as text."""
    return [
        {
            "activity": s.activity,
            "of a step": "not in it" if s.of_step is None else f"{s.of_step:.0%}",
            "seconds": f"{s.seconds:.3f} ({s.low:.3f} to {s.high:.3f})",
            "tokens/s": f"{s.rate:,.0f}",
            "at least": "" if s.bound is None else f"{s.bound:.3f} s",
            "share of the bound": "" if s.share is None else f"{s.share:.0%}",
        }
        for s in result.speeds
    ]

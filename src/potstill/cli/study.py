"""`potstill study` runs a grid and reports on it; `potstill run` runs one method of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potstill.cli import completion
from potstill.cli.app import RUN, command
from potstill.cli.options import (
    AsJson,
    Figures,
    On,
    OutOrUrl,
    PairName,
    Preflight,
    Retry,
    Words,
    Workers,
    study_of,
)
from potstill.cli.tables import print_json, show_report
from potstill.cli.terminal import echo, working

if TYPE_CHECKING:
    from potstill.report import Report


@command(
    "study",
    RUN,
    "potstill study",
    "potstill study studies/full.toml --workers 2 train.steps=50 seeds=0,1,2",
    "potstill study mine.toml --on ray --out s3://bucket/mine",
)
def study(
    words: Words = None,
    out: OutOrUrl = None,
    on: On = "local",
    workers: Workers = 0,
    preflight: Preflight = True,
    retry_failed: Retry = False,
    figures: Figures = True,
    as_json: AsJson = False,
) -> None:
    """Run a study and write its report; run it again to resume it.

    Finished runs are kept: the same command does what is missing, after an interruption or when
    methods, pairs or seeds were added. Without a file it runs the embedded quick study.
    """
    from potstill.cli.launch import fill
    from potstill.report import write_report
    from potstill.study.remote import Mirror, is_url
    from potstill.training.spending import BudgetReached

    chosen = study_of(words)
    mirror = Mirror(out) if out and is_url(out) else None
    folder = mirror.path if mirror else Path(out or Path("runs") / chosen.name)

    def reported() -> Report:
        with working("writing the report"):
            report = write_report(folder, figures=figures)
        if mirror:
            mirror.publish()
        show_report(report, as_json)
        return report

    try:
        fill(chosen, folder, workers, preflight, retry_failed, on=on, mirror=mirror)
    except BudgetReached:
        reported()
        raise
    raise typer.Exit(1 if reported().failed else 0)


@command(
    "run",
    RUN,
    "potstill run --method hybrid --seed 3",
    "potstill run studies/quick.toml --method on_policy_gkd --pair tiny-qwen train.steps=20",
)
def run(
    words: Words = None,
    method: Annotated[
        str,
        typer.Option(metavar="METHOD", help="Method to run.", autocompletion=completion.methods),
    ] = "on_policy_gkd",
    pair: PairName = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Seed. [default: the study's first]")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Study folder. [default: runs/NAME-PAIR-METHOD-SEED]"),
    ] = None,
    preflight: Preflight = True,
    as_json: AsJson = False,
) -> None:
    """Run one method on one pair with one seed, and the baselines.

    The baselines are the evaluations of the untrained student and of the teacher.
    """
    from potstill.cli.launch import fill
    from potstill.study.loading import read_study

    words = [*(words or []), f"methods={json.dumps([method])}"]
    words += [f"pairs={json.dumps([pair])}"] if pair else []
    words += [f"seeds=[{seed}]"] if seed is not None else []
    full = study_of(words)
    first = {"pairs": list(full.models)[:1], "seeds": list(full.seeds)[:1]}
    chosen = read_study({**full.to_toml(), **first})
    name = "-".join([chosen.name, *chosen.models, method, str(chosen.seeds[0])])
    results = fill(chosen, out or Path("runs") / name, 1, preflight)
    record = list(results.values())[-1]
    if as_json:
        print_json(record)
    elif record["status"] == "done":
        from potstill.report.formatting import amount
        from potstill.stats.metric import metrics_of

        metric = metrics_of([record])[0]
        reached = amount(metric.of(record), metric).replace(" %", "%")
        echo(f"{record['pair']} {record['method']} seed {record['seed']}: {reached}")
    raise typer.Exit(1 if record["status"] == "failed" else 0)

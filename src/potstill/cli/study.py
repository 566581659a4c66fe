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
from potstill.errors import PotstillError

if TYPE_CHECKING:
    from potstill.report import Report
    from potstill.study.executors.base import Results
    from potstill.study.schema import Study


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
    "potstill run --from runs/mine/cells/PAIR/METHOD/0 train.steps=200",
)
def run(
    words: Words = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="Method to run. [default: on_policy_gkd]",
            autocompletion=completion.methods,
        ),
    ] = None,
    pair: PairName = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Seed. [default: the study's first]")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Study folder. [default: runs/NAME-PAIR-METHOD-SEED]"),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FOLDER",
            help="Folder of a finished run to go on from with more steps.",
        ),
    ] = None,
    preflight: Preflight = True,
    as_json: AsJson = False,
) -> None:
    """Run one method on one pair with one seed, and the baselines.

    The baselines are the evaluations of the untrained student and of the teacher. The last
    checkpoint is kept unless train.keep_state is false, so that --from can go on from the run: with
    the settings, weights, optimizer and data of the finished run, to another folder.
    """
    from potstill.cli.launch import fill

    if source is not None:
        if method or pair or seed is not None:
            raise PotstillError(
                "--from goes on with the method, pair and seed of its run, got others",
                "leave --method, --pair and --seed out",
            )
        results = _go_on(source, words or [], out, preflight)
    else:
        chosen = _one_run(words or [], method or "on_policy_gkd", pair, seed)
        results = fill(chosen, out or _default_out(chosen), 1, preflight)
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


def _one_run(words: list[str], method: str, pair: str | None, seed: int | None) -> Study:
    """The study of one method, pair and seed; it keeps its last checkpoint."""
    from potstill.study.loading import read_study

    words = [*words, f"methods={json.dumps([method])}"]
    words += [f"pairs={json.dumps([pair])}"] if pair else []
    words += [f"seeds=[{seed}]"] if seed is not None else []
    full = study_of(words)
    table = full.to_toml()
    if "keep_state" not in full.train.model_fields_set:
        table["train"]["keep_state"] = True
    first = {"pairs": list(full.models)[:1], "seeds": list(full.seeds)[:1]}
    return read_study({**table, **first})


def _default_out(study: Study, *more: str) -> Path:
    names = [study.name, *study.models, *study.methods, str(study.seeds[0]), *more]
    return Path("runs") / "-".join(names)


def _go_on(source: Path, words: list[str], out: Path | None, preflight: bool) -> Results:
    """Go on from a finished run with more steps, in another folder."""
    from potstill.cli.launch import fill
    from potstill.study.extending import begin, extended, finished
    from potstill.study.inputs import inputs_of
    from potstill.study.run import prepare
    from potstill.study.storage import StudyFolder

    if files := [word for word in words if "=" not in word]:
        raise PotstillError(
            f"--from has the settings of its run, got the study file {files[0]}",
            "leave the file out; overrides are written key=value",
        )
    run = finished(source)
    study = extended(run, words)
    place = out or _default_out(study, f"{study.train.steps}-steps")
    folder, inputs = StudyFolder(place), inputs_of(study, prepare(study))
    folder.open(study, inputs)
    begin(run, folder.cell(run.key))
    return fill(study, place, 1, preflight, cache=run.folder.cache)

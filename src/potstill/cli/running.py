"""Commands that run models: check, run, study, audit, bench, eval, zoo."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potstill.cli.parts import (
    AsJson,
    On,
    Out,
    OutOrUrl,
    Preflight,
    Retry,
    Words,
    Workers,
    app,
    print_table,
    show_report,
    study_of,
    zoo_app,
)
from potstill.errors import PotstillError

if TYPE_CHECKING:
    from potstill.report import Report


@app.command()
def check(words: Words = None, preflight: Preflight = True, as_json: AsJson = False) -> None:
    """Read a study, show the grid it would run, and refuse what is wrong with it.

    With pre-flight the models are opened: does a step train what the recipe says, is the sampler
    fresh, does the teacher beat the student, and more. Nothing is trained.

    Example: [bold]potstill check studies/full.toml seeds=0,1[/]
    """
    from potstill.cli.launch import afford, checked, predict, records, refuse
    from potstill.cli.listing import plan, prediction
    from potstill.study.run import prepare
    from potstill.study.storage import StudyFolder

    study = study_of(words)
    facts = plan(study, prepare(study))
    if not as_json:
        print_table([{"what": key, "value": value} for key, value in facts.items()])
    found = checked(study) if preflight else {}
    checks, predicted = records(found), prediction(study, predict(found))
    if as_json:
        print(json.dumps({**facts, "checks": checks, "prediction": predicted}, indent=1))
    elif checks:
        print_table(checks)
        print_table(predicted)
    refuse(checks)
    afford(study, StudyFolder(Path("runs") / study.name), predict(found))


@app.command()
def run(
    words: Words = None,
    method: Annotated[str, typer.Option(help="Method to run.")] = "on_policy_gkd",
    pair: Annotated[str | None, typer.Option(help="Pair; default: the study's first.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed; default: the study's first.")] = None,
    out: Out = None,
    preflight: Preflight = True,
    as_json: AsJson = False,
) -> None:
    """Run one cell of a study, and its two reference rows.

    Example: [bold]potstill run studies/quick.toml --method hybrid --pair tiny-qwen --seed 3[/]
    """
    from potstill.cli.launch import fill
    from potstill.study.loading import read_study

    words = list(words or [])
    words += [f"methods={json.dumps([method])}"]
    words += [f"pairs={json.dumps([pair])}"] if pair else []
    words += [f"seeds=[{seed}]"] if seed is not None else []
    full = study_of(words)
    first = {"pairs": list(full.models)[:1], "seeds": list(full.seeds)[:1]}
    study = read_study({**full.to_toml(), **first})
    place = "-".join([study.name, *study.models, method, str(study.seeds[0])])
    results = fill(study, out or Path("runs") / place, 1, preflight)
    record = list(results.values())[-1]
    if as_json:
        print(json.dumps(record, indent=1))
    elif record["status"] == "done":
        print(
            f"{record['pair']} {record['method']} seed {record['seed']}: {record['accuracy']:.1%}"
        )
    raise typer.Exit(1 if record["status"] == "failed" else 0)


@app.command()
def study(
    words: Words = None,
    out: OutOrUrl = None,
    on: On = "local",
    workers: Workers = 0,
    preflight: Preflight = True,
    retry_failed: Retry = False,
    figures: Annotated[bool, typer.Option(help="Also write SVG and PNG figures.")] = True,
    as_json: AsJson = False,
) -> None:
    """Run every cell that is missing and write the report.

    Without a file it runs the embedded quick study. Run it again and it does what is missing.

    Example: [bold]potstill study studies/full.toml --workers 2 train.steps=50 seeds=0,1,2[/]
    """
    from potstill.cli.launch import fill
    from potstill.report import write_report
    from potstill.study.remote import Mirror, is_url
    from potstill.training.spending import BudgetReached

    chosen = study_of(words)
    mirror = Mirror(out) if out and is_url(out) else None
    folder = mirror.path if mirror else Path(out or Path("runs") / chosen.name)

    def reported() -> Report:
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


@app.command()
def audit(
    words: Words = None,
    out: Out = None,
    workers: Workers = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="One pair, three methods, two faults: minutes.")
    ] = False,
    retry_failed: Retry = False,
    markdown: Annotated[bool, typer.Option(help="Also print the matrix as Markdown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find which of the published faults causes the collapse, with intervals.

    Runs every method clean, with all published faults, with each alone and with all but one.
    Resumable; without a file it audits all methods on both embedded pairs over five seeds, with
    the published settings; --quick and study files train by their own.

    Example: [bold]potstill audit --quick[/]
    """
    from potstill.cli.launch import fill
    from potstill.diagnostics.faults import PUBLISHED
    from potstill.report import audit as auditing
    from potstill.report.audit_page import to_markdown, write_audit
    from potstill.study.storage import StudyFolder, cells_of

    base = study_of(words, auditing.QUICK if quick else auditing.FULL)
    faults = auditing.QUICK_FAULTS if quick else PUBLISHED
    path = out or Path("runs") / base.name
    plan, failed = auditing.variants(base.recipes, faults), 0
    for number, variant in enumerate(plan, 1):
        study = auditing.study_of(base, variant)
        folder = StudyFolder(path / "variants" / variant.name)
        if len(folder.results(cells_of(study))) < len(cells_of(study)):
            print(f"variant {number} of {len(plan)}: {variant.name}", file=sys.stderr)
        results = fill(study, folder.path, workers, False, retry_failed, path / ".cache")
        failed += sum(record["status"] == "failed" for record in results.values())
    found = write_audit(base, path, faults)
    print(json.dumps(found, indent=1) if as_json else f"{found['verdict']}\n")
    if markdown:
        entries = auditing.matrix(base, path, faults)
        print(to_markdown(base, entries, auditing.verdicts(entries, faults)))
    if not as_json:
        print(f"audit: {path / 'audit.html'}")
    raise typer.Exit(1 if failed else 0)


@app.command()
def bench(
    words: Words = None,
    pair: Annotated[str | None, typer.Option(help="Pair; default: the study's first.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Steps to time, after one to warm up.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Time sampling, scoring and training of a pair, as a share of what this machine allows.

    The bound is measured on the spot: memory bandwidth and matrix products, with the study's
    threads and dtype. Nothing is trained: the learning rate is 0.

    Example: [bold]potstill bench mine.toml --pair qwen train.batch_size=8[/]
    """
    from potstill.cli.bench import as_rows, bench, heading
    from potstill.errors import did_you_mean

    study = study_of(words)
    pair = pair or next(iter(study.models))
    if pair not in study.models:
        raise PotstillError(f'no pair "{pair}" here', did_you_mean(pair, study.models, "pairs"))
    found = bench(study, pair, repeats)
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        print(heading(found))
        print_table(as_rows(found))


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder, hub name or e.g. tiny-qwen/student.")],
    task: Annotated[str, typer.Option(help="Task, see `potstill ls tasks`.")] = "arithmetic",
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[OPTION=VALUE]...", show_default=False)
    ] = None,
    problems: Annotated[int, typer.Option(min=2, help="Held-out problems to grade.")] = 500,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens per completion.")] = 256,
    texts: Annotated[Path | None, typer.Option(help="Write the texts here as JSONL.")] = None,
    as_json: AsJson = False,
) -> None:
    """Grade any model on a task's held-out problems.

    Example: [bold]potstill eval runs/quick/cells/tiny-qwen/hybrid/0/student --task arithmetic[/]
    """
    from potstill.cli.listing import grade_model

    result = grade_model(model, task, options or [], problems, max_tokens, texts)
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        low, high = result["interval"]
        print(
            f"strict {result['strict']:.1%} (95 % interval {low:.1%} to {high:.1%}), "
            f"flexible {result['flexible']:.1%}, {result['problems']} problems"
        )


@zoo_app.command("build")
def zoo_build(
    pairs: Annotated[list[str] | None, typer.Argument(help="Pairs; default: all.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("runs/zoo"),
    seed: Annotated[int, typer.Option(help="Decides weights and problems.")] = 0,
    role: Annotated[str, typer.Option(help="student, teacher or both.")] = "both",
) -> None:
    """Train the embedded pairs again from a seed and print their accuracies.

    Example: [bold]potstill zoo build tiny-qwen --seed 0 --out runs/zoo[/]
    """
    from potstill.cli.listing import build_zoo

    for row in build_zoo(pairs or [], out, seed, role):
        print(
            f"{row['pair']} {row['role']}: {row['accuracy']:.1%} of {row['problems']} problems, "
            f"{row['flexible']:.1%} by the flexible extractor"
        )


@zoo_app.command("save")
def zoo_save(
    pair: Annotated[str, typer.Argument(help="Pair, see `potstill ls pairs`.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("runs/models"),
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Copy an embedded pair to ordinary model folders: for a server, or to look at.

    Example: [bold]potstill zoo save tiny-qwen --out runs/models[/]
    """
    from potstill.engines.zoo.save import save_pair

    print(save_pair(pair, out, dtype))

"""`potstill audit`: the published study's faults, one at a time and all but one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from potstill.cli.app import TOOLS, command
from potstill.cli.options import AsJson, AsMarkdown, Out, Retry, Words, Workers, study_of
from potstill.cli.tables import print_json
from potstill.cli.terminal import echo


@command(
    "audit",
    TOOLS,
    "potstill audit --quick",
    "potstill audit --fault unshifted_targets seeds=0,1,2",
    "potstill audit mine.toml --workers 2",
)
def audit(
    words: Words = None,
    out: Out = None,
    workers: Workers = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="One pair, three methods, two faults: two minutes.")
    ] = False,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            "--fault",
            metavar="NAME",
            help="Try only this published fault alone and left out; may be given several times.",
        ),
    ] = None,
    retry_failed: Retry = False,
    markdown: AsMarkdown = False,
    as_json: AsJson = False,
) -> None:
    """Find which of the published study's faults causes collapse, with intervals.

    Every method is run without faults, with all the published faults, with each one alone and with
    all but one. Run it again to resume it. Without a file it audits all methods on both embedded
    pairs over five seeds, with the published settings; --quick and study files use their own.
    """
    from potstill.cli.launch import fill
    from potstill.diagnostics.faults import PUBLISHED
    from potstill.errors import PotstillError, did_you_mean
    from potstill.report import audit as auditing
    from potstill.report.pages.audit import to_markdown, write_audit
    from potstill.study.storage import StudyFolder, runs_of

    base = study_of(words, auditing.QUICK if quick else auditing.FULL)
    faults = auditing.QUICK_FAULTS if quick else PUBLISHED
    if fault:
        for name in set(fault) - set(PUBLISHED):
            hint = did_you_mean(name, PUBLISHED, "published faults")
            raise PotstillError(f'--fault names a published fault, got "{name}"', hint)
        faults = tuple(name for name in PUBLISHED if name in fault)
    auditing.check_audit(base)
    path = out or Path("runs") / base.name
    plan, failed = auditing.variants(base.recipes, faults), 0
    for number, variant in enumerate(plan, 1):
        study = auditing.study_of(base, variant)
        folder = StudyFolder(path / "variants" / variant.name)
        if len(folder.results(runs_of(study))) < len(runs_of(study)):
            echo(f"variant {number} of {len(plan)}: {variant.name}", file=sys.stderr)
        results = fill(study, folder.path, workers, False, retry_failed, path / ".cache")
        failed += sum(record["status"] == "failed" for record in results.values())
    written = write_audit(base, path, faults)
    if as_json:
        print_json(written)
    else:
        echo(f"{written['verdict']}\n")
    if markdown:
        entries = auditing.matrix(base, path, faults)
        echo(to_markdown(base, entries, auditing.effects(entries, faults)))
    if not as_json:
        echo(f"audit: {path / 'audit.html'}")
    raise typer.Exit(1 if failed else 0)

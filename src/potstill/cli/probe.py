"""`potstill probe`: what a server of Tinker's API really does."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from potstill.cli.app import TOOLS, command
from potstill.cli.options import AsJson
from potstill.cli.tables import print_json, print_table
from potstill.cli.terminal import echo
from potstill.errors import PotstillError
from potstill.urls import Url


@command("probe", TOOLS, "potstill probe http://127.0.0.1:8000")
def probe(
    url: Annotated[str, typer.Argument(metavar="URL", help="A server of Tinker's API.")],
    model: Annotated[
        str,
        typer.Option(metavar="MODEL", help="Base model. [default: the one that the server has]"),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Test a Tinker-compatible server: target shifting, loss reduction, log-prob lengths, sampler
    freshness.

    It takes about half a minute. The exit code is 1 if the server has a fault that potstill cannot
    adapt to.
    """
    rows, unusable = conformance(url, model)
    if as_json:
        print_json(rows)
    else:
        print_table(rows)
    if unusable:
        raise typer.Exit(1)


def conformance(url: str, model: str = "") -> tuple[list[dict[str, Any]], bool]:
    """Test a server.

    Args:
        url: a server of Tinker's API.
        model: its base model; empty: the only one.

    Returns:
        A row for each question, and whether an answer is one that potstill cannot adapt to.
    """
    from dataclasses import asdict

    from transformers import AutoConfig

    from potstill.engines.tinker.client import Service
    from potstill.engines.tinker.conformance import ask
    from potstill.engines.tinker.connection import served
    from potstill.engines.torch.checkpoints import read_pretrained

    url = Url(url)
    names = served(url)
    if not model and len(names) != 1:
        raise PotstillError(
            f"{url} serves {len(names)} base models", f"choose one with --model: {', '.join(names)}"
        )
    model = model or names[0]
    vocabulary = read_pretrained(AutoConfig, model).get_text_config().vocab_size
    service = Service(url, model, vocabulary)
    try:
        facts = ask(service, tell=lambda words: echo(f"testing: {words}", file=sys.stderr))
    finally:
        service.close()
    head = {"question": "server", "answer": f"{url}, {model}, SDK {service.sdk}", "verdict": ""}
    return [head, *(asdict(fact) for fact in facts.table)], bool(facts.refused)

"""Names of the files in a study's folder that are copied from or to a URL; see `storage`."""

from __future__ import annotations

RUNNING, SPENT, RESULT = ".running", ".spent", "result.json"  # files of a run, see `storage`
STOP = ".stop"  # text: the budget limit that is reached, for runs on other machines
GROWING = ("metrics.jsonl", "examples.jsonl", "findings.json", SPENT)
MIRRORED = {*GROWING, RESULT, RUNNING, "study.toml", "predicted.json", "inputs.json", "race.json"}
REPORT = ("results.json", "table.csv", "report.html", "figures/*")

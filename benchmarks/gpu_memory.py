"""Peak memory of training runs, predicted before they begin and measured at their end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import gpu_models as models
from benchmarks.beside import peak_memory
from benchmarks.gpu_section import Section
from benchmarks.gpu_training import Case, cases
from potstill.study.loading import read_study
from potstill.study.run import preflight_pair, run_cell
from potstill.study.schema import Study
from potstill.study.storage import RunId, StudyFolder

PAIR, METHOD = "measured", "on_policy_gkd"


def predictions(study: Study, section: Section) -> Iterator[tuple[str, int]]:
    """Predicted bytes of a study's runs by each estimate; other estimates belong here."""
    checks = preflight_pair(study, PAIR, only=("time and memory",))
    for check in checks:
        if check.numbers:
            yield "pre-flight", int(check.numbers["peak"])
        else:
            section.fail(f"pre-flight, {check.name}", check.evidence)


def run(section: Section) -> None:
    section.text(
        "A run of each kind in this process. `allocated` is the peak that torch's tensors took "
        "(`max_memory_allocated`), `reserved` what torch took from the card. Pre-flight reports "
        "the larger share of the card (reserved) and of the host's memory, from steps that it "
        "takes. On a CPU all figures are the process's resident size, which never falls."
    )
    heads = ["student : teacher", "trained", "estimate", "predicted GB", "allocated GB"]
    rows = section.table("", [*heads, "reserved GB", "predicted : reserved"])
    for number, case in enumerate(cases(section)):
        with section.part(f"{case.pair}, {case.trained}", 0 if section.tiny else 15) as go:
            if go:
                measured(section, case, number, rows)
        models.clear()


def measured(section: Section, case: Case, number: int, rows: Any) -> None:
    """Predict a run's memory, run it, and add a row for each estimate."""
    study = study_of(section, case)
    models.clear()
    predicted = dict(predictions(study, section))
    models.clear()
    folder = StudyFolder(section.scratch / f"memory-{number}", section.scratch / "memory-cache")
    folder.open(study)
    for run_id in (RunId(PAIR, "teacher"), RunId(PAIR, METHOD, 0)):
        models.clear()
        result = run_cell(study, folder, run_id)
        if result["status"] != "done":
            section.fail(f"{case.pair}, {case.trained}, {run_id.method}", str(result)[:400])
            return
    allocated, reserved = peaks(section)
    for name, count in predicted.items():
        cells = [count / 1e9, allocated / 1e9, reserved / 1e9, count / reserved]
        rows.row(case.pair, case.trained, name, *cells)


def study_of(section: Section, case: Case) -> Study:
    """A study of one run on a case's pair."""
    batch, added = (4, 8) if section.tiny else (16, 64)
    spec = {"device": section.device, "dtype": "bfloat16"}
    engine = {"name": "torch", "student": spec, "teacher": spec, "threads": 0}
    train = {"steps": 3, "batch_size": batch, "max_tokens": added, "learning_rate": 1e-4}
    return read_study(
        {
            "name": "memory",
            "pair": {PAIR: models.pair(section, case.student, case.teacher)},
            "methods": [METHOD],
            "engine": {**engine, "gradient_checkpointing": case.checkpointing},
            "train": {**train, "lora_rank": case.lora_rank, "save": False},
            "eval": {"problems": 8, "every": 3, "probe": 4},
        }
    )


def peaks(section: Section) -> tuple[int, int]:
    """Bytes that were allocated and reserved at most."""
    if section.device != "cuda":
        return peak_memory(), peak_memory()
    import torch

    return peak_memory(section.device), int(torch.cuda.max_memory_reserved())

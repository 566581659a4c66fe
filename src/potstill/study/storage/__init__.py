"""A study's folder on disk: where everything is stored, and the classes that read and write it.

    study.toml                          settings with every default, provenance
    cells/PAIR/METHOD/SEED/             one run; baselines have SEED = "all"
        metrics.jsonl                   one line per step, no clock times: equal runs, equal bytes
        examples.jsonl                  completions of the evaluations
        findings.json                   diagnosis so far, rewritten when it changes
        .running                        process that executes the run
        .spent                          seconds and tokens so far, if the study has a budget
        result.json                     written last, atomically
        checkpoints/                    removed when the run has ended, unless its state is kept
        student/                        the trained model
        students/step-N/                the student of step N, with train.save_every
        tracking/NAME.json              last step that a tracker has, and its last error
    track/NAME/                         files of trackers that write here
    race.json  screen/                  of a race, see `race.folder`
    predicted.json                      cost of each run, as pre-flight predicted it
    results.json  table.csv  report.html

`keys` names the runs, `run_folder` is one run on disk, `study_folder` the whole study. A file lock
per run, released when its process dies, keeps two processes from executing the same run.
"""

from __future__ import annotations

from potstill.study.files import write_text
from potstill.study.storage.identity import settings_digest
from potstill.study.storage.keys import REFERENCES, RunId, references_of, runs_of
from potstill.study.storage.run_folder import RunFolder, example
from potstill.study.storage.study_folder import StudyFolder

__all__ = [
    "REFERENCES",
    "RunId",
    "RunFolder",
    "StudyFolder",
    "references_of",
    "runs_of",
    "example",
    "settings_digest",
    "write_text",
]

"""The named deviations from the semantics, by name.

A study switches faults on by name, for experiments; every report of such a study states it. The
first eight are those of the published study's code (github.com/bledden/context-distillation-
tinkerideas, commit 6c3ae3f); the others are common in the field. To add one, write its class and
append it here; pre-flight, the monitor, the audit and the command line read this tuple.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from potstill.diagnostics.faults.base import DataFault, Fault
from potstill.diagnostics.faults.rewriting import (
    EosUntrained,
    PrefixTrained,
    PromptDropped,
    TeacherShifted,
    TemplateMismatch,
    UnshiftedTargets,
)
from potstill.diagnostics.faults.setup import (
    AnchorAbsent,
    EvalOnTrain,
    SeedsIgnored,
    TopKWithoutTail,
)
from potstill.diagnostics.faults.stepping import LearningRateSpike, MixtureUnblended, StaleSampler
from potstill.diagnostics.faults.teacher import VocabPermuted
from potstill.errors import PotstillError, did_you_mean
from potstill.training.run import RunSpec

_FAULTS: tuple[Fault, ...] = (
    UnshiftedTargets(),
    PromptDropped(),
    StaleSampler(),
    PrefixTrained(),
    AnchorAbsent(),
    MixtureUnblended(),
    EvalOnTrain(),
    SeedsIgnored(),
    EosUntrained(),
    TemplateMismatch(),
    TeacherShifted(),
    VocabPermuted(),
    LearningRateSpike(),
    TopKWithoutTail(),
)

FAULTS: dict[str, Fault] = {fault.name: fault for fault in _FAULTS}
PUBLISHED = tuple(fault.name for fault in _FAULTS if fault.published)
# Mistakes in the data of a step, which can be tried to explain it.
REWRITING: dict[str, DataFault] = {
    fault.name: fault for fault in _FAULTS if isinstance(fault, DataFault)
}


def check_faults(names: Sequence[str]) -> None:
    """Refuse unknown names and repeated ones."""
    for name in names:
        if name not in FAULTS:
            raise PotstillError(f'unknown fault "{name}"', did_you_mean(name, FAULTS, "faults"))
    if len(set(names)) < len(names):
        raise PotstillError(f"faults lists {list(names)}, one of them twice", "list each once")


def teacher_for(names: Sequence[str], teacher: str, folder: Path) -> str:
    """The teacher that the named faults put in the place of `teacher`, made in `folder`."""
    for name in names:
        teacher = FAULTS[name].teacher(teacher, folder / name)
    return teacher


def apply(names: Sequence[str], run: RunSpec) -> RunSpec:
    """The run with the named faults switched on, whatever the order of the names."""
    check_faults(names)
    for fault in sorted(_FAULTS, key=lambda fault: fault.outermost):
        if fault.name in names:
            run = fault.apply(run)
    return run

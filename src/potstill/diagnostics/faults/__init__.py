"""Faults: named, deliberate deviations from the semantics, for experiments.

A study switches faults on by name, and its report lists them. The first eight are those of the
published study's code (github.com/bledden/context-distillation-tinkerideas, commit 6c3ae3f); the
others are common in the field. To add one, write its class and append it to the tuple below:
pre-flight, the monitor, the audit and the command line read it.
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
# Faults in the data of a step, which can be tried to explain a wrong loss.
REWRITING: dict[str, DataFault] = {
    fault.name: fault for fault in _FAULTS if isinstance(fault, DataFault)
}


def check_faults(names: Sequence[str]) -> None:
    """Reject unknown and repeated names."""
    for name in names:
        if name not in FAULTS:
            raise PotstillError(f'unknown fault "{name}"', did_you_mean(name, FAULTS, "faults"))
    if len(set(names)) < len(names):
        raise PotstillError(f"a fault is listed twice in {list(names)}", "list each fault once")


def teacher_for(names: Sequence[str], teacher: str, folder: Path) -> str:
    """The teacher with the named faults applied; changed copies are written to `folder`."""
    for name in names:
        teacher = FAULTS[name].teacher(teacher, folder / name)
    return teacher


def apply(names: Sequence[str], run: RunSpec) -> RunSpec:
    """Apply the named faults to a run. The order of the names does not matter."""
    check_faults(names)
    for fault in sorted(_FAULTS, key=lambda fault: fault.outermost):
        if fault.name in names:
            run = fault.apply(run)
    return run

"""A mode collapse is found by behaviour where accuracy cannot show it; certainty alone is sound."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from conftest import monitored, toy_table
from potstill.algorithms.methods import METHODS
from potstill.diagnostics.diagnosis import alarms, diagnose, healthy_until
from potstill.diagnostics.probe import loop
from potstill.diagnostics.symptoms import probes_with_symptoms
from potstill.engines.fake import EOS, FIRST, SIZE, FakeEngine
from potstill.engines.registry import open_engine
from potstill.errors import PotstillError
from potstill.settings import Eval, Train
from potstill.study.loading import read_study
from potstill.study.run import run_cell
from potstill.study.storage import RunId, StudyFolder
from potstill.tasks import load_task
from potstill.training.recorder import Memory
from potstill.types import Finding

Rows = list[dict[str, Any]]

# A weak student at step 0: it writes long, diverse completions that are far from the teacher's.
START = {
    "train/kl_divergence": 5.4,
    "signal/teacher_loss": 8.9,
    "signal/reading_loss": 12.0,
    "signal/entropy": 3.5,
    "signal/teacher_entropy": 5.5,
    "signal/repetition": 0.03,
    "signal/loop": 0.1,
    "signal/distinct": 1.0,
    "signal/length": 48.0,
    "signal/truncated": 1.0,
}
TEACHER = {
    "signal/teacher_accuracy": 0.0,
    "signal/teacher_loop": 0.2,
    "signal/teacher_distinct": 1.0,
    "signal/teacher_length": 40.0,
}
# Each sign of lost variety, with the words of its evidence.
SIGNS: dict[str, tuple[dict[str, float], str]] = {
    "entropy": ({"signal/entropy": 6e-6, "signal/teacher_entropy": 2.2}, "entropy is 6e-06 nats"),
    "loop": ({"signal/loop": 1.0}, "100% of tokens are in a loop"),
    "one text": ({"signal/distinct": 0.0625}, "6% of completions are different ones"),
    "short": ({"signal/length": 1.0}, "a completion has 1.0 tokens"),
    "gradient": ({"train/grad_norm": 0.001}, "the gradient norm fell from 80 to 0.001"),
}
HARM: dict[str, tuple[dict[str, float], str]] = {
    "KL": ({"train/kl_divergence": 6.1}, "KL(p, q) on its completions is 6.10 nats"),
    "forgotten": (
        {"train/kl_divergence": 0.4, "signal/reading_loss": 26.0},
        "the teacher's completions cost it 26.00 nats per token, 12.00 at best",
    ),
}


def run(accuracy: float | None, *changes: dict[str, float], steps: int = 15) -> Rows:
    """A run whose signals change after step 5."""
    late: dict[str, float] = {}
    for change in changes:
        late |= change
    rows: Rows = [{"step": 0, "train/accuracy": accuracy, **START, **TEACHER}]
    for step in range(1, steps + 1):
        row: dict[str, Any] = {"step": step, "train/grad_norm": 80.0, "train/loss": 5.0}
        if step % 5 == 0:
            row |= {"checks": [], "train/accuracy": accuracy, **START}
        if step > 5:
            shown = late if step % 5 == 0 else {k: v for k, v in late.items() if "grad" in k}
            row |= shown
        rows.append(row)
    return rows


def named(rows: Rows) -> list[str]:
    return [finding.cause for finding in alarms(diagnose(rows))]


@pytest.mark.parametrize("accuracy", [None, 0.0])
@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("pair", list(combinations(SIGNS, 2)), ids=" and ".join)
def test_two_signs_and_a_harm_are_a_collapse(
    pair: tuple[str, str], harm: str, accuracy: float | None
) -> None:
    signs = [SIGNS[name] for name in pair]
    change, words = HARM[harm]
    rows = run(accuracy, change, *(values for values, _ in signs), steps=20)
    (finding,) = alarms(diagnose(rows))
    assert (finding.kind, finding.cause) == ("collapse", "mode_collapse")
    assert finding.step == 10 and finding.found == 15 and healthy_until(rows) == 5
    assert [w for w in (words, *(w for _, w in signs)) if w not in finding.evidence] == []


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("sign", SIGNS)
def test_one_sign_is_no_collapse(sign: str, harm: str) -> None:
    assert named(run(0.0, SIGNS[sign][0], HARM[harm][0], steps=20)) == []


@pytest.mark.parametrize(("loss", "left"), [(26.9, False), (27.1, True)])
@pytest.mark.parametrize("checked", [True, False])
def test_teacher_completions_that_become_very_unlikely_are_a_collapse(
    loss: float, left: bool, checked: bool
) -> None:
    """Twice the best loss of 12 nats and 3 more, while KL on its own completions falls."""
    rows = run(0.0, {"signal/reading_loss": loss, "train/kl_divergence": 3.0}, steps=20)
    if not checked:
        rows = [{k: v for k, v in row.items() if k != "checks"} for row in rows]
    cause = "rate_too_high" if checked else "unexplained"
    assert named(rows) == ([cause] if left else [])


def test_all_signs_without_harm_are_no_collapse() -> None:
    every = [values for values, _ in SIGNS.values()]
    near = {"train/kl_divergence": 0.3, "signal/reading_loss": 2.0, "signal/teacher_loss": 0.4}
    assert named(run(0.0, *every, near, steps=20)) == []
    assert named(run(0.0, *every, HARM["KL"][0], steps=20)) == ["mode_collapse"]


def test_right_answers_are_no_collapse_however_alike() -> None:
    every = [values for values, _ in (*SIGNS.values(), *HARM.values())]
    assert named(run(0.5, *every, steps=20)) == []  # its accuracy is as it was


def test_an_engine_without_full_log_probs_shows_it_by_its_text() -> None:
    rows = run(0.0, SIGNS["loop"][0], SIGNS["one text"][0], HARM["KL"][0])
    for row in rows:
        row.update({name: None for name in row if name.endswith("entropy")})
    assert named(rows) == ["mode_collapse"]


def test_recordings_without_the_new_signals_are_diagnosed_by_the_others() -> None:
    rows = run(0.0, SIGNS["entropy"][0], {"signal/repetition": 1.0}, HARM["KL"][0])
    new = {"signal/loop", "signal/distinct", *TEACHER}
    assert named([{k: v for k, v in row.items() if k not in new} for row in rows]) == [
        "mode_collapse"
    ]


@pytest.mark.parametrize(
    ("signal", "sound"),
    [
        ("signal/distinct", {"signal/teacher_distinct": 0.1}),  # one right answer for many prompts
        ("signal/length", {"signal/teacher_length": 2.0}),
        ("signal/loop", {"signal/teacher_loop": 0.9}),
        ("signal/entropy", {}),
    ],
)
def test_a_sign_is_measured_by_the_teacher_too(signal: str, sound: dict[str, float]) -> None:
    """What the teacher does as well is no sign of a collapse."""
    signs = {
        "signal/distinct": SIGNS["one text"][0],
        "signal/length": SIGNS["short"][0],
        "signal/loop": SIGNS["loop"][0],
        "signal/entropy": SIGNS["entropy"][0],
    }
    other = SIGNS["gradient"][0]
    rows = run(0.0, signs[signal], other, HARM["KL"][0], steps=20)
    assert named(rows) == ["mode_collapse"]
    rows[0] |= sound
    if signal == "signal/entropy":  # the teacher is as certain there
        for row in rows[10:]:
            if "signal/entropy" in row:
                row["signal/teacher_entropy"] = 1e-5
    assert named(rows) == []


@pytest.mark.parametrize(
    ("kl", "collapsed"),
    [((5.4, 2.0, 2.1, 2.1), False), ((5.4, 2.0, 3.9, 3.9), True), ((0.3, 0.3, 0.4, 0.4), False)],
)
def test_kl_is_harm_where_it_stays_high_or_rises_again(
    kl: tuple[float, ...], collapsed: bool
) -> None:
    """A warm start lowers it first; below half a nat the two models agree."""
    rows = run(0.0, SIGNS["entropy"][0], SIGNS["loop"][0])
    for step, value in zip((0, 5, 10, 15), kl, strict=True):
        rows[step]["train/kl_divergence"] = value
    assert (named(rows) == ["mode_collapse"]) is collapsed


@pytest.mark.parametrize(
    ("signal", "silent", "found"),
    [
        ("signal/entropy", 0.36, 0.34),  # a tenth of 3.5
        ("signal/teacher_entropy", 1e-5, 1e-4),  # ten times the student's 6e-6
        ("signal/loop", 0.49, 0.51),  # the teacher's 0.2 and 0.3
        ("signal/distinct", 0.51, 0.5),
        ("signal/length", 13.4, 13.3),  # a third of the teacher's 40
        ("signal/length", 143.0, 145.0),  # three times the student's 48
        ("train/grad_norm", 4.1, 3.9),  # a twentieth of 80
        ("train/kl_divergence", 4.3, 4.4),  # four fifths of 5.4
        ("signal/reading_loss", 15.3, 15.5),  # 1.2 times 12, and 1
    ],
)
def test_the_thresholds(signal: str, silent: float, found: float) -> None:
    """With one other sign, or both and no other harm."""
    harm = signal in ("train/kl_divergence", "signal/reading_loss")
    other = {"signal/reading_loss": 2.0, "train/kl_divergence": 0.4} if harm else HARM["KL"][0]
    signs = [SIGNS["short"][0], SIGNS["entropy"][0]] if harm else [SIGNS["short"][0]]
    if signal == "signal/length":
        signs = [SIGNS["loop"][0]]
    if signal == "signal/teacher_entropy":
        signs = [SIGNS["short"][0], SIGNS["entropy"][0]]
    assert named(run(0.0, *signs, other, {signal: silent}, steps=20)) == []
    assert named(run(0.0, *signs, other, {signal: found}, steps=20)) == ["mode_collapse"]


@pytest.mark.parametrize(("accuracy", "collapsed"), [(0.31, False), (0.29, True)])
def test_accuracy_decides_where_it_can(accuracy: float, collapsed: bool) -> None:
    """Above 0.6 of its best of 0.5 the student has its skill."""
    rows = run(0.5, SIGNS["entropy"][0], SIGNS["loop"][0], HARM["KL"][0])
    for row in rows[10:]:
        if "train/accuracy" in row:
            row["train/accuracy"] = accuracy
    assert (named(rows) == ["mode_collapse"]) is collapsed


def test_clean_checks_exclude_a_fault_that_the_behaviour_looks_like() -> None:
    """A student that repeats a token copies it, and the targets are not to blame."""
    copies = {"signal/copy": 0.9}
    rows = run(0.0, SIGNS["entropy"][0], SIGNS["loop"][0], HARM["KL"][0], copies)
    rows[0]["signal/copy"] = 0.01
    assert named(rows) == ["mode_collapse"]
    assert named([{k: v for k, v in r.items() if k != "checks"} for r in rows]) == [
        "unshifted_targets"
    ]


def test_symptoms_need_the_untrained_student() -> None:
    rows = run(0.0, SIGNS["entropy"][0], SIGNS["loop"][0], HARM["KL"][0])
    assert list(probes_with_symptoms(rows[5:])) == [] == list(probes_with_symptoms([]))
    assert [row["step"] for row, _ in probes_with_symptoms(rows)] == [5, 10, 15]


@pytest.mark.parametrize(
    ("tokens", "share"),
    [((), 0.0), ((5,), 0.0), ((5, 5, 5), 1.0), ((5, 6, 7, 5, 6, 7, 5), 4 / 6), ((1, 2, 3), 0.0)],
)
def test_a_loop_of_any_period_is_one(tokens: tuple[int, ...], share: float) -> None:
    assert loop(tokens) == pytest.approx(share)


class Greedy(FakeEngine):
    """A student that a high rate drives into one token, and a teacher that would not write it.

    The teacher is certain of nothing. One token dominates the student from the start, and each
    step adds to its lead, as a step at a high rate on reverse KL does until its gradient is gone.
    """

    def __init__(self, rise: float) -> None:
        super().__init__()
        self.rise, newline = rise, 0
        self._token = newline
        self._tables["teacher"][:] = 0.0
        self._tables["teacher"][:, EOS] = -4.0

    def step(self, data: Any, learning_rate: float) -> Any:
        stats = super().step(data, learning_rate)
        self._tables["student"][:, self._token] += self.rise
        return stats


def fake_run(tmp_path: Path, rise: float, **changes: Any) -> tuple[Any, Memory]:
    task = load_task(**toy_table(tmp_path)["task"])
    rate = {"learning_rate": 1e-6, **changes}
    settings = Train(steps=20, batch_size=4, max_tokens=24, **rate)
    memory = Memory()
    evaluation = Eval(problems=4, probe=8)
    trained = monitored(
        METHODS["on_policy_gkd"], Greedy(rise), task, settings, evaluation, recorder=memory
    )
    return trained, memory


def test_a_student_that_is_driven_into_one_token_is_stopped(tmp_path: Path) -> None:
    assert SIZE - 1 == EOS and FIRST == 32
    trained, memory = fake_run(tmp_path, 5.0, on_collapse="stop")
    assert trained.ended == {"step": 10, "of": 20}
    assert memory.metrics[0]["train/accuracy"] == 0.0  # and so it cannot show the collapse
    (finding,) = alarms(memory.findings)
    assert (finding.cause, finding.step, finding.found) == ("mode_collapse", 5, 10)
    assert memory.metrics[10]["signal/distinct"] == 1 / 8


def test_the_same_student_without_the_drive_has_no_alarm(tmp_path: Path) -> None:
    trained, memory = fake_run(tmp_path, 0.0, on_collapse="stop")
    assert trained.ended is None and alarms(memory.findings) == []
    assert [finding.cause for finding in memory.findings] == ["nothing_learned"]
    assert memory.metrics[-1]["signal/distinct"] == 1.0


def test_a_model_at_a_high_rate_collapses_and_is_stopped(tmp_path: Path) -> None:
    """A real student and optimizer, on a task that it cannot solve."""
    rows = "".join(f'{{"question": "Write about {n}.", "answer": "x{n}"}}\n' for n in range(40))
    for split in ("train", "test"):
        text = rows if split == "train" else rows.replace("about", "of")
        (tmp_path / f"{split}.jsonl").write_text(text)
    study = read_study(
        {
            "pairs": ["tiny-llama"],
            "methods": ["on_policy_gkd"],
            "task": {
                "name": "jsonl",
                "train_path": str(tmp_path / "train.jsonl"),
                "test_path": str(tmp_path / "test.jsonl"),
            },
            "train": {
                "steps": 30,
                "batch_size": 4,
                "learning_rate": 0.1,
                "warmup": 0,
                "save": False,
                "on_collapse": "stop",
            },
            "eval": {"problems": 4},
        }
    )
    folder = StudyFolder(tmp_path / "study")
    folder.open(study)
    run_cell(study, folder, RunId("tiny-llama", "teacher"))
    result = run_cell(study, folder, RunId("tiny-llama", "on_policy_gkd", 0))
    assert result["status"] == "done" and result["ended"] == {"step": 10, "of": 30}
    first = Finding(**result["findings"][0])
    assert (first.kind, first.cause) == ("collapse", "mode_collapse")
    assert "entropy" in first.evidence and "forward_kl" in first.advice


@pytest.mark.parametrize("method", ["on_policy_gkd", "off_policy"])
@pytest.mark.parametrize("rate", [0.3, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("batch", [4, 10])
def test_short_right_answers_at_a_high_rate_have_no_alarm(
    method: str, rate: float, batch: int, tmp_path: Path
) -> None:
    """The student becomes certain of answers of one letter, a batch now and then is a surprise."""
    task = load_task(**toy_table(tmp_path)["task"])
    settings = Train(steps=60, batch_size=batch, max_tokens=24, learning_rate=rate)
    evaluation = Eval(problems=20, every=60, probe=8)
    engine = open_engine("fake", "tiny-qwen")
    memory = Memory()
    trained = monitored(METHODS[method], engine, task, settings, evaluation, recorder=memory)
    assert trained.accuracy >= 0.6 and memory.metrics[-1]["signal/entropy"] < 1
    assert alarms(memory.findings) == []


def test_the_teacher_is_compared_at_step_0_only(tmp_path: Path) -> None:
    _, memory = fake_run(tmp_path, 0.0)
    first, later = memory.metrics[0], memory.metrics[5]
    assert {"signal/teacher_distinct", "signal/teacher_loop", "signal/teacher_length"} <= set(first)
    assert "signal/distinct" in later and "signal/teacher_distinct" not in later
    with pytest.raises(PotstillError, match="rollback"):
        fake_run(tmp_path, 0.0, on_collapse="rollback")

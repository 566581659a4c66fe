"""Diagnosis: a broken run is found, named and ended; a sound run has no finding."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from conftest import monitored, toy_table
from potstill.algorithms.methods import METHODS
from potstill.cli import app
from potstill.diagnostics import diagnosis
from potstill.diagnostics.diagnosis import OTHERS, diagnose, healthy_until, sentence
from potstill.diagnostics.faults import FAULTS, PUBLISHED
from potstill.diagnostics.probe import repetition
from potstill.engines.registry import open_engine
from potstill.errors import PotstillError
from potstill.settings import Eval, Train
from potstill.study.loading import read_study
from potstill.study.run import run_cell
from potstill.study.schema import Study
from potstill.study.storage import RunFolder, RunId, StudyFolder
from potstill.tasks import load_task
from potstill.types import Finding

# Faults that the first steps of a run reveal, each with a method that it touches.
NAMED = {
    "unshifted_targets": "mixture",
    "prompt_dropped": "on_policy_gkd",
    "stale_sampler": "on_policy_gkd",
    "prefix_trained": "teacher_seeded",
    "anchor_absent": "kl_anchored",
    "mixture_unblended": "mixture",
    "eval_on_train": "off_policy",
    "seeds_ignored": "on_policy_gkd",
    "eos_untrained": "on_policy_gkd",
    "template_mismatch": "on_policy_gkd",
    "teacher_shifted": "on_policy_gkd",
    "vocab_permuted": "on_policy_gkd",
    "top_k_without_tail": "on_policy_gkd",
}


# Faults that change the teacher or the problems of its evaluation.
CHANGE_BASELINE = {"vocab_permuted", "eval_on_train"}
# First words of instructions.
VERBS = (
    "add check compare compute evaluate lower pass raise read refresh render run set shift slice "
    "start train use weigh"
)


class Tiny:
    """Short runs of the embedded pair tiny-llama; equal runs and their baseline are made once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs: dict[str, dict[str, Any]] = {}

    def __call__(self, method: str, faults: Sequence[str] = (), **train: Any) -> dict[str, Any]:
        """Train one run; returns its rows, its result, its folder and its study's folder."""
        key = json.dumps([method, list(faults), train], sort_keys=True)
        if key not in self.runs:
            self.runs[key] = self._train(method, faults, train)
        return self.runs[key]

    def _train(self, method: str, faults: Sequence[str], train: dict[str, Any]) -> dict[str, Any]:
        study = read_study(
            {
                "pairs": ["tiny-llama"],
                "methods": [method],
                "faults": list(faults),
                "train": {"steps": 6, "save": False, **train},
                "eval": {"problems": 20},
            }
        )
        folder = self._folder(f"run-{len(self.runs)}")
        folder.open(study)
        self._copy_baseline(study, folder)
        cell = RunId("tiny-llama", method, 0)
        result = run_cell(study, folder, cell)
        assert result["status"] == "done", result
        run = folder.cell(cell)
        return {"rows": run.metrics, "result": result, "path": run.path, "study": folder.path}

    def _copy_baseline(self, study: Study, folder: StudyFolder) -> None:
        """Put the evaluated teacher into a study's folder."""
        changes = sorted(CHANGE_BASELINE & set(study.faults))
        baseline, cell = (
            self._folder("-".join(["baseline", *changes])),
            RunId("tiny-llama", "teacher"),
        )
        if baseline.cell(cell).result is None:
            run_cell(study, baseline, cell)
        shutil.copytree(baseline.cell(cell).path, folder.cell(cell).path)

    def _folder(self, name: str) -> StudyFolder:
        return StudyFolder(self.root / name, self.root / "cache")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"))


def causes(rows: Sequence[Any]) -> list[str]:
    return [finding.cause for finding in diagnose(rows)]


def probe(step: int, accuracy: float, **signals: float) -> dict[str, Any]:
    """A row with the signals of a probe; sound by default."""
    sound = {"teacher_loss": 0.4, "reading_loss": 0.1, "copy": 0.05, "end": 0.99, "entropy": 0.1}
    values = {**sound, "truncated": 0.0, "repetition": 0.05, **signals}
    row = {"step": step, "train/accuracy": accuracy, "train/grad_norm": 1.0, "train/loss": 0.5}
    return {**row, **{f"signal/{name}": value for name, value in values.items()}}


def test_causes_are_a_closed_list_each_with_a_meaning_and_an_instruction() -> None:
    assert set(FAULTS) == {*NAMED, "learning_rate_spike"} and len(OTHERS) == 12
    causes = [*FAULTS, *OTHERS]
    assert len(set(causes)) == len(causes)
    meanings = {diagnosis.meaning(cause) for cause in causes}
    instructions = {diagnosis.advice(cause) for cause in causes}
    assert len(meanings) == len(instructions) == len(causes) and "" not in meanings
    assert not {text for text in instructions if text.split()[0] not in VERBS.split()}


@pytest.mark.parametrize("fault", NAMED)
def test_a_fault_is_named_within_the_first_steps(fault: str, tiny: Tiny) -> None:
    assert causes(tiny(NAMED[fault], [fault])["rows"]) == [fault]


@pytest.mark.parametrize("method", METHODS)
def test_a_sound_run_has_no_finding(method: str, tiny: Tiny) -> None:
    run = tiny(method)
    assert diagnose(run["rows"]) == []
    assert not [f for f in run["result"]["findings"] if f["kind"] != "note"]
    assert run["result"]["ended"] is None


def test_sound_lora_and_half_precision_runs_have_no_finding(tmp_path: Path) -> None:
    table = {"pairs": ["tiny-llama"], "methods": ["mixture"], "eval": {"problems": 20}}
    engine = {"name": "torch", "student": {"dtype": "bfloat16"}, "teacher": {"dtype": "bfloat16"}}
    study = read_study({**table, "engine": engine, "train": {"steps": 6, "lora_rank": 4}})
    folder, cell = StudyFolder(tmp_path), RunId("tiny-llama", "mixture", 0)
    folder.open(study)
    run_cell(study, folder, RunId("tiny-llama", "teacher"))
    findings = run_cell(study, folder, cell)["findings"]
    assert not [finding for finding in findings if finding["kind"] != "note"]


def test_a_step_that_fits_no_known_mistake_is_called_another_objective() -> None:
    check = {"what": "student", "trained": 3.0, "expected": 0.5, "cause": ""}
    rows = [
        probe(0, 0.5),
        {"step": 1, "checks": [check], "suspects": ["student"], "train/grad_norm": 1.0},
        {"step": 2, "checks": [check], "suspects": [], "train/grad_norm": 1.0},
    ]
    assert causes(rows[:2]) == []  # the next step tries the known mistakes
    (finding,) = diagnose(rows)
    assert (finding.cause, finding.step, finding.found) == ("another_objective", 1, 2)
    assert "3.0000" in finding.evidence and "0.5000" in finding.evidence


class TestCollapse:
    def test_accuracy_alone_is_no_collapse(self) -> None:
        rows = [probe(0, 0.5), *(probe(step, 0.0) for step in (5, 10, 15))]
        assert diagnose(rows) == [] and healthy_until(rows) == 15

    def test_one_bad_probe_is_no_collapse(self) -> None:
        bad = probe(5, 0.0, teacher_loss=3.0)
        assert diagnose([probe(0, 0.5), bad, probe(10, 0.5)]) == []

    def test_two_bad_probes_are(self) -> None:
        bad = [probe(step, 0.0, teacher_loss=3.0) for step in (10, 15)]
        rows = [probe(0, 0.5), probe(5, 0.6), *bad]
        (finding,) = diagnose(rows)
        assert (finding.kind, finding.cause) == ("collapse", "unexplained")
        assert (finding.step, finding.found, healthy_until(rows)) == (10, 15, 5)
        assert "0% of the probe correct, 60% at best" in finding.evidence
        assert "3.00 nats" in finding.evidence

    @pytest.mark.parametrize(
        ("signals", "cause"),
        [
            ({"copy": 0.4}, "unshifted_targets"),
            ({"end": 0.01, "truncated": 0.9}, "eos_untrained"),
            ({"repetition": 0.8}, "unexplained"),
            ({"repetition": 0.8, "entropy": 0.001, "teacher_entropy": 2.0}, "unexplained"),
        ],
    )
    def test_behaviour_points_to_a_cause(self, signals: dict[str, float], cause: str) -> None:
        bad = [probe(step, 0.0, teacher_loss=3.0, **signals) for step in (5, 10)]
        assert causes([probe(0, 0.5), *bad]) == [cause]

    def test_a_deviation_seen_before_is_the_cause(self) -> None:
        check = {"what": "student", "trained": 3.0, "expected": 0.5, "cause": "prompt_dropped"}
        bad = [probe(step, 0.0, teacher_loss=3.0) for step in (5, 10)]
        rows = [probe(0, 0.5), {**bad[0], "checks": [check]}, bad[1]]
        first, second = diagnose(rows)
        assert (first.kind, second.kind) == ("collapse", "deviation")
        assert first.cause == second.cause == "prompt_dropped"

    def test_a_jump_of_loss_and_gradient_is_a_spike(self) -> None:
        calm = [{**probe(step, 0.5), "train/phase": 1.0} for step in range(1, 16)]
        jump = {**probe(16, 0.5), "train/phase": 1.0, "train/loss": 4.0, "train/grad_norm": 30.0}
        lasting = [{**jump, "step": step, "train/grad_norm": 2.0} for step in (17, 18)]
        (finding,) = diagnose([probe(0, 0.5), *calm, jump, *lasting])
        assert (finding.cause, finding.step, finding.found) == ("learning_rate_spike", 15, 18)
        other = [{**row, "train/phase": 0.0} for row in (jump, *lasting)]  # of another source
        assert diagnose([probe(0, 0.5), *calm, *other]) == []

    @pytest.mark.parametrize(("what", "spikes"), [("student", False), ("seed", True)])
    def test_a_run_that_trains_the_wrong_thing_jumps_for_that_reason(
        self, what: str, spikes: bool
    ) -> None:
        calm = [{**probe(step, 0.5), "train/phase": 1.0} for step in range(1, 16)]
        check = {"what": what, "trained": 3.0, "expected": 0.5, "cause": "prompt_dropped"}
        calm[4]["checks"] = [check]
        jump = {**probe(16, 0.5), "train/phase": 1.0, "train/loss": 4.0, "train/grad_norm": 30.0}
        lasting = [{**jump, "step": step} for step in (17, 18)]
        named = causes([probe(0, 0.5), *calm, jump, *lasting])
        assert named == ["prompt_dropped"] + ["learning_rate_spike"] * spikes

    @pytest.mark.parametrize("graded", [True, False])
    def test_a_student_without_skill_is_diagnosed_by_the_teachers_loss(self, graded: bool) -> None:
        weak = [probe(0, 0.0), *(probe(step, 0.0, teacher_loss=0.9) for step in (5, 10))]
        absurd = [probe(0, 0.0), *(probe(step, 0.0, teacher_loss=5.0) for step in (5, 10))]
        for row in [*weak, *absurd] if not graded else []:
            row["train/accuracy"] = None
        assert diagnose(weak) == []
        assert causes(absurd) == ["unexplained"]

    def test_a_lost_skill_with_clean_checks_has_no_known_cause(self) -> None:
        bad = [{**probe(step, 0.0, teacher_loss=3.0), "checks": []} for step in (5, 10)]
        assert causes([probe(0, 0.5), *bad]) == ["unexplained"]

    def test_a_quarter_of_the_best_accuracy_is_lost_if_the_completions_changed(self) -> None:
        for accuracy, lost in ((0.2, True), (0.3, False)):
            bad = [probe(step, accuracy, teacher_loss=0.9) for step in (5, 10)]
            assert (causes([probe(0, 0.8), *bad]) == ["unexplained"]) is lost


class TestOnCollapse:
    BROKEN = ("off_policy", ("unshifted_targets",))
    LONG = {"steps": 60, "checkpoint_every": 5}  # noqa: RUF012

    def test_stop_ends_early_and_records_the_cause(self, tiny: Tiny) -> None:
        run = tiny(*self.BROKEN, on_collapse="stop", **self.LONG)
        ended, first = run["result"]["ended"], run["result"]["findings"][0]
        assert ended["of"] == 60 and ended["step"] == run["rows"][-1]["step"] <= 30
        assert (first["kind"], first["cause"]) == ("collapse", "unshifted_targets")
        assert run["result"]["steps"] == ended["step"]

    def test_rollback_ends_on_the_last_good_student(self, tiny: Tiny) -> None:
        stop = tiny(*self.BROKEN, on_collapse="stop", **self.LONG)
        back = tiny(*self.BROKEN, on_collapse="rollback", **self.LONG)
        assert back["rows"] == stop["rows"]
        assert back["result"]["ended"]["back_to"] <= healthy_until(back["rows"])
        assert back["result"]["accuracy"] > stop["result"]["accuracy"]

    def test_rollback_before_any_checkpoint_is_the_untrained_student(self, tiny: Tiny) -> None:
        run = tiny(*self.BROKEN, steps=60, on_collapse="rollback")
        assert run["result"]["ended"]["back_to"] == 0
        assert run["result"]["accuracy"] > 0.25

    def test_warn_goes_on(self, tiny: Tiny) -> None:
        run = tiny(*self.BROKEN, steps=25)
        assert run["result"]["ended"] is None and run["result"]["steps"] == 25
        assert run["result"]["findings"][0]["kind"] == "collapse"
        assert RunFolder(run["path"]).findings == run["result"]["findings"]

    def test_rollback_without_a_folder_is_refused(self, tmp_path: Path) -> None:
        task = load_task(**toy_table(tmp_path)["task"])
        settings = Train(steps=2, learning_rate=0.1, on_collapse="rollback")
        with pytest.raises(PotstillError, match="rollback"):
            monitored(
                METHODS["off_policy"],
                open_engine("fake", Study().models["tiny-qwen"]),
                task,
                settings,
                Eval(problems=4, probe=4),
            )


class TestCommand:
    def test_prints_cause_and_advice_of_a_run_and_of_a_study(self, tiny: Tiny) -> None:
        run = tiny("off_policy", ("unshifted_targets",), steps=25)
        for path in (run["path"], run["study"]):
            output = CliRunner().invoke(app, ["diagnose", str(path)]).output
            assert "tiny-llama/off_policy/0 collapsed from step" in output
            assert FAULTS["unshifted_targets"].remedy in output
            assert "0 of 1 runs without a finding" in output

    def test_gives_json_and_signals(self, tiny: Tiny) -> None:
        path = str(tiny("off_policy")["path"])
        output = CliRunner().invoke(app, ["diagnose", path, "--json"]).output
        (record,) = json.loads(output)
        assert record["findings"] == [] and record["signals"][0]["step"] == 0
        shown = CliRunner().invoke(app, ["diagnose", path, "--signals"]).output
        assert "teacher_loss" in shown and "1 of 1 runs without a finding" in shown

    def test_refuses_a_folder_without_runs(self, tmp_path: Path) -> None:
        error = CliRunner().invoke(app, ["diagnose", str(tmp_path)]).exception
        assert isinstance(error, PotstillError) and "no run" in str(error)


def test_a_finding_reads_as_a_sentence() -> None:
    finding = Finding("collapse", "eos_untrained", 5, 10, "", "")
    assert sentence(finding).startswith("collapsed from step 5 on: eos_untrained (EOS has")


def test_repetition_counts_neighbours() -> None:
    assert repetition((1, 1, 1, 2)) == pytest.approx(2 / 3)
    assert repetition(()) == repetition((1,)) == 0.0


@pytest.mark.slow
def test_the_published_faults_are_all_named_when_all_are_on(tiny: Tiny) -> None:
    named: set[str] = set()
    for method in ("teacher_seeded", "mixture", "kl_anchored"):
        named |= set(causes(tiny(method, PUBLISHED, steps=11)["rows"]))
    assert named == set(PUBLISHED)


def test_an_engine_without_full_log_probs_is_diagnosed_by_its_other_signals() -> None:
    def poor(step: int, accuracy: float, loss: float) -> dict[str, Any]:
        row = probe(step, accuracy, teacher_loss=loss)
        return {**row, "signal/entropy": None, "signal/copy": None, "signal/end": None}

    rows = [poor(0, 0.5, 0.4), poor(5, 0.6, 0.4), poor(10, 0.0, 3.0), poor(15, 0.0, 3.0)]
    assert causes(rows) == ["unexplained"]


def test_going_back_forgets_a_symptom_that_passed() -> None:
    bad = {"teacher_loss": 3.0}
    rows = [probe(0, 0.5), probe(5, 0.0, **bad), probe(10, 0.5), probe(15, 0.0, **bad)]
    assert healthy_until(rows) == 10

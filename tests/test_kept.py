"""Kept results of pre-flight: what uses them, what repeats the check, what is never kept."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

import potstill.study.kept
from conftest import toy_table
from potstill.diagnostics.preflight import COST, MEMORY, Check, Progress, TimeBudget, names_of
from potstill.diagnostics.preflight.budget import SHARE
from potstill.study import kept
from potstill.study.kept import KeptChecks, default_folder, keeper_of
from potstill.study.loading import read_study
from potstill.study.run import preflight_pair
from potstill.study.schema import Study

PASSED = [Check("sampler", "passed", "fine"), Check("sampler", "warning", "not so fine", "look")]


@dataclass
class Place:
    """A study with everything that a key has, in a folder."""

    folder: Path
    table: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for role in ("student", "teacher"):
            (self.folder / role).mkdir()
            (self.folder / role / "config.json").write_text("{}")
            (self.folder / role / "model.safetensors").write_text("")
        for split in ("train", "test"):
            lines = [f'{{"question": "{split} {i}", "answer": "{i}"}}' for i in range(40)]
            (self.folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        paths = {
            f"{split}_path": str(self.folder / f"{split}.jsonl") for split in ("train", "test")
        }
        self.table = {
            "task": {"name": "jsonl", **paths},
            "pair": {"mine": {r: str(self.folder / r) for r in ("student", "teacher")}},
            "methods": ["hybrid", "off_policy"],
            "train": {"learning_rate": 1e-4},
            "eval": {"problems": 20},
            "seeds": [0],
        }

    def study(self, **changes: Any) -> Study:
        table = dict(self.table)
        for key, value in changes.items():
            old = table.get(key)
            table[key] = {**old, **value} if isinstance(old, dict) else value
        return read_study(table)

    def keeper(self, **changes: Any) -> KeptChecks:
        keeper = keeper_of(self.study(**changes), "mine", folder=self.folder / "kept")
        assert keeper is not None
        return keeper


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def evidence(checks: Sequence[Check] | None) -> list[str]:
    return [check.evidence for check in checks or []]


def test_results_are_kept_with_their_date(place: Place) -> None:
    assert place.keeper().get("sampler") is None
    place.keeper().put("sampler", PASSED)
    place.keeper().put("identity", [])
    again = place.keeper().get("sampler")
    assert again is not None
    assert [check.status for check in again] == ["passed", "warning"] and again[1].hint == "look"
    date = r"; kept from \d{4}-\d\d-\d\d \d\d:\d\d$"
    assert all(re.search(f"fine{date}", text) for text in evidence(again))
    assert place.keeper().get("identity") == []  # it had nothing to check
    repeating = keeper_of(place.study(), "mine", repeat=True, folder=place.folder / "kept")
    assert repeating is not None and repeating.get("sampler") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"max_tokens": 33}},
        {"train": {"lora_rank": 4}},
        {"eval": {"problems": 21}},
        {"engine": {"name": "torch", "student": {"dtype": "bfloat16"}}},
        {"engine": {"name": "torch", "batch_tokens": 99}},
        {"seeds": [1]},
        {"pair": {"mine": {"student": "some/other", "teacher": "some/other"}}},
    ],
    ids=str,
)
def test_other_settings_repeat_the_checks(place: Place, changes: dict[str, Any]) -> None:
    place.keeper().put("sampler", PASSED)
    assert place.keeper(**changes).get("sampler") is None
    assert place.keeper().get("sampler")


def test_names_prices_and_more_seeds_do_not(place: Place) -> None:
    place.keeper().put("sampler", PASSED)
    place.keeper().put(COST, PASSED)
    for changes in ({"name": "other"}, {"price": {"hour": 2.0}}, {"budget": {"hours": 1.0}}):
        assert place.keeper(**changes).get("sampler") and place.keeper(**changes).get(COST)
    assert place.keeper(seeds=[0, 1]).get("sampler")
    assert not place.keeper(seeds=[0, 1]).get(COST)  # the study takes longer


@pytest.mark.parametrize("file", ["student/config.json", "teacher/config.json", "test.jsonl"])
def test_other_contents_repeat_the_checks(place: Place, file: str) -> None:
    place.keeper().put("sampler", PASSED)
    path = place.folder / file
    path.write_text(path.read_text().replace("{}", '{"a": 1}').replace("test 3", "TEST 3"))
    assert place.keeper().get("sampler") is None


@pytest.mark.parametrize("fact", ["potstill", "torch", "transformers", "python", "processor"])
def test_other_versions_and_devices_repeat_the_checks(
    place: Place, fact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.keeper().put("sampler", PASSED)
    facts = {**kept.provenance(), fact: "other"}
    monkeypatch.setattr(kept, "provenance", lambda: facts)
    assert place.keeper().get("sampler") is None


@pytest.mark.parametrize("name", ["_source", "_devices"])
def test_another_source_or_accelerator_repeats_the_checks(
    place: Place, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.keeper().put("sampler", PASSED)
    monkeypatch.setattr(kept, name, lambda: ["other"])
    assert place.keeper().get("sampler") is None


def test_a_hub_model_has_its_revision_in_the_key(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    models = {"pair": {"mine": {"student": "some/student", "teacher": "some/teacher"}}}
    place.keeper(**models).put("sampler", PASSED)
    assert place.keeper(**models).get("sampler") is None  # it is not on this machine yet
    path = {"revision": "snapshots/a/config.json"}
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: path["revision"])
    place.keeper(**models).put("sampler", PASSED)
    assert place.keeper(**models).get("sampler")
    path["revision"] = "snapshots/b/config.json"
    assert place.keeper(**models).get("sampler") is None


def test_another_number_of_processes_repeats_the_checks(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.keeper().put("sampler", PASSED)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert place.keeper().get("sampler") is None
    place.keeper().put("sampler", PASSED)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert place.keeper().get("sampler") is None


def test_times_are_those_of_one_machine(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sampler", COST):
        place.keeper().put(name, PASSED)
    monkeypatch.setattr(potstill.study.kept.platform, "node", lambda: "another")
    assert place.keeper().get("sampler") and place.keeper().get(COST) is None
    monkeypatch.undo()
    assert place.keeper().get(COST)
    monkeypatch.setenv("OMP_NUM_THREADS", "17")
    assert place.keeper().get("sampler") and place.keeper().get(COST) is None


def test_another_method_is_the_only_one_that_is_rehearsed(place: Place) -> None:
    first = list(place.study().recipes.values())
    for name in names_of(first):
        place.keeper().put(name, PASSED)
    more = {"methods": ["hybrid", "mixture", "off_policy"]}
    names = names_of(list(place.study(**more).recipes.values()))
    missing = [name for name in names if not place.keeper(**more).get(name)]
    assert missing == [MEMORY, COST, "steps of mixture"]
    other = {"methods": ["hybrid"], "recipe": {"hybrid": {"student_loss": "forward_kl"}}}
    with pytest.raises(Exception, match="hybrid"):  # a built-in method keeps its name
        place.study(**other)
    assert place.keeper(student_loss="forward_kl").get("steps of hybrid") is None


def test_what_failed_is_not_kept(place: Place) -> None:
    place.keeper().put("sampler", PASSED)
    refused = [PASSED[0], Check("sampler", "refused", "broken")]
    place.keeper().put("sampler", refused)  # and what was kept is gone
    assert place.keeper().get("sampler") is None
    assert not list((place.folder / "kept").rglob("*.json"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "null",
        lambda text: "{}",
        lambda text: text.replace("warning", "passed"),
        lambda text: text.replace("not so fine", "fine"),
        lambda text: text.replace("20", "19", 1),  # the date
        lambda text: text.replace('"checks": [', '"checks": ['.replace("[", "3, [")),
        lambda text: text + "\ud800",
    ],
)
def test_damaged_files_are_no_results(place: Place, damage: Callable[[str], str]) -> None:
    place.keeper().put("sampler", PASSED)
    file = place.keeper().file("sampler")
    text = file.read_text(encoding="utf-8")
    assert damage(text) != text
    file.write_bytes(damage(text).encode("utf-8", "surrogatepass"))
    assert place.keeper().get("sampler") is None
    place.keeper().put("sampler", PASSED)
    assert place.keeper().get("sampler")


def test_a_folder_that_cannot_be_written_stops_nothing(place: Place) -> None:
    (place.folder / "kept").write_text("a file")
    place.keeper().put("sampler", PASSED)
    assert place.keeper().get("sampler") is None


def test_engines_whose_state_no_key_has_keep_nothing(place: Place) -> None:
    folder = place.folder / "kept"
    fake = place.study(engine="fake")
    service = place.study(engine={"name": "tinker"}, train={"lora_rank": 4}, methods=["off_policy"])
    faulty = place.study(faults=["unshifted_targets"])
    assert all(keeper_of(study, "mine", folder=folder) is None for study in (fake, faulty, service))
    assert keeper_of(place.study(), "mine", folder=folder) is not None


def test_the_folder_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_folder() == Path(os.environ["POTSTILL_CACHE"]) / "preflight"
    monkeypatch.delenv("POTSTILL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "potstill" / "preflight"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "potstill" / "preflight"


def test_a_second_preflight_opens_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"pairs": ["tiny-llama"], "train": {"steps": 5, "batch_size": 4}}
    study = read_study({**table, "methods": ["off_policy"]})
    more = read_study({**table, "methods": ["off_policy", "hybrid"]})
    only = ["identity", "steps"]
    first = preflight_pair(
        study, "tiny-llama", only, TimeBudget(0.0), keeper=keeper_of(study, "tiny-llama")
    )
    events = list[Progress]()
    keeper = keeper_of(more, "tiny-llama")
    preflight_pair(more, "tiny-llama", only, TimeBudget(0.0), keeper=keeper, watch=events.append)
    made = [event.name for event in events if event.results is None]
    assert made == ["models", "steps of hybrid"]
    assert [event.name for event in events if event.kept] == ["identity", "steps of off_policy"]
    monkeypatch.setattr("potstill.study.run.open_study_engine", lambda *_: 1 / 0)
    again = preflight_pair(
        study, "tiny-llama", only, TimeBudget(0.0), keeper=keeper_of(study, "tiny-llama")
    )
    assert [check.name for check in again] == [check.name for check in first]
    assert all("; kept from 2" in check.evidence for check in again)


def test_kept_times_set_the_budget_and_reach_the_prediction(tmp_path: Path) -> None:
    """A keeper that has the times, and nothing else."""
    from potstill.cli.launch import predict

    class Times:
        kept: ClassVar[dict[str, list[Check]]] = {}

        def get(self, name: str) -> list[Check] | None:
            return self.kept.get(name)

        def put(self, name: str, checks: Sequence[Check]) -> None:
            if name == COST:
                self.kept[name] = [Check(**json.loads(json.dumps(asdict(c)))) for c in checks]

    study = read_study(toy_table(tmp_path, methods=["off_policy"]))
    budgets = [TimeBudget(0.0, lambda: 0.0) for _ in range(2)]
    first, second = (
        preflight_pair(study, "toy", budget=budget, keeper=Times()) for budget in budgets
    )
    assert budgets[1].limit == pytest.approx(max(SHARE * first[-1].numbers["study"], 0.0), rel=0.5)
    assert budgets[1].limit
    assert predict({"toy": first}) == predict({"toy": second})
    assert second[-1].name == COST

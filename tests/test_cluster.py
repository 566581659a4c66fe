"""Studies on a real Ray cluster of two nodes: the same numbers whatever is killed, and refusals in
bounded time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tomli_w
from benchmarks.cluster import Killer, kept, two_nodes

from conftest import toy_table
from launching import Gate, wait_for
from potstill.cli import launch
from potstill.errors import PotstillError
from potstill.study.executors.local import LocalExecutor
from potstill.study.executors.ray import RayExecutor, connect, open_cluster, resources, scheduler
from potstill.study.loading import read_study
from potstill.study.race import planned_runs
from potstill.study.remote import Mirror
from potstill.study.schema import Study
from potstill.study.storage import StudyFolder, runs_of
from potstill.training.spending import BudgetReached, Spent
from test_cli import call, refused

pytestmark = pytest.mark.cluster

TINY = {
    "name": "tiny",
    "pairs": ["tiny-llama"],
    "methods": ["replay_buffer", "hybrid"],
    "train": {"steps": 40, "batch_size": 4, "checkpoint_every": 2},
    "eval": {"problems": 10, "every": 5, "probe_every": 5},
}


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """Set before the nodes start, as their workers inherit its variable."""
    with pytest.MonkeyPatch.context() as patch:
        yield Gate(tmp_path_factory.mktemp("gate"), patch)


@pytest.fixture(scope="module")
def nodes(gate: Gate) -> Iterator[str]:
    """The address of a head that executes no runs, with two nodes of one core."""
    with two_nodes() as address:
        yield address


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """The tiny study as processes of this machine run it."""
    study, folder = read_study(TINY), StudyFolder(tmp_path_factory.mktemp("whole"))
    folder.open(study)
    LocalExecutor(1).run(study, folder, runs_of(study), lambda: None)
    return study, folder.path


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mirrors go to runs/ of the working folder."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def spread(
    where: str, study: Study, folder: StudyFolder, tick: Callable[[], None] = lambda: None
) -> scheduler.RayScheduler:
    """Run a study on the cluster, in a folder that its nodes share."""
    folder.open(study)
    with open_cluster(where, study) as cluster:
        tasks = cluster.scheduler(study, folder, runs_of(study))
        tasks.run(tick, every=0.05)
    return tasks


@pytest.mark.smoke
def test_a_killed_worker_changes_no_number(
    nodes: str, whole: tuple[Study, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study, path = whole
    folder, cells = StudyFolder(tmp_path / "out"), runs_of(study)
    killer = Killer(folder, cells, 1, 3)
    tasks = spread(nodes, study, folder, killer)
    assert len(killer.killed) == 1 == tasks.crashes[killer.killed[0]] == tasks.crashes.total()
    assert kept(folder.path, cells) == kept(path, cells) and len(kept(path, cells)) == 4
    assert all(folder.cell(cell).running is None for cell in cells)
    out, err = capfd.readouterr()
    assert not out and f"warning: {killer.killed[0]}: its worker process died; retry 1 of 3" in err


@pytest.mark.slow
def test_a_killed_node_changes_no_number_of_a_study_behind_a_url(
    whole: tuple[Study, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And what reads a study reads it there."""
    study, path = whole
    far, cells = tmp_path / "far", runs_of(study)
    mirror = Mirror(far.as_uri())
    folder = StudyFolder(mirror.path)
    killer = Killer(folder, cells, 1, 3, nodes=True)
    with two_nodes() as where, open_cluster(where, study, mirror=mirror) as cluster:
        folder.open(study)
        tasks = cluster.scheduler(study, folder, cells)
        tasks.run(killer, every=0.05)
    assert len(killer.killed) == 1 <= tasks.crashes.total()
    assert kept(far, cells) == kept(path, cells)
    assert not [p for p in far.rglob("*") if p.name in (".running", "checkpoints", ".stop")]
    assert all((far / "cells" / str(c) / "student").is_dir() for c in cells if c.seed is not None)
    capfd.readouterr()
    run = f"{far.as_uri()}/cells/{cells[-1]}"
    assert call("report", far.as_uri(), "--json") == 0
    assert json.loads(capfd.readouterr().out)["done"] == 4
    assert (far / "report.html").exists() and (far / "results.json").exists()
    assert call("watch", far.as_uri()) == 0 and "4 done" in capfd.readouterr().out
    assert call("diagnose", run) == 0
    assert "1 of 1 runs without a finding" in capfd.readouterr().out


def toy(tmp_path: Path, **changes: object) -> Study:
    return read_study(toy_table(tmp_path, **{"methods": ["on_policy_gkd"], **changes}))


def test_a_run_that_fails_or_costs_too_many_workers_is_recorded_and_the_study_goes_on(
    nodes: str, gate: Gate, tmp_path: Path
) -> None:
    study = toy(tmp_path, seeds=[0, 1], ray={"retries": 0})
    folder = StudyFolder(tmp_path / "killed")
    killer = Killer(folder, runs_of(study), 1, 5)

    def kill_at_the_gate() -> None:
        killer()
        if killer.killed:
            gate.open()

    gate.close(5)
    spread(nodes, study, folder, kill_at_the_gate)
    results = folder.results(runs_of(study))
    dead = results.pop(killer.killed[0])
    assert dead["status"] == "failed" and dead["steps"] == 5
    assert dead["cause"] == "its worker or node died once (its worker process died)"
    assert [record["status"] for record in results.values()] == ["done"] * 3
    exploding = toy(tmp_path, seeds=[0], train={"learning_rate": 1e308})
    other = StudyFolder(tmp_path / "exploding")
    assert not spread(nodes, exploding, other).crashes
    (record,) = [r for c, r in other.results(runs_of(exploding)).items() if c.seed == 0]
    assert record["status"] == "failed" and "not a number" in record["cause"]


def test_interrupted_and_run_again_it_goes_on(nodes: str, gate: Gate, tmp_path: Path) -> None:
    """Ctrl-C leaves no lease behind a URL; the leases of a driver that was killed expire."""
    study = toy(tmp_path, seeds=[0, 1])
    cells, far = runs_of(study), tmp_path / "far"
    here = StudyFolder(tmp_path / "here")
    here.open(study)
    LocalExecutor(1).run(study, here, cells, lambda: None)
    file = tmp_path / "toy.toml"
    file.write_text(tomli_w.dumps(study.to_toml()))
    words = [sys.executable, "-m", "potstill", "study", str(file), "--no-preflight", "--no-figures"]
    words += ["--on", nodes, "--out", far.as_uri()]
    gate.close(6)
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(far.glob("cells/toy/on_policy_gkd/*/checkpoints/*/state.json")))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    gate.open()
    assert not list(far.rglob(".running")) and len(kept(far, cells)) < len(cells)
    lost = far / "cells" / str(cells[-1])
    lost.mkdir(parents=True, exist_ok=True)
    gone = {"pid": 1, "host": "gone", "attempt": "a", "driver": "d", "beat": 3}
    (lost / ".running").write_text(json.dumps(gone))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "EXPIRY", 1.0)
        mirror = Mirror(far.as_uri())
        launch.fill(study, mirror.path, 0, False, on=nodes, mirror=mirror)
    assert kept(far, cells) == kept(here.path, cells)


def test_a_spent_budget_stops_runs_between_steps_and_they_go_on(nodes: str, tmp_path: Path) -> None:
    """In a shared folder and behind a URL, where cells hear of it by a note."""
    changes = {"seeds": [0, 1], "train": {"steps": 3000, "checkpoint_every": 1000}}
    study = toy(tmp_path, **changes)
    for url in (False, True):
        far = tmp_path / f"out-{url}"
        mirror = Mirror(far.as_uri()) if url else None
        path = mirror.path if mirror else far
        little = study.model_copy(
            update={"budget": study.budget.model_copy(update={"tokens": 1e5})}
        )
        with pytest.raises(BudgetReached, match=r"of budget\.tokens"):
            launch.fill(little, path, 0, False, on=nodes, mirror=mirror)
        begun = [StudyFolder(far).cell(cell) for cell in runs_of(study) if cell.seed is not None]
        assert not any(place.result or place.running for place in begun)
        halted = [place for place in begun if list(place.path.glob("checkpoints/*/state.json"))]
        assert halted and all(0 < place.steps < 3000 for place in halted)
        spent = StudyFolder(far).ledger(little).spent()
        assert spent.count() > 1e5 and isinstance(spent, Spent)


def test_a_race_on_a_cluster_decides_as_here(nodes: str, tmp_path: Path) -> None:
    """In a shared folder and behind a URL, the screen included; a second call does nothing."""
    recipe = {"stuck": {"from": "on_policy_gkd", "budget": 0.05}}
    file = tmp_path / "toy.toml"
    table = toy_table(tmp_path, methods=["on_policy_gkd", "stuck"], recipe=recipe)
    file.write_text(tomli_w.dumps(table))
    words = ["race", file, "--looks", "1,3", "--fresh", 2, "--screen"]
    words += ["--no-preflight", "--no-figures"]
    here, shared, far = (tmp_path / name for name in ("here", "shared", "far"))
    assert call(*words, "--out", here) == 0
    assert call(*words, "--out", shared, "--on", nodes) == 0
    assert call(*words, "--out", far.as_uri(), "--on", nodes) == 0
    before = {path: path.stat().st_mtime_ns for path in far.rglob("result.json")}
    assert call(*words, "--out", far.as_uri(), "--on", nodes) == 0
    assert {path: path.stat().st_mtime_ns for path in far.rglob("result.json")} == before
    race = (here / "race.json").read_bytes()
    assert '"below leader"' in race.decode()
    assert (shared / "race.json").read_bytes() == race == (far / "race.json").read_bytes()
    cells = planned_runs(StudyFolder(here), StudyFolder(here).study)
    assert kept(shared, cells) == kept(far, cells) == kept(here, cells)
    assert len(before) == len(cells) + 4 and (far / "report.html").exists()
    assert call("report", far.as_uri()) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--on", "rya"], "--on takes local, ray"),
        (["--on", "ray://host"], "--on takes local, ray"),
        (["--on", "127.0.0.1:9"], "nothing answers at 127.0.0.1:9"),
        (["--on", "ray://127.0.0.1:9"], "nothing answers at ray://127.0.0.1:9"),
        (["--on", "127.0.0.1:99999"], "nothing answers at 127.0.0.1:99999"),
        (["--on", "ray", "--out", "memory://x"], "does not support shared writes"),
        (["--on", "ray", "--out", "sthree://x"], "Protocol not known"),
        (["--out", "file:///tmp/x"], "runs on this machine need a folder"),
        (["ray.gpus=1.5"], "more than one GPU is a whole number"),
        (["ray.gpu=1"], 'unknown key "ray.gpu"'),
    ],
)
def test_wrong_places_are_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    refused(capsys, call("study", *words), says)
    assert not list(Path().iterdir())


def test_what_answers_and_is_no_ray_is_refused_in_bounded_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(connect, "TIMEOUT", 0.5)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        refused(capsys, call("study", "--on", place), f"the server at {place} is not a Ray server")


@pytest.mark.parametrize("asked", ["ray.gpus=1", "ray.cpus=64", "ray.memory=1e6"])
def test_resources_that_no_node_has_are_refused(
    nodes: str, capsys: pytest.CaptureFixture[str], asked: str
) -> None:
    code = call("study", "--on", nodes, asked)
    refused(capsys, code, "no node of the cluster has that; its nodes:")
    assert not list(Path().iterdir())


def test_a_runtime_env_that_ray_does_not_know_is_refused(nodes: str, tmp_path: Path) -> None:
    study = toy(tmp_path, ray={"runtime_env": {"pip": 3}})
    assert "runtime_env" not in study.to_toml()["ray"]  # it may hold keys
    with pytest.raises(PotstillError, match="Ray failed on"), open_cluster(nodes, study):
        pass


def test_without_ray_it_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['ray'] = None; from potstill.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "study", "--on", "ray"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and not list(Path().iterdir())
    assert done.stderr == (
        "error: --on ray needs Ray, which is not installed\nhint: pip install 'potstill[ray]'\n"
    )


def test_a_ray_that_is_started_here_runs_preflight_and_the_study(
    whole: tuple[Study, Path], tmp_path: Path
) -> None:
    study, path = whole
    file, out = tmp_path / "tiny.toml", tmp_path / "out"
    file.write_text(tomli_w.dumps(study.to_toml()))
    words = [sys.executable, "-m", "potstill", "study", str(file), "--on", "ray", "--json"]
    done = subprocess.run(
        [*words, "--no-figures", "--out", str(out)],
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"] == 4
    assert (out / "predicted.json").exists()
    assert kept(out, runs_of(study)) == kept(path, runs_of(study))


def test_a_node_that_is_too_small_in_the_end_is_not_waited_for(
    nodes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study that was let in, and whose large node has gone since."""
    monkeypatch.setattr(scheduler, "STARVED", 0.0)
    monkeypatch.setattr(scheduler, "INTERVAL", 0.0)
    study, folder = toy(tmp_path, ray={"cpus": 3}), StudyFolder(tmp_path / "out")
    folder.open(study)
    with (
        open_cluster(nodes, toy(tmp_path)) as cluster,
        pytest.raises(PotstillError, match="3 cores"),
    ):
        RayExecutor(cluster.ray).run(study, folder, runs_of(study), lambda: None)


def test_a_run_asks_for_what_its_table_says() -> None:
    assert resources.requested(read_study({})) == {"num_cpus": 1, "num_gpus": 0.0}
    asked = {"cpus": 2, "gpus": 0.5, "memory": 1.5}
    table = {"ray": asked, "engine": {"name": "torch", "threads": 4}}
    assert resources.requested(read_study(table)) == {
        "num_cpus": 2,
        "num_gpus": 0.5,
        "memory": 1.5e9,
    }
    del asked["cpus"]
    assert resources.requested(read_study(table))["num_cpus"] == 4

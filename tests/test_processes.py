"""One engine of several processes: two real ones over gloo, started by torchrun.

The engine's contract is run on it as it is on every other; a study ends at the curves of one
process, and what two processes have begun one may finish.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from potstill.cli.launch import one_engine
from potstill.cli.speed import bench
from potstill.engines.torch.batching import deal
from potstill.engines.torch.distributed import SINGLE, World
from potstill.errors import PotstillError
from potstill.study.loading import read_study

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[1]
WORDS = ["pairs=tiny-llama", "seeds=0", "train.steps=4", "train.batch_size=8", "eval.problems=20"]
WORDS += ["eval.every=2", "eval.probe_every=2", "train.checkpoint_every=1"]


def torchrun(*words: str, **options: Any) -> subprocess.Popen[str]:
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        run, cwd=ROOT, env=environment, text=True, start_new_session=True, **options
    )


def two(*words: str) -> str:
    """What two processes print; they have to end well."""
    process = torchrun(*words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 0, out
    return out


def alone(*words: str) -> None:
    run = [sys.executable, "-m", "potstill", "study", *words]
    subprocess.run(run, cwd=ROOT, check=True, capture_output=True)


def curves(folder: Path, method: str) -> list[dict[str, Any]]:
    text = (folder / "cells" / "tiny-llama" / method / "0" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def same_curves(here: Path, there: Path, method: str, within: float = 1e-4) -> None:
    first, second = curves(here, method), curves(there, method)
    assert [row["step"] for row in first] == [row["step"] for row in second] == [0, 1, 2, 3, 4]
    for one, other in zip(first, second, strict=True):
        for name in ("train/loss", "train/grad_norm", "train/kl_divergence", "eval/accuracy"):
            a, b = one.get(name), other.get(name)
            assert a == b or a == pytest.approx(b, rel=within, abs=within), name
    assert [row["tokens"] for row in first] == [row["tokens"] for row in second]


def test_rows_are_dealt_once_and_evenly() -> None:
    sizes = [9, 1, 7, 7, 3, 2, 8]
    shares = deal(sizes, 3)
    assert sorted(i for share in shares for i in share) == list(range(7))
    sums = [sum(sizes[i] for i in share) for share in shares]
    assert max(sums) - min(sums) <= 9


def test_every_process_has_as_many_micro_batches_where_it_must() -> None:
    sizes = [8] * 5
    rounds = [list(World(i, 2).chunks(sizes, 8, together=True)) for i in range(2)]
    assert [len(chunks) for chunks in rounds] == [3, 3]
    assert sorted(i for chunks in rounds for chunk in chunks for i in chunk) == [0, 1, 2, 3, 4]
    assert list(SINGLE.chunks(sizes, 8, together=True)) == [[0], [1], [2], [3], [4]]


def test_what_several_processes_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    study = read_study({})
    assert one_engine(study, 3) == 3
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert one_engine(study, 0) == one_engine(study, 1) == 1
    with pytest.raises(PotstillError, match="got --workers 2"):
        one_engine(study, 2)
    with pytest.raises(PotstillError, match="bench measures what one process"):
        bench(study, "tiny-qwen", 1)
    with pytest.raises(PotstillError, match="torchrun is for the torch engine"):
        one_engine(read_study({"engine": "fake"}), 1)


@pytest.mark.smoke
def test_the_contract_holds_over_two_processes() -> None:
    out = two("-m", "tests.two_processes", "tests/test_engine_contract.py", "-q", "-k", "torch")
    assert " passed" in out and "failed" not in out, out


def test_a_study_has_the_curves_of_one_process(tmp_path: Path) -> None:
    """All weights: rows split, an anchor's second copy, two losses in a step."""
    words = [*WORDS, 'methods=["mixture", "kl_anchored"]']
    alone(*words, "--out", str(tmp_path / "one"), "--no-preflight")
    two("-m", "potstill", "study", *words, "--out", str(tmp_path / "two"), "--no-preflight")
    for method in ("mixture", "kl_anchored"):
        same_curves(tmp_path / "one", tmp_path / "two", method)
    student = tmp_path / "two" / "cells" / "tiny-llama" / "mixture" / "0" / "student"
    assert (student / "model.safetensors").exists()


@pytest.mark.slow
def test_adapters_layer_by_layer_with_a_whole_teacher(tmp_path: Path) -> None:
    words = [*WORDS, "methods=hybrid", "train.lora_rank=4", "train.learning_rate=1e-3"]
    words += ["engine.gradient_checkpointing=true"]
    alone(*words, "--out", str(tmp_path / "one"), "--no-preflight")
    words += ["engine.shard_teacher=false", "engine.gather_for_sampling=false"]
    two("-m", "potstill", "study", *words, "--out", str(tmp_path / "two"), "--no-preflight")
    same_curves(tmp_path / "one", tmp_path / "two", "hybrid")


def test_one_process_finishes_what_two_began(tmp_path: Path) -> None:
    words = [*WORDS, "methods=on_policy_gkd", "--no-preflight", "--out"]
    alone(*words, str(tmp_path / "one"))
    process = torchrun("-m", "potstill", "study", *words, str(tmp_path / "two"))
    points = tmp_path / "two" / "cells" / "tiny-llama" / "on_policy_gkd" / "0" / "checkpoints"
    until = time.monotonic() + 300
    while not list(points.glob("step-*")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # torchrun gives each process a session of its own
    subprocess.run(["pkill", "-KILL", "-f", str(tmp_path / "two")], check=False)
    alone(*words, str(tmp_path / "two"))
    same_curves(tmp_path / "one", tmp_path / "two", "on_policy_gkd")

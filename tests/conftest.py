"""Fixtures shared by all tests: tiny model folders and a toy task, made on the spot."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from potstill.algorithms.recipe import Recipe
from potstill.diagnostics.monitor import Monitor
from potstill.engines.fake import answer
from potstill.engines.protocol import Engine
from potstill.problems import Problem
from potstill.settings import Eval, Train
from potstill.study.loading import read_study
from potstill.study.schema import Study
from potstill.tasks import Task
from potstill.training.loop import Trained, train
from potstill.training.run import RunSpec
from potstill.types import Prompt

ROOT = Path(__file__).parents[1]


def pytest_configure() -> None:
    """Before torch loads: processes that share cores spin, up to twenty times slower."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if os.environ.get("POTSTILL_TEST_DEVICE", "cpu") == "cpu":  # tolerances are a CPU's
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    os.environ["POTSTILL_CACHE"] = tempfile.mkdtemp(prefix="potstill-tests-")


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["POTSTILL_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """No test uses what another one, or the user, has kept."""
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()
    monkeypatch.setenv("POTSTILL_CACHE", f"{os.environ['POTSTILL_CACHE']}/{name}")


@dataclass
class Servers:
    """Real training services on this machine, one a base model."""

    folder: Path
    running: dict[str, tuple[str, int]] = field(default_factory=dict)  # model: (URL, process)

    def url(self, model: Path, port: int = 0) -> str:
        """The server of a model, started now if it is not there."""
        name = str(model)
        if name not in self.running:
            port = port or free_port()
            state = self.folder / f"{model.parent.name}-{model.name}"
            words = [str(ROOT / "servers" / "tinker"), name, str(port), str(state)]
            process = int(subprocess.run(words, check=True, capture_output=True).stdout)
            self.running[name] = (f"http://127.0.0.1:{port}", process)
        return self.running[name][0]

    def kill(self, model: Path) -> int:
        """End the server of a model at once; returns its port."""
        url, process = self.running.pop(str(model))
        os.killpg(process, signal.SIGKILL)
        return int(url.rsplit(":", 1)[1])


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Real servers, installed on first use; for tests marked `server`."""
    found = Servers(tmp_path_factory.mktemp("servers"))
    try:
        yield found
    finally:
        for name in list(found.running):
            found.kill(Path(name))


def prompt_of(engine: Engine, text: str) -> Prompt:
    """The prompt of a question that is no problem of a task."""
    return engine.prompt(Problem("", text, ""))


def monitored(
    recipe: Recipe,
    engine: Engine,
    task: Task,
    settings: Train,
    grading: Eval,
    *,
    seed: int = 0,
    **more: Any,
) -> Trained:
    """Train as a study does: under a monitor."""
    monitor = partial(Monitor, RunSpec(recipe, engine, task, seed), settings, grading)
    return train(recipe, engine, task, settings, grading, seed=seed, monitor=monitor, **more)


def write_toy(folder: Path) -> dict[str, str]:
    """A jsonl task that the fake engine's teacher solves: the last digit's letter."""
    for split, lead in (("train", ""), ("test", "x")):
        rows = [
            {"question": f"{lead}{letter}{digit}", "answer": answer(digit)}
            for letter in "abcd"
            for digit in range(10)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text)
    return {
        "name": "jsonl",
        "train_path": str(folder / "train.jsonl"),
        "test_path": str(folder / "test.jsonl"),
    }


def toy_table(folder: Path, **changes: object) -> dict:
    """A study on the fake engine that takes a second."""
    table = {
        "name": "toy",
        "engine": "fake",
        "task": write_toy(folder),
        "pair": {"toy": {"student": "a", "teacher": "b"}},
        "train": {
            "steps": 12,
            "batch_size": 10,
            "max_tokens": 24,
            "learning_rate": 0.3,
            "checkpoint_every": 4,
        },
        "eval": {"problems": 20, "every": 4, "probe": 8, "probe_every": 2},
        "seeds": [0, 1],
    }
    for key, value in changes.items():
        old = table.get(key)
        table[key] = (
            {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return table


@pytest.fixture
def toy(tmp_path: Path) -> Study:
    return read_study(toy_table(tmp_path))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `qwen/student`, `llama/teacher` ...: random weights, embedded tokenizers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config

    from potstill.engines import zoo

    root = tmp_path_factory.mktemp("models")
    for family, kind in (("qwen", Qwen3Config), ("llama", LlamaConfig)):
        tokenizer = AutoTokenizer.from_pretrained(zoo.folder(f"tiny-{family}", "student"))
        for seed, (role, padding) in enumerate((("student", 0), ("teacher", 5))):
            torch.manual_seed(seed)
            config = kind(
                vocab_size=len(tokenizer) + padding,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
                max_position_embeddings=256,
                tie_word_embeddings=True,
                initializer_range=0.3,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            AutoModelForCausalLM.from_config(config).save_pretrained(root / family / role)
            tokenizer.save_pretrained(root / family / role)
    return root

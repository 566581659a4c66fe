"""Damaged and hostile model folders: the right numbers, or a rule and a hint; no code of theirs."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tomli_w
import torch
from folders import (
    CHATML,
    FOLDERS,
    LOOP,
    Q_PROJ,
    RIGHT,
    as_eval,
    canary,
    change,
    good,
    met,
    outcomes,
    ways,
)
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from checkpoints import save, study_table, tokenizer_of
from families import FAMILIES, write_pair
from potstill.engines import zoo
from potstill.engines.torch.engine import TorchEngine
from potstill.engines.torch.loading import load_model
from potstill.errors import PotstillError
from potstill.tasks import rendering, templates
from potstill.tasks.rendering import render, written
from potstill.types import ModelSpec
from test_cli import call

pytestmark = pytest.mark.filterwarnings("ignore")
SPEC = ModelSpec(device="cpu", dtype="float32")
SOME = ("llama", "gpt2", "mixtral", "mamba", "llama4_text", "opt")


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """Half a second for a template, which is enough for an honest one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(templates, "SECONDS", 0.5)
        templates._renderer.cache_clear()
        yield
        templates._renderer(os.getpid()).close()
    templates._renderer.cache_clear()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """The good model, and its numbers."""
    path = good(tmp_path_factory.mktemp("good") / "good")
    return path, as_eval(path)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_gives_the_right_numbers_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, model: tuple[Path, np.ndarray], name: str
) -> None:
    place = tmp_path_factory.mktemp("d")  # the name of the folder has none of the expected words
    for expected, outcome in ways(name, *model, place):
        assert met(expected, outcome), (name, expected, outcome)
        if outcome.kind == "refused":
            assert re.search(r"/(copy|base|good)\b|tokenizers of pair", outcome.text), outcome


def test_the_table_is_large_and_a_benchmark_can_count_it() -> None:
    assert len(FOLDERS) >= 50
    counted = list(outcomes(["untouched", "no_bytes"]))
    assert [(name, outcome.kind) for name, _, outcome in counted] == [
        *[("untouched", "right")] * 2,
        *[("no_bytes", "refused")] * 2,
    ]
    assert [expected for _, expected, _ in counted[:2]] == [RIGHT, RIGHT]


def loaded(folder: Path, weights: dict[str, torch.Tensor]) -> str:
    """The error of a model with other weights; empty if there is none."""
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    try:
        load_model(str(folder), SPEC, trained=False)
    except PotstillError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "family",
    [
        family if family in SOME else pytest.param(family, marks=pytest.mark.slow)
        for family in FAMILIES
    ],
)
def test_every_weight_of_a_family_is_needed_and_finite(tmp_path: Path, family: str) -> None:
    """Without one, with a NaN in one, and with one more in a layer."""
    folder = write_pair(tmp_path, family) / "student"
    weights = load_file(folder / "model.safetensors")
    assert loaded(folder, weights) == ""
    names = sorted(weights)
    for key in names if family not in SOME else names[:: max(1, len(names) // 6)]:
        without = loaded(folder, {name: value for name, value in weights.items() if name != key})
        assert "lacks" in without, key
        if weights[key].is_floating_point():
            broken = weights[key].clone()
            broken.view(-1)[0] = torch.nan
            assert "not finite" in loaded(folder, weights | {key: broken}), key
    layers = (match[0] for name in names if (match := re.match(r".*?\.0\.", name)))
    more = f"{next(layers)}extra_norm.weight"
    assert more in loaded(folder, weights | {more: torch.ones(32)})


def test_a_large_weight_in_float16_is_named(tmp_path: Path) -> None:
    path = good(tmp_path / "m")
    change(path, lambda weights: weights["lm_head.weight"].view(-1)[:1].fill_(1e6))
    assert load_model(str(path), SPEC, trained=False)
    with pytest.raises(PotstillError, match=r"lm_head\.weight \(infinite, read as float16\)") as no:
        load_model(str(path), ModelSpec(device="cpu", dtype="float16"), trained=False)
    assert "bfloat16" in no.value.hint


def test_a_matrix_of_zeros_is_a_note(tmp_path: Path) -> None:
    path = good(tmp_path / "m")
    change(path, lambda weights: weights[Q_PROJ].zero_())
    notes = str(TorchEngine(str(path), str(path)).notes)
    assert f"zeros in 1 of 16 matrices (first: {Q_PROJ})" in notes
    change(path, lambda weights: weights["model.embed_tokens.weight"].zero_())
    with pytest.raises(PotstillError, match=r"without a value: model\.embed_tokens"):
        TorchEngine(str(path), str(path))


# --- the command line


def study_file(path: Path, teacher: Path) -> Path:
    file = path / "study.toml"
    table = study_table(path, str(teacher), str(teacher))
    file.write_text(tomli_w.dumps(table))
    return file


COMMANDS = (
    "without_a_projection",
    "weights_in_lfs",
    "nan_in_the_embedding",
    "config_of_a_list",
    "layers_beyond_count",
    "tokenizer_in_lfs",
    "template_that_loops",
    "template_without_some_questions",
    "a_pickle_that_runs_code",
    "code_for_an_unknown_type",
    "generation_of_no_json",
)


def refused(path: Path, capsys: pytest.CaptureFixture[str], *words: object) -> None:
    """A command ends with a rule that names the folder, and a hint."""
    capsys.readouterr()
    assert call(*words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    error, hint = lines[-2:]
    assert error.startswith("error: ") and str(path) in error, lines
    assert hint.startswith("hint: ") and len(hint) > 10
    assert not any("Traceback" in line for line in lines)
    assert not canary(path).exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_eval_ends_with_a_rule_and_a_hint(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = good(tmp_path / "copy")
    FOLDERS[name].damage(path)
    study_file(tmp_path, path)  # writes the problems too
    data = [f"{key}_path={tmp_path / key}.jsonl" for key in ("train", "test")]
    refused(path, capsys, "eval", path, "--task", "jsonl", *data, "--problems", 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_check_ends_with_a_rule_and_a_hint(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = good(tmp_path / "copy")
    FOLDERS[name].damage(path)
    refused(path, capsys, "check", study_file(tmp_path, path))


@pytest.mark.slow
def test_a_run_without_preflight_records_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = good(tmp_path / "copy")
    FOLDERS["without_a_projection"].damage(path)
    out = tmp_path / "out"
    assert call("study", study_file(tmp_path, path), "--no-preflight", "--out", out) == 1
    results = [json.loads(file.read_text()) for file in out.rglob("result.json")]
    assert results and {result["status"] for result in results} == {"failed"}
    assert "lacks 1 weights" in str(results) and "accuracy" not in results[0]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ('engine.student.device="cuda:7"', 'device "cuda:7"'),
        ('engine.teacher.device="tpu"', 'device such as "cuda:1", got "tpu"'),
        ('engine.student.device="cuda:x"', 'got "cuda:x"'),
        ('engine.student.device_map="everywhere"', 'got "everywhere"'),
        ('engine.student.attention="flashy"', 'got "flashy"'),
        ('engine.student.attention="stranger/kernel"', "a kernel of the Hub"),
    ],
)
def test_devices_and_attention_that_do_not_exist_are_refused_before_a_model_is_opened(
    word: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("check", "--no-preflight", word) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "hint: " in captured.err and not captured.out


def test_a_device_of_an_evaluation_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("eval", "tiny-qwen/student", "engine.device=tpu") == 2
    assert 'got "tpu"' in capsys.readouterr().err


# --- chat templates in their own process

DATED = "Today is {{ strftime_now('%d %b %Y') }}, or {{ date_string }}.\n" + CHATML
TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}{{ bos_token }}" + CHATML
SEVERAL = "{% set n = namespace(first=true) %}{% for m in messages %}{{ m['content'] | trim }}\n"
TEMPLATES = (CHATML, DATED, TOOLS, SEVERAL + "{% set n.first = false %}{% endfor %}{{ n.first }}")


@pytest.mark.parametrize("text", TEMPLATES)
def test_a_template_renders_as_transformers_renders_it(text: str) -> None:
    spec = ModelSpec(template={"tools": [{"name": "a", "size": 1.5}]}, date="2025-02-03")
    tokenizer = tokenizer_of(text)
    for messages in ((("user", "Tom has “3”\n\n"),), (("system", "Be brief."), ("user", "7"))):
        turns = [{"role": role, "content": content} for role, content in messages]
        with rendering._clock(rendering.datetime.date(2025, 2, 3)):
            direct = tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=True,
                **rendering.arguments_of(tokenizer, spec),
            )
        assert written(tokenizer, messages, spec) == direct


def test_the_embedded_tokenizers_render_as_before() -> None:
    for pair in zoo.PAIRS:
        tokenizer = AutoTokenizer.from_pretrained(zoo.folder(pair, "student"))
        if tokenizer.chat_template:
            turns = [{"role": "user", "content": "2 + 2?"}]
            direct = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
            assert written(tokenizer, "2 + 2?") == direct


def _child(place: Any) -> None:
    """In a fork: an honest template, and one that never ends."""
    tokenizer = tokenizer_of(CHATML)
    place.put(written(tokenizer, "7"))
    tokenizer.chat_template = LOOP
    try:
        written(tokenizer, "7")
    except PotstillError as error:
        place.put(str(error))


def test_a_template_is_limited_off_the_main_thread_and_in_a_worker_process() -> None:
    tokenizer = tokenizer_of(CHATML)
    expected = written(tokenizer, "7")
    texts: list[str] = []

    def read() -> None:
        own = tokenizer_of(CHATML)
        texts.extend(written(own, f"{i}?") for i in range(20))
        own.chat_template = LOOP
        with pytest.raises(PotstillError, match=r"takes more than 0.5 seconds"):
            written(own, "7")
        texts.append("refused")

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts.count("refused") == 3 and texts.count(expected.replace("7", "7?")) == 3
    context = multiprocessing.get_context("fork")
    place = context.Queue()
    process = context.Process(target=_child, args=(place,), daemon=True)
    process.start()
    assert place.get(timeout=60) == expected
    assert "takes more than 0.5 seconds" in place.get(timeout=60)
    process.join()


def test_a_process_that_was_killed_is_started_again() -> None:
    tokenizer = tokenizer_of(CHATML)
    expected = written(tokenizer, "7")
    process = templates._renderer(os.getpid())._process
    assert process is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert written(tokenizer, "7") == expected


def test_an_interrupt_leaves_no_answer_for_the_next_prompt() -> None:
    tokenizer = tokenizer_of(CHATML)
    expected = written(tokenizer, "7")
    renderer = templates._renderer(os.getpid())
    process = renderer._process
    assert process is not None and process.stdout is not None
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stopped = mock.Mock(side_effect=KeyboardInterrupt)
        patch.setattr(process, "stdout", mock.Mock(readline=stopped, close=process.stdout.close))
        written(tokenizer, "8")
    assert written(tokenizer, "7") == expected and renderer._process is not process


def test_an_answer_may_lose_its_thoughts_and_nothing_else() -> None:
    chat = (("user", "7"), ("assistant", "<think>hm</think>\n\nEight"), ("user", "9"))
    cut = "{% for m in messages %}{{ m.content.split('</think>')[-1] | trim }}\n{% endfor %}"
    assert written(tokenizer_of(cut), chat) == "7\nEight\n9\n"
    assert "\\n" in written(tokenizer_of("{{ messages[0].content | tojson }}: "), "a\nb")
    with pytest.raises(PotstillError, match="leaves out or changes a message of the assistant"):
        written(
            tokenizer_of("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"),
            chat,
        )


def test_a_tokenizer_that_cannot_tell_questions_apart_is_refused(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(CHATML)
    folder = Path(save(tmp_path / "m", tokenizer))
    table = json.loads((folder / "tokenizer.json").read_text())
    table["normalizer"] = {"type": "Replace", "pattern": {"Regex": "[A-Z]"}, "content": "?"}
    (folder / "tokenizer.json").write_text(json.dumps(table))
    with pytest.raises(PotstillError, match='reads "A" and "B" as the same tokens'):
        as_eval(folder)
    assert render(tokenizer, "A") != render(tokenizer, "B")

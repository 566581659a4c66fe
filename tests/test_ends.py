"""What ends a completion: read from every file that has it, and written into the export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from checkpoints import (
    CHATML,
    EOS,
    QUESTIONS,
    ROWS,
    TURN,
    config_of,
    save,
    study_table,
    tokenizer_of,
    write,
)
from potstill.cli.eval import evaluate_model
from potstill.engines.cached_teacher import fingerprint
from potstill.engines.torch.checkpoints import Checkpoint
from potstill.engines.torch.ends import ends_of
from potstill.engines.torch.engine import TorchEngine
from potstill.engines.torch.loading import ModelPair
from potstill.errors import PotstillError
from potstill.problems import Problem
from potstill.study.loading import read_study


def greedy(engine: TorchEngine, text: str, limit: int = 12) -> tuple[int, ...]:
    import numpy as np

    prompt = engine.prompt(Problem("", text, ""))
    (sample,) = engine.sample("student", [prompt], [limit], 0.0, np.random.default_rng(0))
    return sample.tokens


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, int]:
    """A base student, an instruct teacher, and the id that the teacher ends in.

    The student writes that id early, so that a folder that does not know it runs on.
    """
    root = tmp_path_factory.mktemp("ends")
    student, teacher = save(root / "student"), save(root / "teacher", tokenizer_of(CHATML), seed=1)
    engine = TorchEngine(student, teacher)
    tokens = greedy(engine, QUESTIONS[0])
    end = tokens[2]
    assert end not in tokens[:2] and len(tokens) == 12
    write(teacher, "generation_config.json", eos_token_id=[EOS, end])
    defaults = {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.9, "top_k": 20}
    write(student, "generation_config.json", **defaults)
    return student, teacher, end


@pytest.fixture(scope="module")
def exported(pair: tuple[str, str, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exported")
    TorchEngine(*pair[:2]).export(root / "all")
    TorchEngine(*pair[:2], lora_rank=2).export(root / "lora")
    return root


@pytest.mark.parametrize("kind", ["all", "lora", "lora/adapter"])
def test_an_exported_student_ends_where_training_ends(
    pair: tuple[str, str, int], exported: Path, kind: str
) -> None:
    student, teacher, end = pair
    engine, folder = TorchEngine(student, teacher), exported / kind
    assert engine.eos == {EOS, end}
    stored = json.loads((folder / "generation_config.json").read_text())
    assert stored["eos_token_id"] == [EOS, end]
    again = TorchEngine(str(folder), str(folder))
    assert again.eos == engine.eos
    for text in QUESTIONS:
        assert greedy(again, text) == greedy(engine, text)
        assert again.encode(text) == engine.encode(text)


@pytest.mark.parametrize("kind", ["all", "lora"])
def test_generate_on_the_exported_folder_writes_what_was_evaluated(
    pair: tuple[str, str, int], exported: Path, kind: str
) -> None:
    """Penalties and temperatures of the base student's folder are not in the exported one."""
    engine = TorchEngine(*pair[:2])
    model = AutoModelForCausalLM.from_pretrained(exported / kind)
    tokenizer = AutoTokenizer.from_pretrained(exported / kind)
    for text in QUESTIONS:
        turns = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**ids, max_new_tokens=12)[0, ids["input_ids"].shape[1] :]
        assert tuple(out.tolist()) == greedy(engine, text)


def test_decoding_defaults_are_named_in_a_note(pair: tuple[str, str, int], exported: Path) -> None:
    (note,) = [n for n in TorchEngine(*pair[:2]).notes if "decoding defaults" in n]
    assert "of the student are not applied" in note
    assert "repetition_penalty 1.9" in note and "temperature 0.7" in note
    folder = str(exported / "all")
    assert not [n for n in TorchEngine(folder, folder).notes if "decoding defaults" in n]


def test_eval_of_an_export_agrees_with_the_study(
    pair: tuple[str, str, int], exported: Path, tmp_path: Path
) -> None:
    """The same completions, and the same share that ended."""
    from potstill.tasks import load_task
    from potstill.training.evaluation import evaluate

    task = read_study(study_table(tmp_path, *pair[:2])).task
    held_out = load_task(**task).test[:3]
    study = evaluate(TorchEngine(*pair[:2]), "student", load_task(**task), held_out, 12)
    options = [f"{key}={value}" for key, value in task.items() if key != "name"]
    texts = tmp_path / "texts.jsonl"
    result = evaluate_model(str(exported / "all"), "jsonl", options, 3, 12, texts)
    rows = [json.loads(line) for line in texts.read_text().splitlines()]
    assert [row["text"] for row in rows] == [row.text for row in study.rows]
    assert result["ended"] == sum(row.ended for row in study.rows) / 3 > 0


def copied(tmp_path: Path, name: str, **config: Any) -> str:
    folder = save(tmp_path / name, tokenizer_of(CHATML))
    (Path(folder) / "generation_config.json").unlink()
    write(folder, "config.json", **config)
    return folder


@pytest.mark.parametrize(
    ("config", "ends"),
    [
        ({"eos_token_id": [EOS, TURN]}, {EOS, TURN}),
        ({"eos_token_id": TURN}, {EOS, TURN}),
        ({"eos_token_id": [TURN, 128_009]}, {EOS, TURN}),  # an id without a row never ends a text
    ],
)
def test_ends_of_config_json_count(tmp_path: Path, config: dict[str, Any], ends: set[int]) -> None:
    folder = copied(tmp_path, "model", **config)
    assert ModelPair.open(folder, folder, None, None).eos == ends


def test_both_files_count_but_not_an_ordinary_token_of_config_json(tmp_path: Path) -> None:
    """A family's default (Llama's is 2) may be any token of another tokenizer."""
    folder = save(tmp_path / "model", tokenizer_of(CHATML))
    write(folder, "config.json", eos_token_id=[TURN, 77])
    assert ModelPair.open(folder, folder, None, None).eos == {EOS, TURN}


def test_ends_of_a_text_config_count(tmp_path: Path) -> None:
    from potstill.engines.torch.checkpoints import Checkpoint
    from potstill.engines.torch.ends import ends_of

    folder = copied(tmp_path, "model", text_config={"eos_token_id": [TURN]})
    assert TURN in ends_of(Checkpoint.find(folder), tokenizer_of(), 260)


def test_a_model_without_ends_is_refused(tmp_path: Path) -> None:
    tokenizer = tokenizer_of()
    tokenizer.eos_token = None
    folder = save(tmp_path / "model", tokenizer, config_of(eos_token_id=None))
    shutil.rmtree(tmp_path / "none", ignore_errors=True)
    write(folder, "generation_config.json", eos_token_id=None)
    write(folder, "config.json", eos_token_id=None)
    with pytest.raises(PotstillError, match="has no end-of-sequence token"):
        ModelPair.open(folder, folder, None, None)
    assert torch.is_grad_enabled()


def test_a_turn_that_does_not_end_a_completion_is_a_note(tmp_path: Path) -> None:
    """As fine-tunes on ChatML whose files still name the base model's EOS alone."""
    folder = save(tmp_path / "m", tokenizer_of(CHATML))
    notes = [n for n in ModelPair.open(folder, folder, None, None).notes if "closes an answer" in n]
    assert len(notes) == 1 and f"<|im_end|> (id {TURN})" in notes[0]
    write(folder, "generation_config.json", eos_token_id=[EOS, TURN])
    assert not ModelPair.open(folder, folder, None, None).notes


def test_padding_rows_are_not_written_by_the_exported_folder(tmp_path: Path) -> None:
    """The student's head has more rows than the teacher's: those were never sampled."""
    student = save(tmp_path / "student", tokenizer_of(CHATML), config_of(vocab_size=ROWS + 8))
    teacher = save(tmp_path / "teacher", tokenizer_of(CHATML), seed=1)
    model = AutoModelForCausalLM.from_pretrained(student)
    with torch.no_grad():
        model.lm_head.weight[ROWS:] *= 30
    model.save_pretrained(student)
    engine = TorchEngine(student, teacher)
    engine.export(tmp_path / "out")
    again = TorchEngine(str(tmp_path / "out"), str(tmp_path / "out"))
    assert again.vocabulary == engine.vocabulary == ROWS
    assert not [n for n in again.notes if "decoding defaults" in n]
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for text in QUESTIONS:
        tokens, ids = greedy(engine, text), torch.tensor([engine.encode(text)])
        assert greedy(again, text) == tokens and max(tokens) < ROWS
        assert max(greedy(TorchEngine(student, student), text)) >= ROWS
        out = exported.generate(ids, max_new_tokens=12, attention_mask=torch.ones_like(ids))
        assert tuple(out[0, ids.shape[1] :].tolist()) == tokens


@pytest.mark.parametrize("text", [b'{"peft_type": "LO', b"[1]", b"\xff{}"], ids=str)
@pytest.mark.parametrize(
    "file", ["generation_config.json", "chat_template.json", "adapter_config.json"]
)
def test_a_damaged_file_of_a_model_is_named(tmp_path: Path, file: str, text: bytes) -> None:
    """A generation config that is skipped would take its ends of a completion with it."""
    folder = save(tmp_path / "m")
    (Path(folder) / file).write_bytes(text)
    with pytest.raises(PotstillError, match=rf'{file}" is damaged'):
        model = Checkpoint.find(folder)
        ends_of(model, model.tokenizer, ROWS)
    if file == "adapter_config.json":
        with pytest.raises(PotstillError, match="is damaged"):
            fingerprint(folder)

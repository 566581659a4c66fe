"""Rendered prompts: special tokens that cannot be meant, arguments, the date, rows, lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, GPT2Config, LlamaConfig, OPTConfig

from checkpoints import (
    CHATML,
    EOS,
    ROWS,
    config_of,
    jsonl_task,
    save,
    study_table,
    tokenizer_of,
    write,
)
from potstill.cli.eval import evaluate_model
from potstill.diagnostics.preflight import Check
from potstill.engines.cross_tokenizer.token_bytes import differ
from potstill.engines.torch.engine import TorchEngine
from potstill.errors import PotstillError
from potstill.problems import Problem
from potstill.settings import TorchSettings
from potstill.study.loading import read_study
from potstill.study.run import preflight_pair
from potstill.tasks.rendering import render, written
from potstill.types import ModelSpec, Prompt

DATED = "Today is {{ strftime_now('%d %b %Y') }}, or {{ date_string }}.\n" + CHATML
THINKING = CHATML + "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
STRICT = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('A system message is required') }}"
    "{% endif %}" + CHATML
)
NO_SYSTEM = "{% for m in messages if m.role != 'system' %}" + CHATML.split("%}", 1)[1]


def checks(table: dict[str, Any], *only: str) -> list[Check]:
    return preflight_pair(read_study(table), "mine", only=only)


def evaluated(folder: str, tmp_path: Path, *words: str, limit: int = 6) -> dict[str, Any]:
    task = jsonl_task(tmp_path)
    options = [f"{key}={value}" for key, value in task.items() if key != "name"]
    return evaluate_model(folder, "jsonl", [*options, *words], 3, limit, None)


@pytest.mark.parametrize(
    ("template", "post", "message"),
    [
        ("", "$A </s>", r"end in </s>, after which nothing follows: its tokenizer appends it"),
        ("", "<s> $A </s>", r"end in </s>"),
        ("", "$A <|im_end|>", r"end in <\|im_end\|>"),
        ("", "<s> <s> $A", r"begin with <s> twice"),
        ("{{ bos_token }}{{ bos_token }}" + CHATML, "$A", r"begin with <s> twice"),
        ("{{ messages[0].content }}{{ eos_token }}", "$A", r"end in </s>.*chat template writes it"),
        ("{{ messages[0].content }}</s>\n", "$A", r"end in </s>"),
        ("Hello!", "$A", r"renders every question as 'Hello!'"),
        ("{{ messages[0].content[0].text }}", "$A", r"renders every question as ''"),
        (STRICT, "$A", r"does not accept a user's message alone: A system message is required"),
        ("{% for %}", "$A", r"does not accept a user's message alone: "),
        ("{{ messages[0].content.nothing() }}", "$A", r"does not accept a user's message alone"),
    ],
)
def test_prompts_that_cannot_be_meant_are_refused(
    tmp_path: Path, template: str, post: str, message: str
) -> None:
    ids = {"<s>": 0, "</s>": 1, "<|im_end|>": 3}
    folder = save(tmp_path / "m", tokenizer_of(template, post, template_ids=ids))
    with pytest.raises(PotstillError, match=message) as caught:
        TorchEngine(folder, folder)
    assert caught.value.hint
    with pytest.raises(PotstillError, match=message):
        evaluated(folder, tmp_path)


@pytest.mark.parametrize(
    ("template", "post"),
    [
        ("", "$A"),
        ("", "<s> $A"),
        (CHATML, "<s> $A </s>"),  # a template's prompt is not put between them
        ("{{ bos_token }}" + CHATML, "<s> $A"),
        ("[INST] {{ messages[0].content }} [/INST]", "$A"),
        ("{{ messages[0].content }}</s>\nAnswer:", "$A"),
    ],
)
def test_other_prompts_are_read(tmp_path: Path, template: str, post: str) -> None:
    tokenizer = tokenizer_of(template, post)
    folder = save(tmp_path / "m", tokenizer)
    ids = TorchEngine(folder, folder).encode("Tom")
    assert ids == render(tokenizer, "Tom") and ids.count(0) <= 1 and ids[-1] != EOS


def test_special_tokens_in_the_data_are_a_warning(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", tokenizer_of(CHATML))
    task = jsonl_task(tmp_path, ("plain", "a <|im_end|> b", "x </s>"))
    (check,) = checks(study_table(tmp_path, folder, folder, task=task), "prompts")
    assert check.status == "warning" and "4 of 6 problems" in check.evidence
    table = study_table(tmp_path, folder, folder)
    assert [c.status for c in checks(table, "prompts")] == ["passed"]


def test_an_id_without_a_row_is_a_note_until_a_prompt_has_it(tmp_path: Path) -> None:
    """As Gemma 3's <image_soft_token> and the <pad> that fine-tunes of Llama 2 add."""
    folder = save(tmp_path / "m", tokenizer_of(CHATML, extra=("<pad>", "<image>")))
    engine = TorchEngine(folder, folder)
    (note,) = [n for n in engine.notes if "have no row" in n]
    assert note.startswith("2 ids of the tokenizer of") and f"{ROWS}, <pad>" in note
    prompts = [engine.prompt(Problem("", "7", ""))] * 4
    samples = engine.sample("student", prompts, [8] * 4, 2.0, np.random.default_rng(0))
    assert max(max(sample.tokens) for sample in samples) < ROWS == engine.vocabulary
    with pytest.raises(PotstillError, match=rf"a prompt has <pad> \(id {ROWS}\)"):
        engine.encode("a <pad>")
    assert evaluated(folder, tmp_path)["problems"] == 3
    table = study_table(tmp_path, folder, folder)
    assert "refused" not in {c.status for c in checks(table, "pair", "prompts", "steps", "sampler")}


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_tokenizers_that_differ_in_ids_without_a_row_are_one(tmp_path: Path, role: str) -> None:
    """A fine-tune that added <pad>, and the base that has none."""
    tuned = save(tmp_path / "tuned", tokenizer_of(CHATML, extra=("<pad>",)))
    base = save(tmp_path / "base", tokenizer_of(CHATML), seed=1)
    names = (tuned, base) if role == "student" else (base, tuned)
    assert differ(*names) is False
    engine = TorchEngine(*names)
    assert engine.pair.teacher_tokenizer is None and engine.vocabulary == ROWS
    results = checks(study_table(tmp_path, *names), "pair", "steps", "prompts")
    assert "refused" not in {c.status for c in results}
    other = save(tmp_path / "other", tokenizer_of(CHATML), config_of(vocab_size=ROWS + 8))
    resized = save(tmp_path / "resized", tokenizer_of(extra=("<pad>",)), config_of(vocab_size=264))
    assert differ(other, resized) is True


def test_an_id_without_a_row_in_every_prompt_is_refused_before_training(tmp_path: Path) -> None:
    template = CHATML.replace("{{ m.content }}", "<image>{{ m.content }}")
    folder = save(tmp_path / "m", tokenizer_of(template, extra=("<image>",)))
    with pytest.raises(PotstillError, match="a prompt has <image>"):
        checks(study_table(tmp_path, folder, folder))
    with pytest.raises(PotstillError, match="a prompt has <image>") as caught:
        evaluated(folder, tmp_path)
    assert "remove the token" in caught.value.hint


def test_heads_of_two_sizes_read_their_own_prompts(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(CHATML, extra=("<pad>",))
    small = save(tmp_path / "small", tokenizer)
    large = save(tmp_path / "large", tokenizer, config_of(vocab_size=ROWS + 8))
    engine = TorchEngine(small, large)
    assert engine.vocabulary == ROWS and engine.pair.rows == (ROWS, ROWS + 8)
    assert ROWS in engine.encode("<pad>", "teacher")
    with pytest.raises(PotstillError, match="a prompt has <pad>"):
        engine.encode("<pad>")


def gpt2(folder: Path, positions: int, kind: Any = GPT2Config) -> str:
    keys = {"n_positions": positions, "max_position_embeddings": positions, "ffn_dim": 32}
    return save(folder, config=config_of(kind, word_embed_proj_dim=32, **keys))


@pytest.mark.parametrize("kind", [GPT2Config, OPTConfig])
def test_a_prompt_beyond_learned_positions_is_refused(tmp_path: Path, kind: Any) -> None:
    folder = gpt2(tmp_path / "m", 24, kind)
    task = jsonl_task(tmp_path, ("short", "x" * 18, "y"))
    table = study_table(tmp_path, folder, folder, task=task)
    results = checks(table)
    assert {c.status for c in results if c.name == "length"} == {"refused"}, results
    assert "24 positions; its longest prompt (train-1) has 24 tokens" in results[-1].evidence
    assert not [c for c in results if c.name == "sampler"]  # nothing is run after it
    with pytest.raises(PotstillError, match="has 24 positions; the longest prompt has"):
        evaluated(folder, tmp_path, limit=30)
    engine = TorchEngine(folder, folder)
    with pytest.raises(PotstillError, match="has 24 positions") as caught:
        engine.sample("student", [Prompt.of((5,) * 20)], [5], 0.0, np.random.default_rng(0))
    assert "lower max_tokens" in caught.value.hint
    engine.sample("student", [Prompt.of((5,) * 20)], [4], 0.0, np.random.default_rng(0))


def test_a_prompt_beyond_rotary_positions_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path / "m", config=config_of(LlamaConfig, max_position_embeddings=20))
    roles = checks(study_table(tmp_path, folder, folder), "length")
    assert [c.status for c in roles] == ["warning", "warning"]
    assert evaluated(folder, tmp_path, limit=16)["problems"] == 3
    assert "the model was not trained beyond" in capsys.readouterr().err


def test_the_narrowest_of_several_teachers_counts(tmp_path: Path) -> None:
    student = gpt2(tmp_path / "student", 64)
    teachers = {"a": gpt2(tmp_path / "a", 40), "b": save(tmp_path / "b", config=config_of())}
    for first in (student, str(tmp_path / "b")):
        engine = TorchEngine(student, first, teachers=teachers)
        assert engine.windows["teacher"].tokens == 40 and engine.windows["teacher"].fixed


def test_the_teachers_context_counts_in_its_length(tmp_path: Path) -> None:
    student = gpt2(tmp_path / "student", 64)
    teacher = gpt2(tmp_path / "teacher", 64)
    table = study_table(tmp_path, student, teacher)
    table["pair"]["mine"]["context"] = {"system": "Be brief, and write #### last. " * 2}
    results = checks(table, "length")
    assert [c.status for c in results] == ["passed", "refused"]


@pytest.mark.parametrize("kind", [CHATML, NO_SYSTEM, ""])
def test_a_context_that_the_template_drops_is_refused(tmp_path: Path, kind: str) -> None:
    folder = save(tmp_path / "m", tokenizer_of(kind))
    table = study_table(tmp_path, folder, folder)
    table["pair"]["mine"]["context"] = {"system": "Be brief."}
    if kind == NO_SYSTEM:
        with pytest.raises(PotstillError, match=r"a message of the system: 'Be brief.' is not in"):
            checks(table, "context")
        return
    (check,) = checks(table, "context")
    assert check.status == "passed" and "prompts of 6 of 6 problems" in check.evidence


def test_arguments_of_a_template_are_each_models_own(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", tokenizer_of(THINKING))
    settings = TorchSettings(teacher=ModelSpec(template={"enable_thinking": True}))
    engine = TorchEngine(folder, folder, settings=settings)
    prompt = engine.prompt(Problem("0", "7", ""))
    student, teacher = (engine.rendered(prompt, role) for role in ("student", "teacher"))
    assert student.endswith("assistant\n<think>\n\n</think>\n\n")
    assert teacher.endswith("assistant\n")
    assert engine.pair.one_model
    other = TorchEngine(folder, folder)
    assert other.encode("7", "teacher") == other.encode("7") == prompt.student
    thinking = evaluated(folder, tmp_path, "engine.template.enable_thinking=true", limit=3)
    assert thinking["prompt"].endswith("assistant\n")
    assert evaluated(folder, tmp_path, limit=3)["prompt"].endswith("</think>\n\n")


def test_arguments_that_no_template_reads_are_refused(tmp_path: Path) -> None:
    for template in (CHATML, ""):
        folder = save(tmp_path / f"m{len(template)}", tokenizer_of(template))
        settings = TorchSettings(teacher=ModelSpec(template={"enable_thinking": True}))
        with pytest.raises(PotstillError, match="template sets enable_thinking"):
            TorchEngine(folder, folder, settings=settings)


def test_the_date_of_a_template_is_the_settings() -> None:
    """Neither the day of the run nor transformers' clock is in a prompt."""
    tokenizer = tokenizer_of(DATED)
    assert written(tokenizer, "7").startswith("Today is 26 Jul 2024, or 26 Jul 2024.\n")
    spec = ModelSpec(date="2031-01-02")
    assert written(tokenizer, "7", spec).startswith("Today is 02 Jan 2031, or 02 Jan 2031.\n")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"date": "tomorrow"}, "date is a day as YYYY-MM-DD, not 'tomorrow'"),
        ({"template": {"tokenize": True}}, "the template's own arguments, not tokenize"),
    ],
)
def test_invalid_settings_of_a_template_are_refused_when_the_file_is_read(
    spec: dict[str, Any], message: str
) -> None:
    with pytest.raises(PotstillError, match=message):
        read_study({"engine": {"name": "torch", "student": spec}})


def test_an_answer_is_read_after_the_thought(tmp_path: Path) -> None:
    from potstill.tasks.grading import grade_exact, grade_number

    assert grade_number("5", "<think>#### 4, then 6</think>\n#### 5").strict
    assert not grade_number("4", "<think>#### 4").flexible
    assert grade_exact("yes", "<think>no?</think>yes").strict
    opened = save(
        tmp_path / "m", tokenizer_of(CHATML.replace("assistant\n", "assistant\n<think>\n"))
    )
    engine = TorchEngine(opened, opened)
    prompt = engine.prompt(Problem("0", "7", ""))
    assert engine.opening(prompt, "student") == "<think>"
    closed = save(tmp_path / "n", tokenizer_of(THINKING))
    engine = TorchEngine(closed, closed)
    assert engine.opening(engine.prompt(Problem("0", "7", "")), "student") == ""
    write(closed, "generation_config.json", eos_token_id=[EOS])


@pytest.mark.parametrize("arguments", [{}, {"enable_thinking": True}, {"date_string": "1 May"}])
@pytest.mark.parametrize("template", [THINKING, "{{ date_string }}" + THINKING, CHATML])
def test_the_exported_template_renders_as_in_training(
    tmp_path: Path, template: str, arguments: dict[str, Any]
) -> None:
    """Without arguments too, as other programs use it; `eval` passes none of its own."""
    if [key for key in arguments if key not in template]:
        return
    folder = save(tmp_path / "m", tokenizer_of(template))
    settings = TorchSettings(student=ModelSpec(template=arguments))
    engine = TorchEngine(folder, folder, settings=settings)
    engine.export(tmp_path / "out")
    turns = [{"role": "user", "content": "7"}]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert tuple(ids) == engine.encode("7")
    again = TorchEngine(str(tmp_path / "out"), str(tmp_path / "out"))
    assert again.encode("7") == engine.encode("7")
    if "enable_thinking" in template:
        for value in (True, False):
            other = ModelSpec(template={"enable_thinking": value})
            assert written(tokenizer, "7", other).endswith("</think>\n\n") != value
    again.export(tmp_path / "twice")
    assert AutoTokenizer.from_pretrained(tmp_path / "twice").chat_template == (
        tokenizer.chat_template
    )


@pytest.mark.parametrize(
    ("tokens", "thought"),
    [
        (("[THINK]", "[/THINK]"), "[THINK]no[/THINK]"),
        (("<think>", "</think>"), "<think>no</think>"),
        (
            ("<|channel|>", "<|message|>"),
            "<|channel|>analysis<|message|>no<|channel|>final<|message|>",
        ),
    ],
)
def test_thoughts_in_special_tokens_are_not_graded(tokens: tuple[str, str], thought: str) -> None:
    from potstill.engines.torch.thoughts import decoder_of
    from potstill.tasks.grading import grade_exact

    tokenizer = tokenizer_of(extra=tokens)
    decode = decoder_of(tokenizer)
    ids = tokenizer(f"{thought}yes</s>", add_special_tokens=False).input_ids
    assert grade_exact("yes", decode(ids)).strict
    assert not grade_exact("yes", decode(ids[:-5])).flexible
    assert decode(tokenizer("yes").input_ids) == "yes"


def test_the_record_of_a_baseline_has_its_prompt(tmp_path: Path) -> None:
    from potstill.study.run import run_cell
    from potstill.study.storage import RunId, StudyFolder

    folder = save(tmp_path / "m", tokenizer_of(THINKING))
    spec = {"teacher": {"template": {"enable_thinking": True}}, "name": "torch"}
    table = study_table(tmp_path, folder, folder, engine=spec)
    out = StudyFolder(tmp_path / "out")
    for method, end in (("teacher", "assistant\n"), ("untrained", "</think>\n\n")):
        result = run_cell(read_study(table), out, RunId("mine", method))
        assert result["prompt"].startswith("<|im_start|>user\nTom has 3<|im_end|>")
        assert result["prompt"].endswith(end)

"""The embedded pairs: the models that there are, their accuracy, and making them again."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from potstill.cli.eval import evaluate_model
from potstill.cli.zoo import build_zoo
from potstill.engines import zoo
from potstill.engines.zoo.save import save_pair
from potstill.errors import PotstillError

ROLES = ("student", "teacher")
MODELS = zoo.MODELS
ROOT = Path(zoo.__file__).parent


def test_the_package_holds_the_models_that_are_listed_and_no_more() -> None:
    stored = {path.parent.relative_to(ROOT) for path in ROOT.glob("*/*/config.json")}
    assert stored == {Path(*zoo.model(pair, role)) for pair, role in MODELS}
    assert len({zoo.folder(pair, role) for pair in zoo.CONTEXTS for role in ROLES}) == 1


def test_models_are_safetensors_and_small() -> None:
    files = [
        path for model in MODELS for path in (ROOT.joinpath(*model)).rglob("*") if path.is_file()
    ]
    suffixes = {path.suffix for path in files}
    assert suffixes <= {".safetensors", ".json", ".jinja"}, suffixes
    assert sum(path.stat().st_size for path in files) <= 8 * 10**6


@pytest.mark.parametrize(("pair", "role"), MODELS)
def test_a_model_is_an_ordinary_folder(pair: str, role: str) -> None:
    config = AutoConfig.from_pretrained(zoo.folder(pair, role))
    architecture = "LlamaForCausalLM" if pair == "tiny-llama" else "Qwen3ForCausalLM"
    assert config.architectures == [architecture]
    model = AutoModelForCausalLM.from_pretrained(zoo.folder(pair, role))
    tokenizer = AutoTokenizer.from_pretrained(zoo.folder(pair, role))
    assert type(model).__name__ == architecture
    assert model.get_output_embeddings().weight.shape[0] == len(tokenizer)
    assert tokenizer.eos_token_id == config.eos_token_id
    assert (tokenizer.chat_template is not None) == (pair != "tiny-llama")
    text = "Ann has 47 apples,\n#### -1,234 naïve 你好"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text


def test_tokenizers_agree_within_a_pair_and_differ_between() -> None:
    tokenizers = {model: AutoTokenizer.from_pretrained(zoo.folder(*model)) for model in MODELS}
    text = "Ben has 38 coins, loses 19 and wins 20."
    students = []
    for pair in zoo.DEFAULT:
        student, teacher = (tokenizers[pair, role] for role in ROLES)
        assert student.get_vocab() == teacher.get_vocab()
        assert student(text).input_ids == teacher(text).input_ids
        assert student.chat_template == teacher.chat_template
        students.append(student)
    first, second = students
    assert first.get_vocab() != second.get_vocab()
    assert first(text).input_ids != second(text).input_ids


@pytest.mark.parametrize("pair", zoo.DEFAULT)
def test_the_teacher_is_good_and_the_student_has_room(pair: str) -> None:
    strict = {}
    for role in ROLES:
        result = evaluate_model(f"{pair}/{role}", "arithmetic", (), 500, 32, None)
        assert result["problems"] == 500
        strict[role] = result["strict"]
    assert strict["teacher"] >= 0.90
    assert 0.35 <= strict["student"] <= 0.65


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("pair", [*zoo.DEFAULT, "tiny-context"])
def test_a_build_depends_on_its_seed_and_nothing_else(
    pair: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from potstill.engines.zoo import build

    family = build.FAMILIES[pair]
    tiny = replace(family.student, steps=2, batch=4)
    monkeypatch.setattr(build, "FAMILIES", {pair: replace(family, student=tiny, teacher=tiny)})
    progress: list[tuple[int, int, float]] = []
    for name, role, seed in (
        ("once", "student", 3),
        ("again", "student", 3),
        ("other", "student", 4),
        ("teacher", "teacher", 3),
    ):
        build.build(pair, role, tmp_path / name, seed, lambda *now: progress.append(now))
    once, again, other, teacher = (
        digest(tmp_path / name) for name in ("once", "again", "other", "teacher")
    )
    assert once == again
    weights = {files.pop("model.safetensors") for files in (once, other, teacher)}
    assert len(weights) == 3 and once == other == teacher  # only the weights differ
    assert [(done, of) for done, of, _ in progress[:2]] == [(1, 2), (2, 2)]

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "once")
    embedded = AutoModelForCausalLM.from_pretrained(zoo.folder(pair, "student"))
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in embedded.named_parameters()
    }
    built, stored = (
        AutoTokenizer.from_pretrained(folder)
        for folder in (tmp_path / "once", zoo.folder(pair, "student"))
    )
    assert built.get_vocab() == stored.get_vocab()
    result = evaluate_model(str(tmp_path / "once"), "arithmetic", (), 10, 8, None)
    assert result["strict"] == 0.0


def test_a_teacher_that_begins_with_another_models_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from potstill.engines.zoo import build

    family = build.FAMILIES["tiny-cross"]
    rare = replace(family, teacher=replace(family.teacher, steps=1, batch=2, learning_rate=1e-9))
    monkeypatch.setattr(build, "FAMILIES", {"tiny-cross": rare})
    build.build("tiny-cross", "teacher", tmp_path / "one", 0, lambda *_: None)
    made, source = (
        AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
        for folder in (tmp_path / "one", zoo.folder("tiny-qwen", "teacher"))
    )
    cross, qwen = (
        AutoTokenizer.from_pretrained(folder).get_vocab()
        for folder in (zoo.folder("tiny-cross", "teacher"), zoo.folder("tiny-qwen", "teacher"))
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "one").get_vocab() == cross
    assert (made[cross["7"]] - source[qwen["7"]]).abs().max() < 1e-3
    assert (made[cross["+8"]] - source[[qwen["+"], qwen["8"]]].mean(0)).abs().max() < 1e-3


def test_building_refuses_what_exists_and_what_is_unknown(tmp_path: Path) -> None:
    for pair in ("tiny-qwen", "tiny-llama"):
        (tmp_path / pair / "student").mkdir(parents=True)
    for names, role, message in (
        (["tiny-qwen"], "both", "exists already"),
        ([], "student", "exists already"),
        (["tiny-qwem"], "both", 'unknown pair "tiny-qwem"'),
        (["tiny-llama"], "pupil", 'unknown role "pupil"'),
        (["tiny-cross"], "student", "tiny-llama/student.* exists already"),  # it borrows that one
    ):
        with pytest.raises(PotstillError, match=message) as refused:
            list(build_zoo(names, tmp_path, 0, role))
        assert refused.value.hint
    assert sorted(path.parent.name for path in tmp_path.rglob("*/*")) == ["tiny-llama", "tiny-qwen"]


@pytest.mark.slow
@pytest.mark.parametrize("pair", zoo.DEFAULT)
def test_a_student_made_from_the_seed_is_half_trained(pair: str, tmp_path: Path) -> None:
    """Two to three minutes. Rounding differs between kinds of processors, and the student is caught
    on a steep learning curve (0.66 instead of 0.45 was seen): it has to know something and to have
    room left."""
    (row,) = build_zoo([pair], tmp_path, 0, "student")
    assert 0.25 < row["accuracy"] < 0.75


def test_a_pair_is_copied_with_the_same_weights(tmp_path: Path) -> None:
    folder = save_pair("tiny-qwen", tmp_path / "copies")
    for role in ROLES:
        copy = AutoModelForCausalLM.from_pretrained(folder / role).state_dict()
        stored = AutoModelForCausalLM.from_pretrained(zoo.folder("tiny-qwen", role)).state_dict()
        assert copy.keys() == stored.keys()
        assert all(copy[k].dtype == torch.float32 for k in copy)
        assert all(torch.equal(copy[k], stored[k].float()) for k in copy)
    with pytest.raises(PotstillError, match="exists already"):
        save_pair("tiny-qwen", tmp_path / "copies")


@pytest.mark.slow
def test_pairs_with_a_context_share_a_model_that_a_hint_makes_better(tmp_path: Path) -> None:
    """A minute: made once, evaluated four times."""
    rows = {
        (row["pair"], row["role"]): row["flexible"]
        for row in build_zoo(list(zoo.CONTEXTS), tmp_path, 0, "both")
    }
    assert len(list(tmp_path.glob("*/*/model.safetensors"))) == 1 and len(rows) == 4
    assert rows["tiny-context", "teacher"] > rows["tiny-context", "student"] + 0.2
    assert abs(rows["tiny-format", "teacher"] - rows["tiny-format", "student"]) < 0.1

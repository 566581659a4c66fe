"""Wrong settings: refused in a line that names the rule, before a model loads."""

from __future__ import annotations

import os
import shutil
import string
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conftest import toy_table
from hardening.settings import cases, outcomes, sample
from potstill.algorithms.methods import METHODS
from potstill.cli.eval import engine_options, task_options
from potstill.diagnostics.preflight import estimate
from potstill.diagnostics.preflight.timing import Step
from potstill.engines import zoo
from potstill.errors import MOST_ERRORS, PotstillError, PotstillErrors
from potstill.settings import MOST_STEPS, Train
from potstill.study.loading import load_study, override, parse_value, read_study
from potstill.study.race import Rules, raced
from potstill.study.reading import LARGEST, check_values
from potstill.study.schema import Study
from potstill.tasks.jsonl import read_jsonl
from potstill.training.spending import Spent

RIGHT = {"right", "refused"}


def test_a_sample_of_wrong_settings_is_right_or_refused() -> None:
    defects: list[str] = []
    counts = outcomes(sample(600), lambda case, result: defects.append(f"{result}: {case}"))
    assert not defects, "\n".join(defects)
    assert counts.keys() == RIGHT and counts["right"] > 10 and counts.total() > 500


@pytest.mark.slow
def test_all_wrong_settings_are_right_or_refused() -> None:
    defects: list[str] = []
    counts = outcomes(cases(), lambda case, result: defects.append(f"{result}: {case}"))
    assert not defects, "\n".join(defects[:50])
    assert counts.keys() == RIGHT and counts["right"] > 1000 and counts.total() > 20_000


OWN = {"student": "a", "teacher": "b"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"recipe": {"teacher": {}}}, 'recipe "teacher": the folder of that name is a baseline'),
        ({"recipe": {"Untrained": {}}}, 'recipe "Untrained": the folder of that name'),
        ({"recipe": {"Hybrid": {}}}, '"Hybrid" and "hybrid" are one folder where case does not'),
        ({"recipe": {"con": {}}}, "a device of Windows has that name"),
        ({"recipe": {"a" * 73: {}}}, "has at most 72 bytes in UTF-8, got 73"),
        ({"recipe": {"名" * 25: {}}}, "has at most 72 bytes in UTF-8, got 75"),
        ({"recipe": {"a b": {}}}, "letters, digits and underscores"),
        ({"recipe": {"a": {}, "A": {}}}, "are one folder"),
        ({"recipe": {"e\u0301": {}, "\u00e9": {}}}, "are one folder"),
        ({"pair": {"toy.": OWN}}, "does not end in a dot"),
        ({"pair": {"COM1.x": OWN}}, "a device of Windows has that name"),
        ({"pair": {"a\u200bb": OWN}}, "a key has no control characters"),
        ({"pair": {"a\u200db": OWN}}, "has no control characters"),
        ({"pair": {"..": OWN}}, "pair"),
        ({"pair": {"a/b": OWN}}, "pair"),
        ({"pair": {"Tiny-Qwen": OWN, "x": OWN}, "pairs": ["Tiny-Qwen", "tiny-qwen"]}, "one folder"),
        ({"name": "mirrors"}, "is the copies of studies behind a URL's"),
        ({"name": "a\n"}, "name: string should match"),
        ({"name": "nul"}, "a device of Windows"),
        ({"name": "x" * 300}, "at most 72 bytes"),
        ({"methods": []}, "methods is empty, so that nothing would be trained"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "one of them twice"),
        ({"seeds": list(range(1001))}, "seeds"),
        ({"seeds": [2**53]}, "seeds.0"),
        ({"seeds": True}, "seeds is a number, got True"),
        ({"seeds": [0, True]}, "seeds is a number"),
        ({"recipe": {f"m{n}": {} for n in range(101)}, "methods": [f"m{n}" for n in range(101)]},
         "a study has at most 100 methods, got 101"),
        ({"train": {"steps": 10**12}}, "train.steps"),
        ({"train": {"steps": 1e12}}, "train.steps"),
        ({"train": {"steps": True}}, "steps is a number, got True"),
        ({"train": {"steps": 10**5}, "recipe": {"m": {"budget": 1000}}, "methods": ["m"]},
         "a run has at most 10,000,000 steps, a recipe's budget times train.steps is 100,000,000"),
        ({"train": {"batch_size": 10**9}}, "train.batch_size"),
        ({"train": {"max_tokens": 10**9}}, "train.max_tokens"),
        ({"train": {"temperature": 1e-300}}, "train.temperature"),
        ({"train": {"learning_rate": 1e-320}}, "train.learning_rate"),
        ({"train": {"max_grad_norm": 1e-9}}, "less trains nothing"),
        ({"train": {"learning_rate": float("nan")}}, "train.learning_rate: a number is finite"),
        ({"recipe": {"m": {"hypothesis": [float("nan")]}}}, "a number is finite, got nan"),
        ({"budget": {"usd": 5}}, "budget.usd = 5 is never reached, as all prices are 0"),
        ({"price": {"hour": 10**5000}}, "a whole number is at least -2**63"),
        ({"engine": {"name": "torch", "student": {"device": "banana"}}}, "device is a device"),
        ({"engine": {"name": "torch", "student": {"attention": "a b"}}}, "attention is an impl"),
        ({"engine": {"name": "torch", "student": {"template": {"": 1}}}}, "template has names"),
        ({"engine": {"name": "tinker", "base_url": "localhost"}}, "engine.base_url"),
        ({"faults": ["\x1b[31m"]}, r'unknown fault "\x1b[31m"'),
    ],
)  # fmt: skip
def test_settings_that_no_run_can_have(tmp_path: Path, changes: dict, says: str) -> None:
    table = toy_table(tmp_path, **changes)
    with pytest.raises(PotstillError) as caught:
        read_study(table)
    assert says in str(caught.value), caught.value
    assert caught.value.hint and all(line.isprintable() for line in str(caught.value).split("\n"))


def test_names_at_the_limit_are_accepted(tmp_path: Path) -> None:
    name = "n" * 72
    study = read_study(
        toy_table(
            tmp_path, name=name, recipe={"名" * 24: {}, "com": {}}, methods=["名" * 24, "com"]
        )
    )
    assert study.name == name and list(study.recipes) == ["名" * 24, "com"]


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"looks": [1, 10**9]}, "at most 1,000 seeds, got a look at 1000000000"),
        ({"looks": []}, "looks are 1 seed or more"),
        ({"looks": [True, 3]}, "looks is a number"),
        ({"fresh": 10**9}, "at most 1,000 seeds"),
        ({"fresh": 10**5000}, "a int that is too long to print"),
        ({"within": float("nan")}, "within is above 0 and at most 100 points, got nan"),
        ({"alpha": True}, "alpha is a number, got True"),
    ],
)
def test_rules_of_a_race_that_cannot_be_run(toy: Study, rules: dict, says: str) -> None:
    with pytest.raises(PotstillError) as caught:
        raced(toy, Rules.read(rules))
    assert says in str(caught.value)


def test_a_race_has_numbers_left_for_its_seeds(tmp_path: Path) -> None:
    study = read_study(toy_table(tmp_path, seeds=[2**53 - 5]))
    with pytest.raises(PotstillError, match="numbers after its seeds"):
        raced(study, Rules())


GOOD = b'name = "x"\n'


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_loop(path: Path) -> None:
    path.symlink_to(path)


def of_zeros(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**30)


FILES: dict[str, tuple[bytes | Callable[[Path], None], str]] = {
    "UTF-16": (GOOD.decode().encode("utf-16"), "it is in UTF-16"),
    "NUL": (GOOD + b"a\0", "line 2 has a NUL character"),
    "latin-1": (b'name = "\xe4"', "byte 9 (0xe4) is not UTF-8"),
    "a folder": (Path.mkdir, "it is a folder"),
    "a pipe": (a_pipe, "it is a pipe"),
    "a loop": (a_loop, "cannot read"),
    "1 GB of zeros": (of_zeros, "it has 1,073,741,824 bytes, at most 1,048,576 are read"),
    "5,000 digits": (b"seeds = " + b"9" * 5000, "a number has thousands of digits"),
    "5,000 hexadecimal digits": (b"seeds = 0x" + b"f" * 5000, "seeds: a whole number is at least"),
    "brackets": (b"seeds = " + b"[" * 10**5, "nested too deeply"),
    "closed brackets": (b"seeds = " + b"[" * 300 + b"]" * 300, "at most 20 deep in each other"),
    "tables": (b"train = " + b"{a=" * 10**5, "nested too deeply"),
    "a key of many parts": (b"a." * 10**5 + b"a = 1", "a key has 50 parts or more"),
    "a quoted key": (b'"a" . ' * 10**5 + b"a = 1", "a key has 50 parts or more"),
    "parts in a header": (b"[" + b"a." * 10**5 + b"a]", "a key has 50 parts or more"),
    "a long key": (b"a" * 10**5 + b" = 1", "a key has at most 200 characters"),
    "a long word": (b"a" * 10**6, "is not TOML"),
    "a date": (b"name = 2024-07-26", 'name: a date or time is text, got 2024-07-26: write "2024'),
    "a time": (b"train.steps = 07:30:00", "train.steps: a date or time is text"),
    "infinity": (b"budget.hours = inf", "budget.hours: a number is finite, got inf"),
    "a NUL escape": (rb'published = "\u0000"', "published: a text has no NUL character"),
    "many values": (b"seeds = [" + b"1," * 10**5 + b"]", "at most 100,000 values"),
    "a key twice": (GOOD * 2, "is not TOML"),
    "nothing of a study": (b"{}", "is not TOML"),
    "old line ends": (GOOD.replace(b"\n", b"\r") * 2, "is not TOML"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_study_file_of_another_kind(tmp_path: Path, name: str) -> None:
    content, says = FILES[name]
    path = tmp_path / "study.toml"
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    with pytest.raises(PotstillError) as caught:
        load_study(path)
    assert says in str(caught.value) and str(path) in str(caught.value) and caught.value.hint


@pytest.mark.parametrize("path", ["absent.toml", "a\0b", "x" * 5000, "~no-such-user/x", ""])
def test_a_path_without_a_file(path: str) -> None:
    with pytest.raises(PotstillError, match="no study file"):
        load_study(path)


@pytest.mark.parametrize("form", ["\ufeff{}", "{}", "\ufeff{}\r\n"])
def test_marks_and_line_ends_of_other_systems(tmp_path: Path, form: str) -> None:
    (tmp_path / "study.toml").write_bytes(form.format('name = "x"\r\nseeds = [3]').encode())
    study = load_study(tmp_path / "study.toml")
    assert (study.name, study.seeds) == ("x", (3,))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train.steps", "an override is key=value"),
        ("=5", "an override is key=value"),
        ("train.steps=" + "9" * 5000, "a number has thousands of digits"),
        ("train.steps=" + "[" * 10**5, "nested too deeply"),
        ("train.steps=0x" + "f" * 5000, "train.steps: a whole number is at least"),
        (".".join("a" * 30) + "=1", "an override has at most 20 keys, got 30"),
        ("a.b.c." + "d" * 300 + "=1", "a key has at most 200 characters"),
        ("a=" + "1," * LARGEST, "at most 1,048,576 characters"),
        ("task={" + "a." * 10**5 + "b=1}", "a key has 50 parts or more"),
        ("name=\udcff", "a text has characters only"),
        ("name=a\0b", "a text has no NUL character"),
        ('name="abc', "an override that begins with a quote is TOML"),
        ('methods=["a, b', "an override that begins with a quote is TOML"),
        ("seeds.x=1", "is not a table"),
        ("train.steps=inf", "train.steps: a number is finite"),
        ("methods=,", "methods is empty"),
    ],
)
def test_overrides_that_are_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(PotstillError) as caught:
        read_study(toy_table(tmp_path), [text])
    assert says in str(caught.value) and len(str(caught.value)) < 1200


def test_a_line_end_in_an_override_begins_no_other_setting(tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match=r"train.steps.* got '5\\nseeds = 1'"):
        read_study(toy_table(tmp_path), ["train.steps=5\nseeds = 1"])
    assert parse_value('"""a\nb"""') == "a\nb"


def test_values_that_no_setting_has() -> None:
    loop: dict[str, Any] = {}
    loop["a"] = loop
    for table in (loop, {1: 2}, {"a\nb": 1}, {"a": "\ud800"}, {"a": [{"b": 2**63}]}):
        with pytest.raises(PotstillError, match=r"^x: "):
            check_values(table, "x")
    check_values({"a": ({"b": [None, "é", 2**63 - 1, -(2**63), True, 0.1, object()]},)}, "x")


@pytest.mark.parametrize(
    ("file", "data", "says"),
    [
        ("tokenizer.json", b"[" * 10**5, "is damaged"),
        ("tokenizer.json", b"nope", "is damaged"),
        ("tokenizer.json", b'{"a": ' + b"9" * 5000 + b"}", "is damaged"),
        ("tokenizer.json", b"", "is damaged: it is empty"),
        ("tokenizer.json", b"[1]", "has a list instead of an object"),
        ("tokenizer.json", b'{"model": {"vocab": [1]}}', "is not a file of the tokenizers library"),
        ("config.json", b"[" * 10**5, "is damaged"),
        ("config.json", b"[1]", "has a list instead of an object"),
    ],
)
def test_a_tokenizer_of_another_form_is_refused_as_the_study_is_read(
    tmp_path: Path, file: str, data: bytes, says: str
) -> None:
    for role in ("student", "teacher"):
        shutil.copytree(zoo.folder("tiny-qwen", role), tmp_path / role)
    with (tmp_path / "teacher" / "tokenizer.json").open("a") as tokenizer:
        tokenizer.write("\n")  # the files differ, so that they are read
    (tmp_path / "teacher" / file).write_bytes(data)
    pair = {role: str(tmp_path / role) for role in ("student", "teacher")}
    table = {"pair": {"mine": pair}, "train": {"learning_rate": 1e-4}}
    with pytest.raises(PotstillError) as caught:
        read_study(table)
    assert says in str(caught.value) and str(tmp_path / "teacher" / file) in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *("a/b/c", "", " ", "a b/c", "a/b\n", "\x1b/x", "~no-such-user/x", "x" * 5000, "-a/b"),
        *("a/" + "b" * 97, "a/..", "/dev/null", "é/b"),
    ],
)
def test_a_model_that_no_hub_has(name: str) -> None:
    table = {"pair": {"mine": {"student": name, "teacher": "tiny-qwen/teacher"}}}
    with pytest.raises(PotstillError) as caught:
        read_study({**table, "train": {"learning_rate": 1e-4}})
    assert "pair.mine.student" in str(caught.value) and caught.value.hint


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("engine.template.x=nan", "engine: template.x: a number is finite"),
        ("engine.template.x=2024-01-01", "a date or time is text"),
        ('engine.attention="\\u0000"', "engine: attention: a text has no NUL character"),
    ],
)
def test_options_of_an_evaluation(word: str, says: str) -> None:
    with pytest.raises(PotstillError) as caught:
        engine_options([word], 1)
    assert says in str(caught.value).replace("student.", "")
    with pytest.raises(PotstillError, match="task: seed: a number is finite"):
        task_options(["seed=inf"])


class Costs(dict):
    """Made costs of steps, by their kind."""

    def __missing__(self, kind: object) -> Step:
        return Step(Spent(1.0 + len(self), {"trained": 3.0}), 0.25)

    def __getitem__(self, kind: object) -> Step:
        return self.setdefault(kind, self.__missing__(kind))


@pytest.mark.parametrize("name", ["hybrid", "teacher_seeded"])
def test_a_long_run_is_predicted_from_a_part_of_its_steps(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Ten million steps took minutes to count, for each method and several times over."""
    recipe, costs = METHODS[name], Costs()
    steps = 2000
    exact = estimate._training(recipe, costs, Train(steps=steps), set())
    assert exact.tokens == {"trained": 3.0 * steps} and len(costs) > 1
    monkeypatch.setattr(estimate, "MOST_COUNTED", 700)
    again = estimate._training(recipe, costs, Train(steps=steps), set())
    assert again.seconds == pytest.approx(exact.seconds, rel=0.01)
    assert again.tokens == pytest.approx(exact.tokens)
    long = estimate._training(recipe, costs, Train(steps=MOST_STEPS), set())
    assert long.seconds == pytest.approx(exact.seconds * MOST_STEPS / steps, rel=0.01)


def test_a_list_of_errors_has_an_end() -> None:
    many = PotstillErrors([PotstillError(f"e{n}") for n in range(2000)])
    assert len(many.errors) == 2000 and f"and {2000 - MOST_ERRORS:,} more" in str(many)
    assert str(many).count("\n") == MOST_ERRORS + 1


TEXTS = st.text(st.characters(codec=None, exclude_categories=()), max_size=30)
TOML_LIKE = st.text(string.digits + string.ascii_letters + "[]{}\"'=.,-+_#:\\ \n\té\0\ud800")


def quoted(value: Any) -> Any:
    """A value as `override` writes it back in a file, where it is not one that is refused."""
    check_values({"value": value}, "x")
    return tomllib.loads(tomli_w.dumps({"value": value}))["value"]


@settings(max_examples=400, deadline=None, database=None, derandomize=True)
@given(TEXTS | TOML_LIKE)
@example("9" * 5000)
@example("[" * 5000)
@example("[1, 2")
@example("1\n2")
def test_any_text_of_an_override_is_a_value_or_an_error(text: str) -> None:
    try:
        value = parse_value(text)
        assert quoted(value) == value
    except PotstillError as error:
        assert str(error)


@settings(max_examples=400, deadline=None, database=None, derandomize=True)
@given(TEXTS | TOML_LIKE, TEXTS | TOML_LIKE)
def test_any_override_changes_one_key_or_is_an_error(key: str, value: str) -> None:
    table: dict[str, Any] = {"train": {"steps": 1}, "seeds": [0]}
    before = tomli_w.dumps(table)
    try:
        override(table, f"{key}={value}")
        check_values(table, "x")
    except PotstillError as error:
        assert error.hint
        return
    first = key.split("=")[0].strip().split(".")[0]
    table.pop(first, None)
    assert all(table[name] == tomllib.loads(before)[name] for name in table)


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.binary(max_size=60) | (TEXTS | TOML_LIKE).map(lambda s: s.encode("utf-8", "replace")))
@example(b"\xef\xbb\xbf")
@example(b'{"a": "\\ud800"}')
def test_any_file_is_rows_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(data)
    try:
        rows = read_jsonl(path, ("a",))
    except PotstillError as error:
        assert str(path) in str(error) and error.hint
    else:
        assert len(rows) == data.rstrip(b"\n").count(b"\n") + 1

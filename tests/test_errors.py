"""Errors that users cause: pydantic's are translated in one place, all of a file are reported."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import tomli_w
from pydantic import BaseModel, Field, ValidationError
from pydantic.dataclasses import dataclass

from conftest import toy_table
from potstill.errors import Errors, PotstillError, PotstillErrors, StorageError, together
from potstill.fields import CLOSED, explain, limits, reported
from potstill.study.loading import load_study, read_study
from potstill.study.schema import Study


def test_one_error_stays_as_it_is_and_several_are_numbered() -> None:
    first, second = PotstillError("a is 1, got 2", "write 1"), PotstillError("b is text, got 3")
    assert together([first]) is first
    both = together([first, second])
    assert str(both) == "2 errors\n  1. a is 1, got 2\n  2. b is text, got 3"
    assert both.hint == "one for each\n  1. write 1\n  2. -"
    again = pickle.loads(pickle.dumps(both))  # as from a worker process
    assert (str(again), again.hint) == (str(both), both.hint) and len(again.errors) == 2


def test_errors_of_several_checks_are_collected_once_each() -> None:
    errors = Errors()
    for message in ("a", "b", "a"):
        with errors:
            raise PotstillError(message, "hint")
    with errors:
        raise together([PotstillError("b"), PotstillError("c")])
    with pytest.raises(PotstillErrors) as raised:
        errors.check()
    assert list(map(str, raised.value.errors)) == ["a", "b", "c"]
    Errors().check()


@pytest.mark.parametrize("error", [StorageError("disk"), KeyError("bug")])
def test_other_exceptions_pass_a_collection(error: Exception) -> None:
    with pytest.raises(type(error)), Errors():
        raise error


class Red(BaseModel, **CLOSED):  # type: ignore[call-arg]
    name: Literal["red"]
    depth: int = 2


class Blue(BaseModel, **CLOSED):  # type: ignore[call-arg]
    name: Literal["blue"]
    width: Annotated[int, limits("a width above 0", "3 is usual", gt=0)] = 3


class Table(BaseModel, **CLOSED):  # type: ignore[call-arg]
    colour: Red | Blue = Field(Red(name="red"), discriminator="name")
    parts: dict[str, Blue] = Field(default_factory=dict)
    counts: tuple[Annotated[int, Field(ge=0)], ...] = (1,)
    title: str
    share: float = Field(0.5, ge=0, le=1)


TITLE = {"title": "t"}


@pytest.mark.parametrize(
    ("table", "message", "hint"),
    [
        (TITLE | {"shar": 1}, 'x: unknown key "shar"', 'did you mean "share"?'),
        ({"share": 1}, "x: title is required, got share", "keys: colour, parts"),
        (TITLE | {"share": 2}, "x: share: input should be less than or equal to 1, got 2", "0.5"),
        (TITLE | {"share": float("nan")}, "x: share: input should be a finite number", "0.5"),
        (TITLE | {"counts": [1, -1]}, "x: counts.1: .* got -1", "the default, (1,)"),
        (TITLE | {"colour": {"name": "rde"}}, 'x: unknown colour "rde"', 'did you mean "red"?'),
        (TITLE | {"colour": {"name": 3}}, 'x: unknown colour "3"', "colours: blue, red"),
        (TITLE | {"colour": 3}, "x: colour: input should be .*, got 3", "default, Red("),
        (
            TITLE | {"colour": {"name": "blue", "width": 0}},
            "x: colour.width is a width above 0, got 0",
            "3 is usual",
        ),
        (
            TITLE | {"colour": {"name": "blue", "shine": 1}},
            'x: unknown key "colour.shine"',
            "keys: name, width",
        ),
        (
            TITLE | {"parts": {"a": {"name": "blue", "width": "x"}}},
            "x: parts.a.width is a width above 0, got 'x'",
            "3 is usual",
        ),
        (TITLE | {"parts": {"a": 3}}, r"x: parts.a: .*, got 3", "studies/"),
    ],
)
def test_pydantics_errors_become_rule_value_and_hint(
    table: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        Table.model_validate(table)
    error = explain(caught.value, "x", Table)
    assert not isinstance(error, PotstillErrors)
    assert re.match(message.replace("?", r"\?"), str(error)), error
    assert hint in error.hint


def test_a_value_class_raises_our_errors_by_keyword_and_by_position() -> None:
    @reported("dial", also=("from",))
    @dataclass(frozen=True, config=CLOSED)
    class Dial:
        turn: Annotated[float, limits("a turn in [0, 1]", ge=0, le=1)]
        name: str = "d"

    for wrong in (lambda: Dial(2.0), lambda: Dial(turn=2.0)):
        with pytest.raises(PotstillError, match=r"^dial: turn is a turn in \[0, 1\], got 2.0$"):
            wrong()
    with pytest.raises(PotstillError, match=r'^dial "b": unknown key "form"$') as caught:
        Dial(turn=1, name="b", form="a")  # type: ignore[call-arg]
    assert caught.value.hint == 'did you mean "from"?'
    assert Dial(0.5) == Dial(turn=0.5)


def test_all_errors_of_a_study_file_are_reported_at_once(tmp_path: Path) -> None:
    """Its own fields, its task, its recipes, its contexts and its names."""
    table = toy_table(tmp_path) | {
        "trian": 3,
        "seeds": [-1],
        "methods": ["mine", "hybird", "heir"],
        "train": {"steps": 0},
        "task": {"name": "arithmetic", "difficulty": 99, "dificulty": 2},
        "recipe": {"mine": {"budget": 0, "anchor": -1}, "heir": {"from": "mine"}},
        "pair": {"toy": {"student": "a", "teacher": "b", "context": {"few_shot": 0}}},
    }
    file = tmp_path / "bad.toml"
    file.write_text(tomli_w.dumps(table))
    with pytest.raises(PotstillErrors, match=r"^9 errors\n") as caught:
        load_study(file)
    rules = {str(error) for error in caught.value.errors}
    for rule in (
        f'{file}: unknown key "trian"',
        f"{file}: seeds.0: input should be greater than or equal to 0, got -1",
        f"{file}: train.steps: input should be greater than or equal to 1, got 0",
        'task "arithmetic": difficulty is 1 to 8 operations, got 99',
        'task "arithmetic": unknown key "dificulty"',
        'recipe "mine": anchor is a weight >= 0, got -1',
        'recipe "mine": budget is a multiple of the steps above 0 and up to 1000, got 0',
        "pair.toy.context.few_shot: n is a whole number, at least 1, got 0",
        'unknown method "hybird"',
    ):
        assert rule in rules
    assert all(error.hint for error in caught.value.errors)


def test_all_errors_between_fields_are_reported_at_once(tmp_path: Path) -> None:
    """An error that every recipe has is reported of one; the others once each."""
    table = toy_table(tmp_path, engine="torch", train={"max_tokens": 10}) | {
        "seeds": [0, 0],
        "methods": ["on_policy_gkd", "teacher_seeded", "gold", "silver"],
        "faults": ["no_fault"],
        "track": ["no_tracker"],
        "recipe": {
            key: {"student_loss": {"truncated_reverse_kl": 4}} for key in ("gold", "silver")
        },
        "pair": {"toy": {"student": "no-model", "teacher": "no-model-either"}},
    }
    with pytest.raises(PotstillErrors) as caught:
        read_study(table)
    rules = [str(error) for error in caught.value.errors]
    parts = (
        "seeds lists [0, 0], one of them twice",
        'unknown fault "no_fault"',
        'unknown tracker "no_tracker"',
        "teacher_seeded seeds up to 20 tokens",
        "gold asks for truncated_reverse_kl(4)",
        'pair.toy.student = "no-model"',
        'pair.toy.teacher = "no-model-either"',
    )
    assert len(rules) == len(parts)
    for part, rule in zip(parts, rules, strict=True):
        assert part in rule


def test_one_error_of_a_study_keeps_its_form(tmp_path: Path) -> None:
    with pytest.raises(PotstillError) as caught:
        read_study(toy_table(tmp_path, train={"steps": 0}), where="toy.toml")
    message = "toy.toml: train.steps: input should be greater than or equal to 1, got 0"
    assert str(caught.value) == message
    assert caught.value.hint == "leave it out for the default, 100"


@pytest.mark.parametrize("value", ["reverse_lk", {"jsd": 2}, 3, [], {}])
def test_the_loss_of_all_methods_is_one_error(tmp_path: Path, value: Any) -> None:
    with pytest.raises(PotstillError, match=r"^study: student_loss: ") as caught:
        read_study(toy_table(tmp_path) | {"student_loss": value})
    assert not isinstance(caught.value, PotstillErrors) and caught.value.hint


def test_a_study_file_keeps_the_form_of_its_tables() -> None:
    """Validation reads them and leaves them as they are, so that folders of today still match."""
    table = {"task": "arithmetic", "student_loss": {"jsd": 1}, "recipe": {"a": {"anchor": 1}}}
    assert read_study(table).to_toml()["student_loss"] == {"jsd": 1}
    assert Study.model_validate(table).to_toml()["recipe"] == {"a": {"anchor": 1}}
    assert read_study(table).to_toml()["task"] == {"name": "arithmetic"}

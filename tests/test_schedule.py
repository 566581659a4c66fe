"""Schedules: values over progress, TOML in and out, refusals."""

from __future__ import annotations

import pytest

from potstill.algorithms.schedules import Schedule, constant, cosine, linear, schedule, switch
from potstill.errors import PotstillError

ALL = [constant(0.7), linear(20, 0, until=0.5), cosine(1, 0.1), switch(0, 1, at=0.5)]


@pytest.mark.parametrize("value", ALL, ids=str)
def test_schedules_survive_toml(value: Schedule) -> None:
    assert schedule(value.to_toml()) == value


@pytest.mark.parametrize("value", ALL, ids=str)
def test_schedules_stay_in_their_range_and_reach_their_end(value: Schedule) -> None:
    low, high = value.range
    assert all(low <= value(i / 100) <= high for i in range(101))
    assert value(0.0) == value.start
    assert value(1.0) == value.end


def test_switch_holds_until_its_step() -> None:
    phases = [switch(1, 0, at=0.7)(step / 10) for step in range(10)]
    assert phases == [1] * 7 + [0] * 3


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("x", "a number or a table"),
        (True, "a number or a table"),
        ({"linaer": [1, 0]}, "unknown schedule"),
        ({"linear": [1]}, "takes"),
        ({"linear": ["a", 0]}, "takes"),
        ({"linear": [[1], 0]}, "takes"),
        ({"linear": [1, 0], "until": "noon"}, "progress"),
        ({"linear": [10**400, 0]}, "takes"),
        (10**400, "a number or a table"),
        ({"linear": [1, 0], "until": float("nan")}, "progress"),
        ({"linear": [1, 0], "until": 0}, "progress"),
        ({"linear": [1, 0], "switch": [0, 1]}, "one kind"),
        (float("nan"), "finite"),
    ],
)
def test_wrong_schedules_are_refused(value: object, says: str) -> None:
    with pytest.raises(PotstillError, match=says):
        schedule(value)

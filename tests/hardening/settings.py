"""Wrong settings by the thousand: every key of a study file with every value that it may be given.

Each case goes the way of `potstill check --no-preflight`: read, validate, load the problems, plan.
A case is right if it is accepted and its `study.toml` reads back to the same settings, and refused
if it raises a `PotstillError` with a hint. All else is a defect: a traceback, a hang, settings that
come back changed, a value that no setting has and that was accepted.

`python tests/hardening/settings.py` prints the counts, and each defect.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import random
import signal
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import tomli_w

from potstill.algorithms.recipe import Recipe
from potstill.cli.check import plan, powers
from potstill.errors import PotstillError
from potstill.settings import Table
from potstill.study.benchmarks import load_tasks
from potstill.study.loading import read_study
from potstill.study.race import Rules, raced
from potstill.study.run import prepare
from potstill.study.schema import Study
from potstill.study.storage import runs_of
from potstill.tasks import gsm8k
from potstill.tasks.arithmetic import Arithmetic
from potstill.tasks.context import KINDS
from potstill.tasks.data import Data
from potstill.tasks.jsonl import Jsonl
from potstill.types import ModelSpec

SECONDS = 5.0  # of a case; the median is some milliseconds
LONGEST = 1200  # characters of a line of an error; people read it
NAN, INF = float("nan"), float("inf")


def nested(depth: int, table: bool) -> Any:
    """Lists or tables in each other."""
    value: Any = 1
    for _ in range(depth):
        value = {"a": value} if table else [value]
    return value


ANYTHING: tuple[Any, ...] = (  # values that are right for some setting
    *(0, 1, -1, 2, 7, 10**6, 10**9, 10**12, 2**31, 2**32, 2**53 + 1, 2**63 - 1, -(2**63)),
    *(0.0, -0.0, 0.5, 1.0, 3.5, -0.1, 1e-320, 1e-9, 1e12, 1e300, 1.7e308, -1e308),
    *(True, False, None),
    *("", " ", "\t\n", "0", "1", "-1", "1e9", "nan", "inf", "true", "None", "auto", "text"),
    *("9" * 5000, "a" * 73, "a" * 300, "a" * 100_000, "é" * 128, "\x1b[31mred", "a\nb", "a\rb"),
    *("\u202eright to left", "e\u0301", "名前", "😀", "\u200b", "\u2028", "İ", "ﬁ"),
    *("../..", "/", ".", "..", "/dev/null", "/no/such/path", "~no-such-user/x", "a/b", "a/b/c"),
    *("CON", "nul.txt", "a.", "a ", "-", "--help", "teacher", "Untrained", "mirrors", "hybrid"),
    *("https://example.org", "file:///etc/passwd", "{question}", "{0} %s", "<b>", "'", '"', "\\"),
    *([], [1], ["a"], ["a", "a"], [1, "a"], [[]], [True], [0.5, 0.5], list(range(2000)), [{}]),
    *({}, {"a": 1}, {"name": "x"}, {"name": 1}, {"": 1}, {"linear": [1, 0]}, {"jsd": 0.5}),
    *({"a": {"b": [1]}}, {f"k{n}": n for n in range(300)}, {"a.b": 1}, {"é ü": "x"}),
)
NEVER: tuple[Any, ...] = (  # values that no setting has
    *(2**63, -(2**63) - 1, 10**4299, 10**5000, -(10**5000), NAN, INF, -INF, [NAN], {"a": INF}),
    *("\0", "a\0b", "\ud800", ["\udfff"], {"a": "\0"}, {"\0": 1}, {"a\nb": 1}, {"k" * 5000: 1}),
    *(nested(30, True), nested(30, False), nested(5000, True), nested(5000, False)),
    *(datetime.date(2024, 7, 26), datetime.time(1, 2), datetime.datetime(2024, 7, 26, 1, 2)),
    *([10**5000], {"a": 10**5000}, list(range(200_000))),
)
VALUES = (*((value, False) for value in ANYTHING), *((value, True) for value in NEVER))


@dataclass(frozen=True)
class Case:
    """One setting of a study that is right otherwise.

    Args:
        base: a name of `bases`.
        key: dotted, or of the rules of a race.
        value: of the setting.
        form: "table" sets it in the table of a file, "word" by an override with a TOML value,
            "bare" by an override with the text alone.
        never: no setting has this value.
    """

    base: str
    key: str
    value: Any
    form: str
    never: bool

    def __str__(self) -> str:
        try:
            shown = repr(self.value)[:80]
        except (ValueError, RecursionError):
            shown = f"a long {type(self.value).__name__}"
        return f"{self.base}: {self.key} = {shown} ({self.form})"


def bases(folder: Path) -> dict[str, dict[str, Any]]:
    """Studies that are right, by name; their files are in a folder."""
    rows = [{"question": f"q{n}", "answer": f"#### {n}", "note": "x"} for n in range(40)]
    for split, part in (("train", rows[:20]), ("test", rows[20:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{split}.jsonl").write_text(text)
    files = {f"{split}_path": str(folder / f"{split}.jsonl") for split in ("train", "test")}
    small = {
        "seeds": [0, 1, 2],
        "methods": ["hybrid", "off_policy"],
        "train": {"steps": 4, "max_tokens": 48},
        "eval": {"problems": 10, "probe": 4},
        "task": {"name": "arithmetic", "train_size": 40, "test_size": 20},
    }
    own = {"mine": {"student": "tiny-qwen/student", "teacher": "tiny-qwen/teacher"}}
    fake = {**small, "engine": "fake", "pair": own}
    recipe = {"mine": {"from": "hybrid"}}
    service = {
        "engine": {"name": "tinker"},
        "train": {**small["train"], "lora_rank": 8},
        "student_loss": "reverse_kl_sampled",
        "methods": ["on_policy_gkd"],
    }
    return {
        "torch": {**small, "pairs": ["tiny-llama"]},
        "fake": fake,
        "tinker": {**small, **service, "pairs": ["tiny-qwen"]},
        "recipe": {**fake, "recipe": recipe, "methods": ["mine", "hybrid"]},
        "jsonl": {**fake, "task": {"name": "jsonl", **files}},
        "gsm8k": {**fake, "task": {"name": "gsm8k", **files}},
        "data": {**fake, "task": {"name": "data", **files}},
        "race": fake,
    }


def walked(table: type[Table], prefix: str = "") -> Iterator[str]:
    """Dotted keys of a table of the schema, and of the tables in it."""
    for name, field in table.model_fields.items():
        yield f"{prefix}{name}"
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Table):
            yield from walked(inner, f"{prefix}{name}.")
        elif inner is ModelSpec:
            yield from (f"{prefix}{name}.{part}" for part in ModelSpec.__dataclass_fields__)


def keys() -> dict[str, list[str]]:
    """Every key by base: the schema's, and those of the tables that it leaves open."""
    engines = {get_args(one.model_fields["name"].annotation)[0]: one for one in _engines()}
    found = {
        name: [*walked(Study), *walked(engine, "engine."), "unknown", "engine.unknown", "train.x.y"]
        for name, engine in engines.items()
    }
    pair = Study.model_fields["pair"].annotation
    (_, table) = get_args(pair)
    found["fake"] += [f"pair.mine.{key}" for key in table.model_fields]
    found["fake"] += ["pair.new", "pair.mine.teachers.code", "task.name", "pair.mine.unknown"]
    for kind, part in KINDS.items():
        fields = [f".{name}" for name in part.__dataclass_fields__]
        found["fake"] += [f"pair.mine.context.{kind}{name}" for name in ("", *fields)]
    found["fake"] += ["pair.mine.context.hybrid", "pair.mine.context.unknown"]
    own = [*(field.name for field in dataclasses.fields(Recipe)), "from", "replay.capacity"]
    own += ["prefix.linear", "prefix.until", "on_policy.switch", "on_policy.at", "unknown"]
    own += ["student_loss.jsd", "student_loss.topk_reverse_kl", "teacher_loss.topk_jsd"]
    found["recipe"] = [*(f"recipe.mine.{key}" for key in own), "recipe.new", "recipe"]
    found["recipe"] += ["student_loss.jsd", "student_loss.topk_jsd"]
    tasks = {"torch": Arithmetic, "jsonl": Jsonl, "gsm8k": gsm8k.GSM8K, "data": Data}
    for name, task in tasks.items():
        fields = (field.name for field in dataclasses.fields(task))
        own = [*("grade" if field == "grader" else field for field in fields), "unknown"]
        found.setdefault(name, []).extend(f"task.{key}" for key in own)
    found["race"] = [*Rules.model_fields, "unknown"]
    return found


def _engines() -> tuple[type[Table], ...]:
    annotation: Any = Study.model_fields["engine"].annotation
    return get_args(annotation)


def inline(value: Any) -> str | None:
    """A value as TOML on one line; None if TOML has none."""
    if value is None:
        return None
    if isinstance(value, bool | str):
        return json.dumps(value)
    if isinstance(value, list):
        parts = [inline(one) for one in value]
        return None if None in parts else f"[{', '.join(map(str, parts))}]"
    if isinstance(value, dict):
        pairs = [f"{json.dumps(key)} = {inline(one)}" for key, one in value.items()]
        return f"{{{', '.join(pairs)}}}"
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else repr(value)


def text_of(case: Case) -> str | None:
    """The override of a case; None if no text is one."""
    if case.form == "bare":
        return case.value if isinstance(case.value, str) and case.value.strip() else None
    try:
        return inline(case.value)
    except (RecursionError, ValueError):  # deeper or longer than Python writes
        kind, deep = type(case.value), 5000
        return {int: "9" * deep, list: "[" * deep + "]" * deep, dict: '{"a"=' * deep}.get(kind)


def cases() -> list[Case]:
    """All cases, in the order of the schema."""
    return [
        Case(base, key, value, form, never)
        for base, names in keys().items()
        for key in names
        for value, never in VALUES
        for form in ("table", "word", "bare")
        if form == "table" or base != "race"
        if (key, value) != ("task.train_size", 10**6)  # right, and takes a while
        if form != "bare" or isinstance(value, str)
    ]


def with_value(table: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of nested tables with one value set."""
    first, _, rest = key.partition(".")
    if not rest:
        return {**table, first: value}
    inner = table.get(first, {})
    inner = {"name": inner} if isinstance(inner, str) else inner
    return {**table, first: with_value(inner, rest, value)}


class Hang(BaseException):
    """A case took too long. Not an `Exception`, so that nothing that is tested catches it."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `Hang` in the block after so many seconds."""

    def late(number: int, frame: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def checked(case: Case, table: Mapping[str, Any]) -> bool:
    """Read, validate and plan a case as `potstill check` does; False if it comes back changed."""
    if case.base == "race":
        rules = Rules.read({case.key: case.value})
        raced(read_study(table), rules)
        return Rules.read(rules.model_dump()) == rules and all(0 < one < 1 for one in rules.levels)
    if case.form == "table":
        study = read_study(with_value(table, case.key, case.value))
    else:
        study = read_study(table, [f"{case.key}={text_of(case)}"])
    task = prepare(study)
    plan(study, task)
    powers(study, task, None)
    written = tomli_w.dumps(study.to_toml())
    again = read_study(tomllib.loads(written))
    return again.to_toml() == study.to_toml() and runs_of(again) == runs_of(study)


def outcome(case: Case, table: Mapping[str, Any], seconds: float = SECONDS) -> str:
    """The outcome of a case: right, refused, or the defect."""
    try:
        with limited(seconds), mock.patch.object(gsm8k, "_hub", _no_hub):
            same = checked(case, table)
    except PotstillError as error:
        if not error.hint.strip():
            return "refused without a hint"
        lines = f"{error}\n{error.hint}".split("\n")
        if len(lines) > 50 or len(max(lines, key=len)) > LONGEST:
            return "refused at length"
        return "refused" if all(map(str.isprintable, lines)) else "refused with raw characters"
    except Hang:
        return "hang"
    except Exception as error:
        return f"traceback: {type(error).__name__}"
    if not same:
        return "comes back changed"
    return "accepted without a meaning" if case.never else "right"


def _no_hub(split: str) -> Any:
    raise PotstillError("no test reaches the hub", "give files")


def outcomes(
    chosen: Iterable[Case], report: Callable[[Case, str], None] = lambda case, result: None
) -> Counter[str]:
    """Counts of the outcomes of cases.

    Args:
        chosen: of `cases`.
        report: called with each defect.
    """
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        tables = bases(Path(folder))
        chosen = list(chosen)
        if any(case.key == "eval.lm_eval" for case in chosen):
            with contextlib.suppress(PotstillError):
                load_tasks(["none"])  # lm-eval lists its tasks for ten seconds, once
        for case in chosen:
            if case.form != "table" and text_of(case) is None:
                continue
            result = outcome(case, tables[case.base])
            counts[result] += 1
            if result not in ("right", "refused"):
                report(case, result)
    return counts


def sample(size: int, seed: int = 0) -> list[Case]:
    """Some cases, the same for the same seed."""
    return random.Random(seed).sample(cases(), size)


def counts(size: int | None = None) -> Counter[str]:
    """Counts of the outcomes of all cases, or of so many of them."""
    return outcomes(cases() if size is None else sample(size))


def main() -> None:
    chosen = sample(int(sys.argv[1])) if len(sys.argv) > 1 else cases()
    report = partial(print, flush=True)
    found = outcomes(chosen, lambda case, result: report(f"{result}: {case}"))
    print(f"{found.total():,} cases")
    for name, count in found.most_common():
        print(f"{count:7,} {name}")


if __name__ == "__main__":
    main()

"""The report of a half-finished study with made-up numbers: page, tables, charts and files."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import subprocess
import sys
from base64 import b64decode, b64encode
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from potstill.algorithms.methods import METHODS
from potstill.errors import PotstillError
from potstill.report import Report, write_report
from potstill.report.charts import curves
from potstill.report.charts.heat_map import heat_map
from potstill.report.charts.palette import looks
from potstill.report.charts.point_charts import pareto
from potstill.report.completions import marked
from potstill.report.costs import profiles
from potstill.report.data import load
from potstill.report.formatting import visible
from potstill.report.published import COLUMNS, column
from potstill.report.tables.column import INTERVAL
from potstill.report.tables.methods import terminal, to_markdown
from potstill.study.schema import PUBLISHED
from potstill.study.storage import RunId, StudyFolder
from studies import HOSTILE, Fate, small_study, write_study

ROOT = Path(__file__).parents[1]


CSV_COLUMNS = [
    *("pair", "method", "seeds", "failed", "missing"),
    *(f"accuracy{end}" for end in ("", "_low", "_high")),
    *(f"flexible{end}" for end in ("", "_low", "_high")),
    *(f"vs_baseline{end}" for end in ("", "_low", "_high", "_p")),
    *(f"vs_untrained{end}" for end in ("", "_low", "_high", "_p")),
    *("gap_closed", "equal_tokens", "tokens", "seconds"),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Every built-in method and one of the user's, two pairs; cells failed, absent, in work."""
    path = tmp_path_factory.mktemp("studies") / "mixed"
    own = {"from": "teacher_seeded", "prefix": {"linear": [30, 0], "until": 0.8}}
    study = small_study(
        pairs=["tiny-qwen", "tiny-llama"],
        methods=[*METHODS, "seed_long"],
        recipe={"seed_long": own},
        published="distribution-cliff",
    )

    def fate(cell: RunId) -> Fate:
        return {
            ("replay_buffer", 1): {"fail": "not a number at step 3: <b>loss</b>"},
            ("kl_anchored", 0): {"skip": True},
            ("off_policy", 1): {"stop": 7},
            ("mixture", 0): {"text": HOSTILE},
            ("hybrid", 0): {"null": True},
        }.get((cell.method, cell.seed), {})

    write_study(path, study, fate)
    return write_report(path, figures=True)


class Page(HTMLParser):
    """Tags with their attributes, and the texts of scripts and of everything else."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.text, self._inside = "", ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs).get("type"), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)
        elif self._inside != "style":
            self.text += data

    @property
    def specs(self) -> list[dict]:
        return [json.loads(text) for kind, text in self.scripts if kind == "application/json"]

    @property
    def charts(self) -> list[tuple[str, dict]]:
        """Names and specifications of the charts; of several pairs, one after the other."""
        names = [str(a["data-name"]) for tag, a in self.tags if tag == "figure"]
        return list(zip(names, self.specs, strict=True))


@pytest.fixture(scope="module")
def page(written: Report) -> Page:
    return Page(written.html.read_text(encoding="utf-8"))


def test_results_hold_every_cell(written: Report) -> None:
    found = json.loads(written.results.read_text())
    assert found["study"] == "synthetic"
    assert len(found["cells"]) == written.cells == 2 * (2 + 10 * 2)
    by_name = {(c["pair"], c["method"], c["seed"]): c for c in found["cells"]}
    assert len(by_name) == written.cells
    folder = StudyFolder(written.html.parent)
    for (pair, method, seed), record in by_name.items():
        result = folder.cell(RunId(pair, method, seed)).result
        assert record["status"] == (result or {}).get("status", "missing")
        for key in ("accuracy", "flexible", "seconds"):
            assert record[key] == (result or {}).get(key)
        assert record["activity"] == ((result or {}).get("activity") or {})
    failed = by_name["tiny-qwen", "replay_buffer", 1]
    assert failed["cause"].startswith("not a number") and failed["accuracy"] is None
    assert by_name["tiny-qwen", "off_policy", 1]["steps"] == 7
    assert (written.done, written.failed, written.missing) == (44 - 6, 2, 4)


def test_the_profile_is_the_mean_of_the_runs_that_finished(written: Report) -> None:
    data = load(written.html.parent)
    found = {profile.method: profile for profile in profiles(data, "tiny-qwen")}
    done = [r for r in data.of("tiny-qwen", "hybrid") if r.status == "done"]
    steps = sum(run.steps for run in done) / len(done)
    hybrid = found["hybrid"]
    assert list(hybrid.activities) == ["scoring", "forward and backward", "other"]
    assert list(hybrid.activities.values()) == pytest.approx([0.5, 1.0, 0.1 * steps])
    assert sum(map(hybrid.share, hybrid.activities)) == pytest.approx(1.0)
    assert hybrid.seconds == pytest.approx(1.5 + 0.1 * steps)
    assert "Where the time goes" in written.html.read_text()


def test_table_agrees_with_the_outcomes(written: Report) -> None:
    folder = StudyFolder(written.html.parent)
    cells = [RunId("tiny-qwen", "on_policy_gkd", seed) for seed in (0, 1)]
    records = list(folder.results(cells).values())
    ends = [folder.cell(RunId("tiny-qwen", r)).result["accuracy"] for r in ("untrained", "teacher")]
    mean = np.mean([[int(c) for c in r["outcomes"]["strict"]] for r in records])
    table = json.loads(written.results.read_text())["table"]
    row = next(r for r in table if (r["pair"], r["method"]) == ("tiny-qwen", "on_policy_gkd"))
    assert row["accuracy"]["mean"] == pytest.approx(mean)
    assert row["gap_closed"] == pytest.approx((mean - ends[0]) / (ends[1] - ends[0]))
    assert row["against_untrained"]["mean"] == pytest.approx(mean - ends[0])
    assert row["seeds"] == [0, 1] and row["published"] == 0.532
    names = [r["method"] for r in table if r["pair"] == "tiny-llama"]
    assert names == ["untrained", "teacher", *METHODS, "seed_long"]


def test_csv_has_the_columns(written: Report) -> None:
    with written.csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*CSV_COLUMNS, "published"]
    assert len(rows) == 2 * 12
    row = next(r for r in rows if r["method"] == "replay_buffer")
    assert (row["seeds"], row["failed"], row["missing"]) == ("1", "1", "0")
    assert float(row["accuracy_low"]) <= float(row["accuracy"]) <= float(row["accuracy_high"])
    assert rows[0]["method"] == "untrained" and rows[0]["vs_baseline"] == rows[0]["tokens"] == ""


def test_page_asks_the_network_for_nothing(page: Page) -> None:
    loading = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img")
        for name in loading & attributes.keys():
            assert (attributes[name] or "").startswith("#"), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy and policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src" not in policy and "http" not in policy


def test_page_runs_our_scripts_and_no_other(page: Page) -> None:
    code = [text for kind, text in page.scripts if kind is None]
    (packed,) = [text for kind, text in page.scripts if kind == "text/plain"]
    library = gzip.decompress(b64decode(packed)).decode()
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv")) or ""
    assert len(code) == 3 and "vegaEmbed" in library
    assert policy.count("sha256-") == 4
    for text in [*code, library]:
        assert b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy


def test_hostile_text_is_shown_and_harmless(page: Page, written: Report) -> None:
    assert "<script>window.hacked = 1</script>" in page.text
    assert "⟨U+202E⟩gnitrow⟨U+0007⟩⟨U+0000⟩<a href" in page.text
    assert "more characters]" in page.text
    assert "\u202e" not in page.text and "\u0007" not in page.text
    assert "not a number at step 3: <b>loss</b>" in page.text
    assert ("b", {}) in page.tags  # our own bold; a cause's is text
    assert "x" * 5000 not in written.html.read_text()
    assert written.html.stat().st_size < 8e6


def test_page_tells_what_is_missing(page: Page) -> None:
    for text in (
        "2 failed: a failed run has no accuracy",
        "Not finished: 4 of 44 runs",
        "2 seeds: intervals are wide, and nothing is called significant below 3 seeds",
        "tiny-qwen/off_policy/1 step 7 of 20",
        "1 of 2, 1 failed",
        "models of another size, another task (GSM8K), its own code",
    ):
        assert text in " ".join(page.text.split()), text


def values(spec: dict, part: str) -> dict[str, dict]:
    """Records of one part of a chart, by method."""
    return {v["method"]: v for v in spec["data"]["values"] if v["part"] == part}


def test_charts_compile_and_each_record_is_drawn(
    page: Page, capfd: pytest.CaptureFixture[str]
) -> None:
    import vl_convert

    assert page.specs
    for spec in page.specs:
        svg = ElementTree.fromstring(vl_convert.vegalite_to_svg(spec))
        assert len(list(svg.iter("{http://www.w3.org/2000/svg}path"))) > 10
        assert not capfd.readouterr().err  # Vega tells a wrong chart there, and draws on
        tests = " ".join(layer["transform"][0]["filter"] for layer in spec["layer"])
        for part in {value["part"] for value in spec["data"]["values"]}:
            assert f"'{part}'" in tests or "isValid" in tests, part


def test_charts_stand_in_order_and_hold_the_numbers(page: Page) -> None:
    half = page.charts[: len(page.charts) // 2]
    assert [name for name, _ in half] == [
        "accuracy",
        "difference-to-on_policy_gkd",
        "accuracy-by-tokens",
        "accuracy-by-seconds",
        "hand-over-score",
        "hand-over-kl-divergence",
        "seed-tokens",
        "seeding-effect",
        "eval-accuracy",
        "train-score",
        "train-phase",
        "train-kl-divergence",
        "train-loss",
        "solved",
    ]
    drawn = dict(half)
    accuracy = drawn["eval-accuracy"]
    lines = [v for v in accuracy["data"]["values"] if v["part"] in ("mean", "seed")]
    assert {v["y"][0] for v in lines} == {values(accuracy, "level")["untrained"]["y"][0]}
    marks = {method: v["x"] for method, v in values(accuracy, "hand-over").items()}
    assert marks == {"hybrid": [50.0], "reverse_curriculum": [70.0]}
    assert set(values(drawn["seed-tokens"], "mean")) == {"teacher_seeded", "seed_long"}
    assert set(values(drawn["seed-tokens"], "plan")) == {"teacher_seeded", "seed_long"}
    compared = {"teacher_seeded", "seed_long", "on_policy_gkd"}
    assert set(values(drawn["seeding-effect"], "mean")) == compared


def test_hand_overs_are_at_step_0(page: Page) -> None:
    """20 steps: hybrid hands over after 10, reverse_curriculum after 14; probes every fifth."""
    cliff = dict(page.charts)["hand-over-score"]
    means = values(cliff, "mean")
    assert means["hybrid"]["x"] == [-5, 0, 5, 10]
    assert means["reverse_curriculum"]["x"] == [-9, -4, 1, 6]
    assert [v["x"] for v in values(cliff, "hand-over").values()] == [[0]]
    thin = [v for v in cliff["data"]["values"] if v["part"] == "seed" and v["method"] == "hybrid"]
    assert [v["seed"] for v in thin] == [0, 1]


def test_the_heat_map_is_the_outcomes(written: Report, page: Page) -> None:
    spec = dict(page.charts[: len(page.charts) // 2])["solved"]
    row = values(spec, "solved")["hybrid"]
    records = [
        StudyFolder(written.html.parent).cell(RunId("tiny-qwen", "hybrid", seed)).result
        for seed in (0, 1)
    ]
    shown = dict(zip(row["problem"], row["y"], strict=True))
    for problem in range(40):
        share = np.mean([int(r["outcomes"]["strict"][problem]) for r in records])
        assert shown[problem + 1] == share
    assert row["x"] == list(range(40))
    assert spec["usermeta"] == {"x": "problem", "y": "share of seeds"}  # titles of the page's CSV


@pytest.mark.parametrize(
    ("points", "best"),
    [
        ({}, []),
        ({"a": (1.0, 0.5)}, ["a"]),
        ({"a": (1.0, 0.5), "b": (1.0, 0.6)}, ["b"]),
        ({"a": (1.0, 0.5), "b": (2.0, 0.5)}, ["a"]),
        ({"a": (3.0, 0.9), "b": (2.0, 0.5), "c": (1.0, 0.7)}, ["c", "a"]),
    ],
)
def test_pareto(points: dict[str, tuple[float, float]], best: list[str]) -> None:
    assert pareto(points) == best


def test_more_problems_than_columns_share_them() -> None:
    share = {"hybrid": np.r_[np.ones(1500), np.zeros(1500)]}
    (row,) = heat_map(share)["data"]["values"]
    assert len(row["y"]) == len(row["x"]) == 1000
    assert row["y"][0] == 1.0 and row["y"][-1] == 0.0


def test_a_mean_needs_all_its_seeds(written: Report) -> None:
    data = load(written.html.parent)
    loss = next(m for m in curves.METRICS if m.key == "train/loss")
    found = {c.method: c for c in curves.curves_of(data, "tiny-qwen", loss)}
    assert list(found["hybrid"].seeds) == [1]  # seed 0 has null losses
    assert "kl_anchored" in found and len(found["off_policy"].mean) == 20
    assert found["extended_on_policy"].progress(found["extended_on_policy"].mean)[-1] == 100.0
    one, two = found["mixture"].seeds.values()
    assert found["mixture"].mean[1] == pytest.approx((one[1] + two[1]) / 2, rel=1e-3)


def test_very_long_runs_are_read_thinned_and_keep_their_gradings(tmp_path: Path) -> None:
    steps = 100_000
    train = {"steps": steps, "max_tokens": 32}
    many = {"every": 10_000, "problems": 40, "probe_every": 500}
    study = small_study(methods=["hybrid"], seeds=[0], train=train, eval=many)
    write_study(tmp_path, study, lambda cell: {"skip": True})
    place = StudyFolder(tmp_path).cell(RunId("tiny-qwen", "hybrid", 0)).path
    place.mkdir(parents=True)
    with (place / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            row = {"step": step, "train/loss": 1 / step, "tokens": step}
            if step % 500 == 0:
                row["train/score"] = 0.5
            if step % 10_000 == 0:
                row["eval/accuracy"] = 0.25
            file.write(json.dumps(row) + "\n")
    (run,) = load(tmp_path).of("tiny-qwen", "hybrid")
    assert len(run.metrics) < 2000 and run.steps == steps
    assert sum("eval/accuracy" in row for row in run.metrics) == 10
    assert sum("train/score" in row for row in run.metrics) == 200
    assert write_report(tmp_path).html.stat().st_size < 4e6


def test_a_torn_last_line_is_left_and_a_damaged_one_refused(tmp_path: Path) -> None:
    write_study(tmp_path, small_study(methods=["hybrid"], seeds=[0]))
    run = StudyFolder(tmp_path).cell(RunId("tiny-qwen", "hybrid", 0))
    (run.path / "result.json").unlink()
    path = run.path / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step": 21, "train')
    assert load(tmp_path).of("tiny-qwen", "hybrid")[0].metrics[-1]["step"] == 20
    path.write_text(whole.replace('{"step": 5,', '{"step": 5 5,'))
    with pytest.raises(PotstillError, match="is damaged"):
        load(tmp_path)


def test_long_runs_are_thinned() -> None:
    line = curves._thin({step: float(step) for step in range(1, 1001)})
    assert len(line) <= curves.POINTS + 1 and list(line)[-1] == 1000


def test_figures_are_written(written: Report) -> None:
    names = {path.stem for path in written.figures if path.stem.startswith("tiny-qwen-")}
    charts = {name for name, _ in Page(written.html.read_text(encoding="utf-8")).charts}
    assert names == {f"tiny-qwen-{name}" for name in charts} and "tiny-qwen-solved" in names
    assert len(written.figures) == 2 * 3 * len(names)
    for path in written.figures:
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
        else:
            assert path.read_bytes().startswith({".png": b"\x89PNG", ".pdf": b"%PDF"}[path.suffix])


def test_text_and_markdown_tables(written: Report) -> None:
    assert (written.done, written.cells, written.failed, written.missing) == (38, 44, 2, 4)
    table = terminal([row for row in written.rows if row.pair == "tiny-llama"])
    assert "hybrid" in [row["method"] for row in table] and len({*map(tuple, table)}) == 1
    assert all(row["accuracy %"] for row in table if row["method"] in ("untrained", "teacher"))
    markdown = to_markdown(written.rows)
    assert markdown.count("| `seed_long` |") == 1 and markdown.splitlines()[0].count("gain") == 2
    assert len({line.count("|") for line in markdown.splitlines()}) == 1
    json.dumps(written.to_json(), allow_nan=False)


def test_a_terminal_shows_counts_of_failures_and_no_causes(written: Report) -> None:
    rows = {row.method: row for row in written.rows if row.pair == "tiny-qwen"}
    (shown,) = terminal([rows["replay_buffer"]])
    accuracy = rows["replay_buffer"].level
    assert shown["seeds done"] == "1 of 2, 1 failed"
    assert accuracy and shown["accuracy %"] == INTERVAL.write(accuracy)


def test_every_method_looks_different() -> None:
    known = [*METHODS, *(f"own{i}" for i in range(12))]
    assert len(set(looks(known).values())) == len(known)


def test_published_columns_cover_the_methods() -> None:
    for family, found in COLUMNS.items():
        assert set(found.accuracy) == set(METHODS) - {"off_policy"}, family
    pair = {"student": "x", "teacher": "y"}
    pairs = {"mine": pair, "My-Llama": pair}
    known = {"pair": pairs, "pairs": list(pairs), "train": {"learning_rate": 1e-3}}
    study = small_study(**known, published=PUBLISHED[0])
    assert column(study, "mine") is None
    assert column(study, "My-Llama") is COLUMNS["llama"]
    assert column(small_study(**known), "My-Llama") is None  # it did not ask


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext", "plain\n\ttext"),
        ("a\x00b\x1b[31m", "a⟨U+0000⟩b⟨U+001B⟩[31m"),
        ("\ud800", "⟨U+D800⟩"),
        ("é 漢 😀", "é 漢 😀"),
        ("abcdef", "abcd … [2 more characters]"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text, 4 if text == "abcdef" else 100) == shown


@pytest.mark.parametrize(
    ("text", "target", "pieces"),
    [
        ("1+1=2", "1+1=2", [("same", "1+1=2")]),
        ("", "1+1=2", [("same", "")]),
        ("x y", "x", [("same", "x"), ("ins", " y")]),
        ("x", "x y", [("same", "x"), ("del", " y")]),
        ("a b c d", "1 2 3 4 5 6 7 8 9 10 11 12", [("ins", "a b c d")]),
    ],
    ids=["equal", "empty", "longer", "shorter", "another text"],
)
def test_marked(text: str, target: str, pieces: list[tuple[str, str]]) -> None:
    assert marked(text, target) == pieces


def test_completions_are_shown_by_step_and_method(written: Report) -> None:
    html = written.html.read_text()
    texts = html[html.index('<table class="texts">') :]
    mine = texts[texts.index('data-method="hybrid"') :]
    mine = mine[: mine.index("</tr>")]
    assert mine.count("<pre") == 2 and "step 10" in mine and "step 20" in mine


def test_a_report_needs_no_engine(written: Report) -> None:
    code = (
        "import sys; from pathlib import Path; import potstill.report as r;"
        "early = {'scipy', 'vl_convert', 'jinja2'} & set(sys.modules);"
        f"r.write_report(Path({str(written.html.parent)!r}));"
        "late = {'torch', 'transformers', 'potstill.training.loop',"
        " 'potstill.study.run', 'potstill.engines.torch.engine',"
        " 'potstill.engines.fake'} & set(sys.modules);"
        "print(early | late)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"

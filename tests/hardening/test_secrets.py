"""Secrets of URLs: what is cut, that no file, message or name has one, and hostile listings."""

from __future__ import annotations

import base64
import copy
import http.server
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import tomli_w
from fsspec.implementations.memory import MemoryFileSystem

from conftest import toy_table
from potstill import urls
from potstill.diagnostics.preflight import unrunnable
from potstill.engines.tinker.conformance import _first_line
from potstill.engines.tinker.connection import connect, without_user
from potstill.errors import PotstillError, StorageError, shown
from potstill.study import run as study_run
from potstill.study.loading import load_study, read_study
from potstill.study.remote import Mirror, Remote, source
from potstill.study.remote.mirror import folder_name
from potstill.study.storage import RunId, StudyFolder
from potstill.study.tracking.follower import Follower
from potstill.urls import CUT, Url, as_urls, cut, whole, without_secrets
from test_cli import call

PASSWORD = "hunter2-Zq9"  # in every URL of this module
LOADED = f"http://user:{PASSWORD}@host:8000/x?token={PASSWORD}#{PASSWORD}"


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test knows the secrets of another one."""
    monkeypatch.setattr(urls, "_secrets", frozenset())


@pytest.mark.parametrize(
    ("url", "left"),
    [
        ("http://user:pw@host/x", "http://...@host/x"),
        ("http://key@host/x", "http://...@host/x"),
        ("http://user:p@ss@host/x", "http://...@host/x"),
        ("http://user:p/s@host/x", "http://...@host/x"),
        ("http://user:p?s#@host/x", "http://...@host/x"),
        ("s3://KEY:SEC/RET+=@bucket/x", "s3://...@bucket/x"),
        ("simplecache::s3://K:S@b/x", "simplecache::s3://...@b/x"),
        ("https://h/x?X-Amz-Signature=ab&part=1", "https://h/x?X-Amz-Signature=...&part=1"),
        ("https://h/x?X-Amz-Credential=A%2F1&a=b", "https://h/x?X-Amz-Credential=...&a=b"),
        ("az://c/x?sv=2020-08-04&sig=a%3D;b=1", "az://c/x?sv=2020-08-04&sig=...;b=1"),
        ("https://h/?api_key=1&access_token=2", "https://h/?api_key=...&access_token=..."),
        ("https://h/?q=3f9a0bc17de2446a8f", "https://h/?q=..."),
        ("https://h/?3f9a0bc17de2446a8f", "https://h/?..."),
        ("https://h/x#access", "https://h/x#..."),
        ("s3://bucket/model@v1/x", "s3://bucket/model@v1/x"),
        ("http://[::1]:8000/a@b?design=1", "http://[::1]:8000/a@b?design=1"),
        ("hf://datasets/org/name@main", "hf://datasets/org/name@main"),
        ("file:///shared/my study", "file:///shared/my study"),
        ("not a URL @ all", "not a URL @ all"),
        ("", ""),
    ],
)
def test_secrets_are_cut_once_and_for_all(url: str, left: str) -> None:
    assert cut(url) == left == cut(left)
    made = Url(url)
    assert made == left and made.full == url
    assert made.incomplete is False and Url(left).incomplete is (left != url)


def test_a_url_is_cut_wherever_it_is_written_and_whole_where_it_is_used() -> None:
    url = Url(LOADED)
    texts = [str(url), repr(url), f"{url}", "%s" % url, json.dumps([url]), url + "/y"]  # noqa: UP031
    texts += [tomli_w.dumps({"url": url}), url.strip(), "".join(url.partition("@"))]
    assert not [text for text in texts if PASSWORD in text]
    for twin in (pickle.loads(pickle.dumps(url)), copy.deepcopy(url), Url(url)):
        assert twin == url and twin.full == LOADED
    assert Url("s3://K:S@b/x/").below("y").full == "s3://K:S@b/x/y"
    table = as_urls({"a": [LOADED, "http://host", 3], "b": {"c": LOADED}, "d": f"see {LOADED}"})
    assert table == {
        "a": [cut(LOADED), "http://host", 3],
        "b": {"c": cut(LOADED)},
        "d": f"see {LOADED}",
    }
    assert whole(table)["b"] == {"c": LOADED}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"no answer (http://u:{PASSWORD}@h).", "no answer (http://...@h)."),
        (f"url: /x?a=1&sig={PASSWORD} failed", "url: /x?a=1&sig=... failed"),
        (f"{{'Authorization': 'Basic {PASSWORD}'}}", "{'Authorization': 'Basic ...'}"),
        ("see https://h/page?lang=en, then go", "see https://h/page?lang=en, then go"),
        ("the key is a=b & c: 3 @ x", "the key is a=b & c: 3 @ x"),
    ],
)
def test_secrets_are_cut_out_of_messages(text: str, left: str) -> None:
    assert without_secrets(text) == left == without_secrets(left)


def test_a_secret_that_was_met_is_cut_out_without_its_url(monkeypatch: Any) -> None:
    quoted = base64.b64encode(f"me:{PASSWORD}/".encode()).decode()
    text = f"bad bucket me:{PASSWORD}/, {PASSWORD}%2F, {quoted}"
    assert PASSWORD in without_secrets(text)
    Url(f"s3://me:{PASSWORD}%2F@bucket")
    left = without_secrets(text)
    assert PASSWORD not in left and quoted not in left
    Url("s3://me:test@bucket")
    assert without_secrets("test the latest test") == "... the latest ..."
    Url("s3://me:1234@bucket")
    assert without_secrets("step 1234 of me:1234@bucket") == "step 1234 of ...@bucket"
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-alarm")
    monkeypatch.setenv("SOME_TOKEN", "a-token-of-mine")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:proxy-word@host")
    assert without_secrets("false-alarm a-token-of-mine proxy-word") == "false-alarm ... ..."


def test_cutting_takes_time_in_proportion_to_the_text() -> None:
    for text in ("a" * 10**6, "://" * 10**5, "?key" * 10**5, "&" + "key" * 10**5):
        assert len(without_secrets(text)) <= len(text)


def test_an_error_has_no_secret_and_no_long_value() -> None:
    error = PotstillError(f'bad "{LOADED}"', f"try {LOADED}")
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert PASSWORD not in str(one) + one.hint and "host:8000/x" in str(one)
    long = PotstillError("x is short, got " + "a" * 10**7, "h" * 10**6)
    assert len(str(long)) < 5_000 and str(long).startswith("x is short, got a")
    assert "characters left out" in str(long) and len(long.hint) < 5_000
    assert str(pickle.loads(pickle.dumps(long))) == str(long)
    assert shown("half \ud800") == "half \\ud800"


# A study.


def remote_table(folder: Path, url: str = LOADED, **changes: object) -> dict[str, Any]:
    engine = {"name": "tinker", "base_url": url, "teacher_url": url}
    table = toy_table(folder, methods=["off_policy"], seeds=[0], engine="", **changes)
    return {**table, "engine": engine, "train": {**table["train"], "lora_rank": 8}}


def test_a_study_is_the_same_with_and_without_its_secrets(tmp_path: Path) -> None:
    study = read_study(remote_table(tmp_path))
    assert study.engine.base_url.full == LOADED  # type: ignore[union-attr]
    assert PASSWORD not in repr(study) + study.model_dump_json() + json.dumps(study.to_toml())
    worker = read_study(pickle.loads(pickle.dumps(study.to_toml())))
    assert worker.engine.base_url.full == LOADED  # type: ignore[union-attr]
    assert worker.engine.changed({"in_flight": 1}).base_url.full == LOADED  # type: ignore
    folder = StudyFolder(tmp_path / "out")
    folder.open(study)
    file = folder.path / "study.toml"
    assert PASSWORD not in file.read_text()
    folder.open(study)
    folder.check(read_study(remote_table(tmp_path, LOADED.replace(PASSWORD, "new-one"))))
    with pytest.raises(PotstillError, match="other settings") as refused:
        folder.check(read_study(remote_table(tmp_path, LOADED.replace("host", "other"))))
    assert PASSWORD not in str(refused.value)
    file.write_text(file.read_text().replace(cut(LOADED), LOADED))  # as older versions wrote it
    folder.open(study)
    assert PASSWORD not in file.read_text()


def test_a_folders_settings_do_not_run_without_their_secrets(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "out")
    folder.open(read_study(remote_table(tmp_path)))
    with pytest.raises(PotstillError, match="without its secrets") as refused:
        load_study(folder.path / "study.toml")
    assert "engine.base_url=URL" in refused.value.hint
    words = [f"engine.base_url={LOADED}", f"engine.teacher_url={LOADED}"]
    folder.check(load_study(folder.path / "study.toml", words))
    assert folder.study.engine.base_url == cut(LOADED)  # type: ignore[union-attr]


def test_keys_for_ray_are_shown_in_no_message(tmp_path: Path) -> None:
    variables = {"MY_TOKEN": PASSWORD, "LANG": "everywhere", "N_KEY": 3}
    table = toy_table(tmp_path, ray={"runtime_env": {"env_vars": variables}, "cpu": 1})
    with pytest.raises(PotstillError, match=r'"ray\.cpu"'):
        read_study(table)
    error = PotstillError(f"Ray cannot set up {variables}")
    assert PASSWORD not in str(error) and "everywhere" in str(error)
    read_study(toy_table(tmp_path, ray={"runtime_env": {"env_vars": {"A_KEY": "x" * 9}}}))
    for wrong in ({"runtime_env": [1]}, {"runtime_env": {"env_vars": [1]}}, 3):
        with pytest.raises(PotstillError, match="seeds"):
            read_study(toy_table(tmp_path, ray=wrong, seeds=[-1]))


@pytest.mark.parametrize("key", ["base_url", "base_urll"])
def test_a_wrong_table_is_shown_without_secrets(tmp_path: Path, key: str) -> None:
    table = remote_table(tmp_path)
    table["engine"] = [{"name": "tinker", key: f"http://me:it's {PASSWORD}@host"}]
    with pytest.raises(PotstillError) as refused:
        read_study(table)
    assert PASSWORD not in str(refused.value)


def test_user_info_is_a_header_and_never_a_part_of_a_message() -> None:
    header = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
    address = f"http://host:8000/x?token={PASSWORD}#{PASSWORD}"
    assert without_user(LOADED) == (address, {"Authorization": f"Basic {header}"})
    assert without_user("http://host") == ("http://host", {})
    for url in (f"http://user:{PASSWORD}@127.0.0.1:9", f"http://user:{PASSWORD}@[::", LOADED[7:]):
        with pytest.raises(PotstillError) as refused:
            connect(url)
        assert url.startswith("user") or PASSWORD not in str(refused.value)


def test_a_server_gets_user_info_from_the_sdk_too(gate: int, monkeypatch: Any) -> None:
    import tinker

    monkeypatch.setattr("potstill.engines.tinker.connection._check_reachable", lambda *_: None)
    monkeypatch.setattr(tinker, "ServiceClient", lambda **options: options)
    options = connect(f"http://user:{PASSWORD}@127.0.0.1:{gate}")
    header = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
    assert options["default_headers"] == {"Authorization": f"Basic {header}"}
    assert options["base_url"] == f"http://127.0.0.1:{gate}"
    assert "default_headers" not in connect(f"http://127.0.0.1:{gate}")


def test_messages_of_libraries_are_cut_before_they_are_kept(caplog: Any) -> None:
    error = OSError(f"no route to {LOADED}")
    check = unrunnable("models", error)
    assert check.evidence.endswith(f"no route to {cut(LOADED)}")
    assert _first_line(error) == f"no route to {cut(LOADED)}"


def test_a_failed_runs_record_has_no_secret(tmp_path: Path, monkeypatch: Any) -> None:
    def broken(*_: object) -> None:
        raise OSError(f"no route to {LOADED}\ud800" + "x" * 10**6)

    monkeypatch.setattr(study_run, "open_study_engine", broken)
    folder = StudyFolder(tmp_path / "out")
    study = read_study(toy_table(tmp_path))
    result = study_run.run_cell(study, folder, RunId("toy", "teacher"))
    text = (folder.path / "cells/toy/teacher/all/result.json").read_text()
    assert result["status"] == "failed" and "no route to http://...@host:8000" in text
    assert PASSWORD not in text and len(text) < 10_000


def test_trackers_get_no_secret_and_write_none(tmp_path: Path, monkeypatch: Any) -> None:
    study = read_study(remote_table(tmp_path))
    folder = StudyFolder(tmp_path / "out")
    folder.open(study)
    follower = Follower(folder.study, folder, "wandb")
    info = follower._info(RunId("toy", "off_policy", 0), follower.note(RunId("toy", "off_policy")))
    assert PASSWORD not in repr(info) and "host:8000" in repr(info)
    code = (
        "import os, subprocess, sys\n"
        "from potstill.study.tracking.log import without_secrets_in_log\n"
        "with without_secrets_in_log():\n"
        "    print('one', os.environ['PLACE'])\n"
        "    os.write(2, f\"two {os.environ['PLACE']}\\n\".encode())\n"
        "    subprocess.run(['sh', '-c', 'echo three $PLACE'])\n"
        "    raise OSError(f\"four {os.environ['PLACE']}\")\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PLACE": LOADED},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and PASSWORD not in done.stdout + done.stderr
    for word in ("one", "two", "three", "OSError: four"):
        assert f"{word} {cut(LOADED)}" in done.stdout


class Gatekeeper(http.server.BaseHTTPRequestHandler):
    """A server that lets nobody in, and remembers what it received."""

    requests: ClassVar[list[tuple[str, str]]] = []

    def do_GET(self) -> None:
        self.requests.append((self.path, self.headers.get("Authorization", "")))
        self.send_error(503, f"go away from {LOADED}")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def gate() -> Iterator[int]:
    """The port of a `Gatekeeper`."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gatekeeper) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def words_of_processes(group: int) -> str:
    """The arguments of all processes of a group, as `ps` shows them."""
    words = ""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(place.name)) == group:
                words += place.joinpath("cmdline").read_text(errors="replace")
        except OSError:  # it has ended
            continue
    return words


def leaks(folder: Path) -> list[str]:
    """Files below a folder that have the password, in their bytes or their names."""
    return [
        str(path)
        for path in folder.rglob("*")
        if PASSWORD in path.name or (path.is_file() and PASSWORD.encode() in path.read_bytes())
    ]


def test_a_study_has_its_servers_secrets_nowhere(
    tmp_path: Path, gate: int, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """Everything that a study prints and writes, and the arguments of its processes."""
    url = LOADED.replace("host:8000", f"127.0.0.1:{gate}")
    table = remote_table(tmp_path, url, pair={"toy": {"student": "tiny-qwen/student"}})
    table["pair"]["toy"]["teacher"] = "tiny-qwen/teacher"
    (tmp_path / "mine.toml").write_text(tomli_w.dumps(table))
    home = tmp_path / "home"
    home.mkdir()
    words = ["--verbose", "study", str(tmp_path / "mine.toml"), "--no-preflight", "--no-figures"]
    process = subprocess.Popen(
        [sys.executable, "-m", "potstill", *words, "--workers", "1"],
        cwd=home,
        env={**os.environ, "HOME": str(home), "POTSTILL_CACHE": str(home / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    arguments = ""
    while process.poll() is None:
        arguments += words_of_processes(process.pid)
        time.sleep(0.2)
    out, err = process.communicate()
    assert process.returncode == 1, err
    assert f"http://...@127.0.0.1:{gate}/x?token=...#... does not answer" in err
    folder = home / "runs" / "toy"
    assert (folder / "report.html").exists() and (folder / "results.json").exists()
    key = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
    path = f"/x?token={PASSWORD}"
    assert Gatekeeper.requests and {word for _, word in Gatekeeper.requests} == {f"Basic {key}"}
    assert all(request.startswith(path) for request, _ in Gatekeeper.requests)
    assert "multiprocessing" in arguments or not Path("/proc").exists()
    monkeypatch.chdir(home)
    for more in (["report", folder], ["watch", folder, "--once"], ["report", folder, "--json"]):
        assert call(*more) == 0
    again = capsys.readouterr()
    for text in (out, err, arguments, again.out, again.err):
        assert PASSWORD not in text and key not in text
    assert not leaks(home)


# A bucket.


class Vault(MemoryFileSystem):
    """A bucket that needs a key, in memory."""

    protocol = "vault"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    names: ClassVar[list[str]] = []  # of files in listings that it does not have

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        place = path.split("://", 1)[-1].rpartition("@")[2].strip("/")
        return f"/{place}" if place else ""

    def find(self, path: str, *args: Any, **kwargs: Any) -> Any:
        found = super().find(path, *args, **kwargs)
        return found | {f"/bucket/study/{name}": {"size": 1} for name in self.names}


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URL of a study in a bucket, with a key."""
    fsspec.register_implementation("vault", Vault, clobber=True)
    monkeypatch.setattr(Vault, "store", {})
    monkeypatch.setattr(Vault, "pseudo_dirs", [""])
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    return f"vault://KEY:{PASSWORD}@bucket/study"


def test_a_buckets_key_is_in_no_name_and_no_message(
    vault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    mirror = Mirror(vault)
    assert mirror.remote.url.full == vault
    assert PASSWORD not in str(mirror.path) and "bucket-study" in str(mirror.path)
    assert folder_name(vault) == folder_name(Url(vault)) == folder_name(cut(vault))
    study = read_study(toy_table(tmp_path))
    StudyFolder(mirror.path).open(study)
    mirror.open()
    assert source(vault + "/cells/toy/hybrid/0")[1] == mirror.path / "cells/toy/hybrid/0"
    assert call("report", vault) == 0 and call("diagnose", vault) == 2
    assert call("study", tmp_path / "none.toml", "--out", vault) == 2
    assert call("study", "--no-preflight", "--out", vault) == 2
    assert call("watch", vault.replace("study", "other"), "--once") == 2
    assert call("report", cut(vault)) == 2
    monkeypatch.setattr(Vault, "cat_file", lambda *_: 1 / 0 if _ else vault)
    assert call("report", vault) == 2
    out, err = capsys.readouterr()
    assert 'is "vault://...@bucket/study"' in err and '"vault://...@bucket/other" holds' in err
    assert "is without its secrets" in err and "ZeroDivisionError" in err
    assert PASSWORD not in out + err and not leaks(tmp_path)


def test_words_of_the_command_line_are_known_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    """Also where a message quotes one with a character that ends a URL in a text."""
    assert call("watch", "none", f"s3://KEY:it's-{PASSWORD}@bucket") == 2  # one word too many
    err = capsys.readouterr().err
    assert "argument" in err and PASSWORD not in err


def test_errors_of_a_bucket_are_shown_without_its_key(vault: str, monkeypatch: Any) -> None:
    def denied(self: Any, path: str, *_: Any, **__: Any) -> None:
        raise RuntimeError(f"bad bucket name KEY:{PASSWORD}@bucket in GET /?X-Amz-Signature=1a")

    monkeypatch.setattr(Vault, "pipe_file", denied)
    with pytest.raises(StorageError) as refused:
        Remote(vault).check()
    assert PASSWORD not in str(refused.value) and f"GET /?X-Amz-Signature={CUT}" in str(
        refused.value
    )


@pytest.mark.parametrize(
    "name",
    [
        "../../../x/result.json",
        "cells/../../../result.json",
        "/etc/result.json",
        "cells//result.json",
        "cells/./result.json",
        "..",
        "%2e%2e/%2E%2E/result.json",
        "..\\..\\result.json",
        "cells/a\0b/result.json",
        "study.toml/result.json",
    ],
)
def test_a_name_that_leads_out_of_the_mirror_is_rejected(
    vault: str, name: str, tmp_path: Path, monkeypatch: Any
) -> None:
    mirror = Mirror(vault)
    mirror.remote.write("study.toml", b"")
    mirror.pull()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(Vault, "names", [name])
    with pytest.raises(PotstillError, match="has a file named") as refused:
        mirror.pull()
    assert repr(name) in str(refused.value) and refused.value.hint
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_in_the_mirror_is_not_followed(vault: str, tmp_path: Path) -> None:
    mirror = Mirror(vault)
    mirror.remote.write("study.toml", b"1")
    mirror.remote.write("cells/toy/hybrid/0/result.json", b"{}")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "result.json").write_text("mine")
    mirror.path.mkdir(parents=True)
    (mirror.path / "cells").symlink_to(outside)
    with pytest.raises(PotstillError, match="leads out of"):
        mirror.pull()
    assert [path.name for path in outside.rglob("*")] == ["result.json"]
    (mirror.path / "cells").unlink()
    (mirror.path / "cells").mkdir()
    (mirror.path / "cells" / "gone").symlink_to(outside)  # not in the bucket: cleared, not followed
    (mirror.path / "cells/toy/hybrid/0").mkdir(parents=True)
    (mirror.path / "cells/toy/hybrid/0/result.json").symlink_to(outside / "result.json")
    mirror.pull()
    assert (outside / "result.json").read_text() == "mine"
    assert (mirror.path / "cells/toy/hybrid/0/result.json").read_bytes() == b"{}"


@pytest.mark.parametrize("text", ["[1]", "{", '{"driver": "a"}', "\ufffe"])
def test_a_damaged_lease_is_an_error_by_name(vault: str, text: str) -> None:
    mirror = Mirror(vault)
    mirror.remote.write("cells/toy/hybrid/0/.running", text.encode("utf-16"))
    mirror.pull()
    with pytest.raises(PotstillError, match=r"toy/hybrid/0/\.running. is damaged"):
        mirror.lease("toy/hybrid/0")
    assert mirror.lease("toy/hybrid/1") == {}

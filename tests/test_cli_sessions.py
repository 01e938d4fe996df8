"""`actorbot sessions`: list, show, destroy, export and copy, over every store that a URL names."""

from __future__ import annotations

import json
import stat
import time
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

import pytest

from actorbot import store_from_url
from actorbot.stores import RecordStore, Write
from actorbot.testing._asking import make_record, make_tombstone, write_all
from tests import mongo_server, servers
from tests.test_cli import run, run_apart


def in_files(folder: Path) -> str:
    return f"file://{folder / 'sessions'}"


def in_redis(folder: Path) -> str:
    prefix = sha256(bytes(folder)).hexdigest()[:16]
    return f"{servers.shared('new redis').url}?key_prefix={prefix}:"


def in_mongo(folder: Path) -> str:
    name = sha256(bytes(folder)).hexdigest()[:16]
    return f"{mongo_server.shared().url}?collection_name={name}"


@pytest.fixture(params=[in_files, in_redis, in_mongo], ids=["file", "redis", "mongo"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store with two sessions that are alive, one that has expired and one that was destroyed."""
    made: str = request.param(tmp_path)
    store: RecordStore = store_from_url(made).init()
    records = [
        make_record("telegram:42", {"nickname": "Tim", "paid": True}, expires_at=time.time() + 3 * 86_400 + 60),
        make_record("telegram:43", {"nickname": "Ann"}),
        make_record("old:1", {"nickname": "Old"}, expires_at=time.time() - 60),
        make_tombstone("gone:1"),
    ]
    write_all(store, [Write(record, None) for record in records])
    store.close()
    return made


def test_ls_lists_what_is_alive_and_says_when_it_ends(url: str) -> None:
    done = run("sessions", "ls", url)

    heading, *lines = sorted(done.stdout.splitlines())
    assert done.exit_code == 0
    assert heading.split()[:2] == ["SESSION", "BYTES"]
    assert [line.split()[0] for line in lines] == ["telegram:42", "telegram:43"]
    assert "(in 3 days)" in lines[0]


def test_ls_gives_a_json_object_per_line_and_all_if_asked(url: str) -> None:
    done = run("sessions", "ls", url, "--json", "--all")

    found = {each["session_id"]: each for each in map(json.loads, done.stdout.splitlines())}
    assert {session_id: each["status"] for session_id, each in found.items()} == {
        "telegram:42": "alive", "telegram:43": "alive", "old:1": "expired", "gone:1": "destroyed",
    }  # fmt: skip
    assert found["telegram:43"]["version"] == 1


def test_ls_can_be_narrowed(url: str) -> None:
    assert len(run("sessions", "ls", url, "--limit", "1").stdout.splitlines()) == 2
    assert "telegram:42" not in run("sessions", "ls", url, "--prefix", "telegram:43").stdout


def test_show_shows_values_and_times(url: str) -> None:
    done = run("sessions", "show", url, "telegram:42")

    assert done.exit_code == 0
    assert "'nickname': 'Tim'" in done.stdout
    assert "in 3 days" in done.stdout
    document = json.loads(run("sessions", "show", url, "telegram:42", "--json").stdout)
    assert (document["nickname"], document["$actorbot"]["version"]) == ("Tim", 1)


@pytest.mark.parametrize("session_id", ["nobody", "gone:1"])
def test_show_says_that_there_is_none(url: str, session_id: str) -> None:
    done = run("sessions", "show", url, session_id)

    assert (done.exit_code, done.stdout) == (1, "")
    assert f"there is no session '{session_id}'" in done.stderr


def test_rm_destroys_and_says_what_was_there(url: str) -> None:
    done = run("sessions", "rm", url, "telegram:42", "nobody", "--yes")

    assert done.exit_code == 0
    assert "telegram:42: destroyed (version 1" in done.stdout
    assert "nobody: was not there" in done.stdout
    assert run("sessions", "show", url, "telegram:42").exit_code == 1
    assert run("sessions", "show", url, "telegram:43").exit_code == 0


def test_rm_asks_before_it_destroys_and_refuses_where_nobody_can_answer(url: str) -> None:
    done = run_apart("sessions", "rm", url, "telegram:42")

    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert run("sessions", "show", url, "telegram:42").exit_code == 0


def test_export_gives_what_is_alive_as_json_lines_in_a_file_of_ones_own(url: str, tmp_path: Path) -> None:
    file = tmp_path / "sessions.jsonl"
    done = run("sessions", "export", url, "-o", str(file))

    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert done.exit_code == 0
    assert {each["session_id"]: each["session"]["nickname"] for each in lines} == {
        "telegram:42": "Tim", "telegram:43": "Ann",
    }  # fmt: skip
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run("sessions", "export", url, "--prefix", "telegram:42").stdout.count("\n") == 1


def test_copy_moves_all_to_another_store_and_may_be_run_again(url: str, tmp_path: Path) -> None:
    target = f"file://{quote(str(tmp_path / 'new house'))}"
    first, second = (run("sessions", "copy", url, target, "--json") for _ in range(2))

    assert (first.exit_code, second.exit_code) == (0, 0)
    assert json.loads(first.stdout) == {"copied": 2, "already_there": 0, "expired": 1, "destroyed": 0, "failed": []}
    assert json.loads(second.stdout)["already_there"] == 2
    assert "2 already there" in run("sessions", "copy", url, target).stdout


def test_copy_reports_what_it_could_not_copy(url: str, tmp_path: Path) -> None:
    target = f"file://{tmp_path / 'target'}"
    store: RecordStore = store_from_url(target).init()
    write_all(store, [Write(make_record("telegram:42", {"nickname": "Somebody else"}), b"")])
    store.close()
    done = run("sessions", "copy", url, target)

    assert done.exit_code == 1
    assert "not copied" in done.stderr
    assert "telegram:42" in done.stderr
    assert "1 copied" in done.stdout


def test_what_cannot_be_read_is_named_and_the_rest_is_listed(tmp_path: Path) -> None:
    url = in_files(tmp_path)
    store: RecordStore = store_from_url(url).init()
    write_all(store, [Write(make_record(each, {}), b"") for each in ("ann", "bob")])
    store.close()
    (tmp_path / "sessions" / f"s-{'0' * 64}.session").write_bytes(b"garbage")

    done = run("sessions", "ls", url)
    assert done.exit_code == 1
    assert "unreadable: " in done.stderr
    assert {"ann", "bob"} <= set(done.stdout.split())
    assert run("sessions", "export", url).exit_code == 1


def test_a_folder_that_is_not_there_is_not_made_by_looking(tmp_path: Path) -> None:
    done = run("sessions", "ls", in_files(tmp_path))

    assert done.exit_code == 1
    assert "there is no folder" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_session_id_steers_no_terminal(tmp_path: Path) -> None:
    url = in_files(tmp_path)
    store: RecordStore = store_from_url(url).init()
    write_all(store, [Write(make_record("\x1b[2Jann", {}), b"")])
    store.close()

    assert "\x1b" not in run("sessions", "ls", url).stdout

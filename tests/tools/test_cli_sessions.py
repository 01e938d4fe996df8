"""`actorbot sessions`: list, show, destroy, export and copy, over every store that a URL names."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import stat
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import Result
from rich.cells import cell_len

from actorbot import ONE_YEAR, MemorySessionStore, errors, store_from_url
from actorbot.cli._format import show_when
from actorbot.stores import RecordStore, Write, copy
from actorbot.testing._expect import make_record, make_tombstone, write_all
from tests.backends import AsyncDictStore, DictStore
from tests.servers import mongo_servers, redis_servers
from tests.tools.test_cli import run, run_apart, serve


def in_files(folder: Path) -> str:
    return f"file://{folder / 'sessions'}"


def in_redis(folder: Path) -> str:
    prefix = sha256(bytes(folder)).hexdigest()[:16]
    return f"{redis_servers.shared().url}?key_prefix={prefix}:"


def in_mongo(folder: Path) -> str:
    name = sha256(bytes(folder)).hexdigest()[:16]
    return f"{mongo_servers.shared().url}?collection_name={name}"


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


def on_terminal(columns: int, *args: str) -> str:
    """Return what the command prints on a terminal of so many columns; if 0, in a pipe."""
    env = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    if not columns:
        return run_apart(*args, env=env).stdout
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    assert run_apart(*args, stdout=terminal, env=env).stderr == ""
    os.close(terminal)
    said = b""
    with suppress(OSError), os.fdopen(ours, "rb", buffering=0) as stream:  # its end is an error
        while part := stream.read(4096):
            said += part
    return said.decode()


@pytest.mark.parametrize("columns", [0, 54, 60, 80, 130])
def test_ls_keeps_its_columns_whatever_the_ids_and_the_terminal(columns: int, tmp_path: Path) -> None:
    store: RecordStore = store_from_url(in_files(tmp_path)).init()
    ids = ["a", "telegram:42", "x" * 35, "日本語:ユーザー"]
    write_all(store, [Write(make_record(each, {}, expires_at=time.time() + ONE_YEAR), b"") for each in ids])
    store.close()

    heading, *lines = on_terminal(columns, "sessions", "ls", in_files(tmp_path)).splitlines()
    rows = [line for line in lines if "in 1 year" in line]
    assert len(rows) == len(ids)
    assert len({cell_len(line.partition("in 1 year")[0]) for line in rows}) == 1
    assert [sum(line.split()[0] == session_id for line in lines) for session_id in ids] == [1, 1, 1, 1]
    if columns:
        assert [line for line in [heading, *lines] if cell_len(line) > columns] == []
    if not columns or columns == 130:
        assert lines == rows
        assert [line for line in rows if time.strftime("%Y-", time.localtime(1.5e9)) not in line] == []


@pytest.mark.parametrize(("columns", "dates"), [("60", False), ("80", True)])
def test_a_width_that_somebody_has_set_counts_in_a_pipe_unless_it_is_the_usual_one(
    columns: str, dates: bool, tmp_path: Path
) -> None:
    fill(in_files(tmp_path), 1)
    done = run_apart("sessions", "ls", in_files(tmp_path), env=os.environ | {"COLUMNS": columns})

    assert ("2017-" in done.stdout) == dates


def test_a_store_that_fails_in_the_middle_of_a_list_hides_nothing_of_what_was_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Failing(MemorySessionStore):
        def scan(self) -> Any:
            yield make_record("ann", {})
            raise errors.StoreUnavailableError("memory", "it has gone")

    serve(monkeypatch, lambda url: Failing())
    done = run("sessions", "ls", "plain://here")

    assert done.exit_code == 1
    assert done.stdout.splitlines()[1].split()[0] == "ann"
    assert done.stderr == "Error: memory: it has gone\n"


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        (ONE_YEAR, "in 1 year"),
        (ONE_YEAR - 5, "in 1 year"),
        (ONE_YEAR - 86_400, "in 364 days"),
        (1.9 * ONE_YEAR, "in 1 year"),
        (10 * ONE_YEAR - 1, "in 10 years"),
        (86_400 - 1, "in 1 day"),
        (3 * 86_400 - 60, "in 3 days"),
        (3600 - 1, "in 1 hour"),
        (59 * 60, "in 59 minutes"),
        (1.5, "in 1 second"),
        (-3600, "1 hour ago"),
        (-90, "1 minute ago"),
        (0, "0 seconds ago"),
        (float("inf"), "in the far future"),
        (1e18, "in the far future"),
        (-1e18, "in the far past"),
    ],
)
def test_how_far_a_time_is_is_said_as_one_would(seconds: float, says: str) -> None:
    assert says in show_when(1e9 + seconds, now=1e9)


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


def test_a_file_and_a_store_may_stand_in_the_users_own_folder(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()

    assert run("sessions", "copy", url, "file://~/bot").exit_code == 0
    assert run("sessions", "export", "file://~/bot", "-o", "~/sessions.jsonl").exit_code == 0
    assert (tmp_path / "home" / "sessions.jsonl").read_text("utf-8").count("\n") == 2
    assert (tmp_path / "home" / "bot").is_dir()


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


LOOKING = [
    ("ls",), ("ls", "--json"), ("export",), ("show", "ann"), ("rm", "--yes", "ann"), ("copy", "memory://"), ("doctor",),
]  # fmt: skip


def look(verb: tuple[str, ...], url: str) -> Result:
    name, *rest = verb
    return run("doctor", url) if name == "doctor" else run("sessions", name, url, *reversed(rest))


@pytest.mark.parametrize("verb", LOOKING, ids=" ".join)
@pytest.mark.parametrize("kind", ["file", "mongo", "redis"])
def test_looking_at_a_mistyped_place_makes_nothing_there_and_says_so(
    verb: tuple[str, ...], kind: str, tmp_path: Path
) -> None:
    typo = f"typo_{sha256(bytes(tmp_path)).hexdigest()[:16]}"
    if kind == "file":
        done = look(verb, f"file://{tmp_path / typo / 'sessions'}")
        assert list(tmp_path.iterdir()) == []
        says = "there is no folder"
    elif kind == "mongo":
        server = mongo_servers.shared()
        done = look(verb, f"{server.url}?database={typo}")
        other = look(verb, f"{server.url}?database=admin&collection_name={typo}")
        with server.client() as client:
            assert typo not in client.list_database_names()
            assert typo not in client.admin.list_collection_names()
        says = f"there is no collection 'sessions' in the database '{typo}'"
        assert other.exit_code == done.exit_code
    elif verb[0] == "doctor":
        pytest.skip("there is nothing to mistype but a prefix, under which it tries a session")
    else:
        redis = redis_servers.shared()
        done = look(verb, f"{redis.url}?key_prefix={typo}:")
        assert redis.ask("KEYS", f"{typo}*") == []
        assert done.exit_code == (verb[0] == "show")
        return

    if verb[0] == "doctor":
        assert done.exit_code == 0
        assert [line.split()[0] for line in done.stdout.splitlines() if "a bot makes it when it starts" in line][
            -1
        ] == "warning"
        assert "write and read" not in done.stdout
    else:
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
        assert says in done.stderr


def test_looking_leaves_no_lock_in_a_folder_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    done = run("sessions", "ls", f"file://{tmp_path}")

    assert done.exit_code == 1
    assert f"there are no sessions in the folder {tmp_path}" in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_store_that_has_been_emptied_is_no_mistake(tmp_path: Path) -> None:
    fill(in_files(tmp_path), 0)
    done = run("sessions", "ls", in_files(tmp_path), "--prefix", "telegram:")

    assert done.exit_code == 0
    assert done.stderr == "there is no session that begins with telegram: that is alive; --all lists the others too\n"


def test_a_copy_from_a_place_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.StoreError, match="there is no folder"):
        copy(store_from_url(in_files(tmp_path)), store_from_url(f"file://{tmp_path}/target"))

    assert list(tmp_path.iterdir()) == []


def test_a_store_that_was_looked_at_can_be_used_by_a_bot(tmp_path: Path) -> None:
    for url in (in_files(tmp_path), in_redis(tmp_path), in_mongo(tmp_path)):
        store: RecordStore = store_from_url(url)
        assert (store.look() is None) == url.startswith("redis")
        write_all(store.init(), [Write(make_record("ann", {}), b"")])
        assert store.look() is None
        if url.startswith("mongodb"):
            assert "expiry" not in {each.what for each in store.examine() if each.level != "ok"}
        store.close()


def test_a_session_id_steers_no_terminal(tmp_path: Path) -> None:
    url = in_files(tmp_path)
    store: RecordStore = store_from_url(url).init()
    write_all(store, [Write(make_record("\x1b[2Jann", {}), b"")])
    store.close()

    assert "\x1b" not in run("sessions", "ls", url).stdout


# --- what is left out ---------------------------------------------------------------------------


def test_sessions_of_a_longer_key_prefix_are_another_bot_s_and_are_counted(tmp_path: Path) -> None:
    """`bot:` finds the keys of `bot:2:` too."""
    mine, theirs = in_redis(tmp_path), f"{in_redis(tmp_path)}2:"
    for url, ids in ((mine, ["ann", "2:x"]), (theirs, ["carl", "dora"])):
        store: RecordStore = store_from_url(url).init()
        write_all(store, [Write(make_record(each, {"n": 1}), b"") for each in ids])
        store.close()
    note = f"note: redis: sessions of the key prefix '{theirs.partition('=')[2]}' were left out: 2\n"

    listed = run("sessions", "ls", mine, "--json")
    exported = run("sessions", "export", mine)
    copied = run("sessions", "copy", mine, in_files(tmp_path), "--json")
    assert {json.loads(line)["session_id"] for line in listed.stdout.splitlines()} == {"ann", "2:x"}
    assert (listed.exit_code, exported.exit_code, copied.exit_code) == (0, 0, 0)
    assert exported.stderr == copied.stderr == note
    assert listed.stderr == f"owner: nobody\n{note}"
    assert (json.loads(copied.stdout)["copied"], json.loads(copied.stdout)["failed"]) == (2, [])


def test_a_session_of_a_longer_key_prefix_is_not_destroyed_as_a_damaged_one(tmp_path: Path) -> None:
    theirs = f"{in_redis(tmp_path)}2:"
    fill(theirs, 1)

    for verb in (("show",), ("rm", "--yes")):
        done = run("sessions", *verb, in_redis(tmp_path), "2:user:0")
        assert done.exit_code == 1
        assert "its key is that of session 'user:0' under the prefix" in done.stderr
        assert "destroy()" not in done.stderr
    assert run("sessions", "show", theirs, "user:0").exit_code == 0


def test_a_session_of_a_shorter_key_prefix_is_another_bot_s_too(tmp_path: Path) -> None:
    store: RecordStore = store_from_url(in_redis(tmp_path)).init()
    write_all(store, [Write(make_record("2:carl", {"n": 1}), b"")])
    store.close()

    done = run("sessions", "ls", f"{in_redis(tmp_path)}2:")
    assert done.exit_code == 0
    assert f"sessions of the key prefix '{store.key_prefix}' were left out: 1" in done.stderr  # type: ignore[attr-defined]


def test_what_a_driver_lists_and_nobody_can_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(Listed):
        def ids(self) -> Any:
            return [("ann",), b"bob", 42, "gone"]

    driver = Odd()
    driver.data = {"ann": {"n": 1}, "bob": {"n": 2}}
    serve(monkeypatch, lambda url: driver)
    said = {
        "ls": run("sessions", "ls", "plain://here"),
        "export": run("sessions", "export", "plain://here"),
        "copy": run("sessions", "copy", "plain://here", "memory://"),
    }

    for done in said.values():
        assert done.exit_code == 1
        assert "ids() gives 42, which is no session id" in done.stderr
        assert "note: Odd: read() has nothing for 1 of the 3 ids that ids() gives: they are left out" in done.stderr
    assert {"ann", "bob"} <= set(said["ls"].stdout.split())
    assert said["export"].stdout.count("\n") == 2
    assert "2 copied" in said["copy"].stdout


# --- what interrupts ----------------------------------------------------------------------------


def fill(url: str, number: int) -> None:
    store: RecordStore = store_from_url(url).init()
    write_all(store, [Write(make_record(f"user:{n}", {"n": n}), b"") for n in range(number)])
    store.close()


class Interrupting(MemorySessionStore):
    """Stays what it is from run to run, and is interrupted as if by Ctrl-C at its *at*-th call for
    what *verb* says.
    """

    def __init__(self, verb: str, at: int) -> None:
        super().__init__()
        self.verb, self.left = verb, at

    def count_down(self, verb: str) -> None:
        self.left -= verb == self.verb
        if self.left == 0:
            raise KeyboardInterrupt

    def write_many(self, writes: Any) -> Any:
        self.count_down("write")
        return super().write_many(writes)

    def scan(self) -> Any:
        for found in super().scan():
            self.count_down("scan")
            yield found


def test_a_copy_that_is_interrupted_says_that_it_goes_on_and_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(in_files(tmp_path), 250)
    store = Interrupting("write", 2)
    serve(monkeypatch, lambda url: store)
    first = run("sessions", "copy", in_files(tmp_path), "plain://there")
    second = run("sessions", "copy", in_files(tmp_path), "plain://there", "--json")

    assert first.exit_code == 130
    # click 8.1 ends the line of the ^C itself
    assert first.stderr.lstrip("\n") == "interrupted: run the same command again, and it goes on\n"
    report = json.loads(second.stdout)
    assert (report["copied"], report["already_there"]) == (150, 100)
    assert store.count() == 250


def test_an_export_that_is_interrupted_leaves_the_earlier_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Interrupting("scan", 3)
    write_all(store, [Write(make_record(f"user:{n}", {}), b"") for n in range(5)])
    serve(monkeypatch, lambda url: store)
    file = tmp_path / "sessions.jsonl"
    file.write_text("of yesterday\n")
    done = run("sessions", "export", "plain://here", "-o", str(file))

    assert done.exit_code == 1
    assert file.read_text() == "of yesterday\n"
    assert list(tmp_path.iterdir()) == [file]


def test_an_export_goes_only_into_a_file(tmp_path: Path) -> None:
    fill(in_files(tmp_path), 1)
    pipe = tmp_path / "pipe"  # and no device: this test may fail, and then the file that it names has been replaced
    os.mkfifo(pipe)

    assert run("sessions", "export", in_files(tmp_path), "-o", str(pipe)).exit_code == 2
    assert pipe.is_fifo()
    assert run("sessions", "export", in_files(tmp_path), "-o", str(tmp_path / "no" / "file")).exit_code == 1


@pytest.mark.parametrize(("answer", "status", "left"), [("n", 1, 1), ("y", 0, 0)])
def test_rm_does_at_a_terminal_what_it_is_answered(answer: str, status: int, left: int, tmp_path: Path) -> None:
    url = in_files(tmp_path)
    fill(url, 1)
    ours, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "actorbot", "sessions", "rm", url, "user:0"], stdin=terminal, stdout=terminal, stderr=terminal
    ) as process:  # fmt: skip
        os.write(ours, f"{answer}\n".encode())
        assert process.wait(timeout=30) == status
    said = os.read(ours, 10_000)
    os.close(ours)
    os.close(terminal)

    assert b"Destroy 1 session?" in said
    assert len(run("sessions", "ls", url, "--json").stdout.splitlines()) == left


# --- what fails ---------------------------------------------------------------------------------


def test_what_cannot_be_read_has_its_error_in_json_and_may_be_destroyed(tmp_path: Path) -> None:
    url = in_files(tmp_path)
    fill(url, 2)
    damaged = tmp_path / "sessions" / f"s-{sha256(b'user:0').hexdigest()}.session"
    content = bytearray(damaged.read_bytes())
    content[4] ^= 1  # in its checksum: the id can still be told
    damaged.write_bytes(content)

    listed = run("sessions", "ls", url, "--json")
    found = {each["session_id"]: each for each in map(json.loads, listed.stdout.splitlines())}
    assert listed.exit_code == 1
    assert "checksum" in found["user:0"]["error"]
    assert "error" not in found["user:1"]
    assert run("sessions", "ls", url, "--prefix", "user:1").exit_code == 0
    assert run("sessions", "show", url, "user:0").exit_code == 1
    assert "could not be read" in run("sessions", "rm", url, "user:0", "--yes").stdout
    assert run("sessions", "ls", url).exit_code == 0


@pytest.mark.parametrize("session_id", ["", "x" * 513, "a\nb"])
@pytest.mark.parametrize("verb", [("show",), ("rm", "--yes")])
def test_an_id_that_is_none_is_refused(verb: tuple[str, ...], session_id: str, tmp_path: Path) -> None:
    fill(in_files(tmp_path), 1)
    done = run("sessions", *verb, in_files(tmp_path), session_id)

    assert done.exit_code == 1
    assert "invalid session id" in done.stderr


def test_a_store_is_not_copied_into_itself(tmp_path: Path) -> None:
    fill(in_files(tmp_path), 1)

    assert run("sessions", "copy", in_files(tmp_path), in_files(tmp_path)).exit_code == 2


def test_the_reader_of_a_list_may_leave_early(tmp_path: Path) -> None:
    """As `head` does."""
    fill(in_files(tmp_path), 5)
    reading, writing = os.pipe()
    os.close(reading)
    done = run_apart("sessions", "ls", in_files(tmp_path), stdout=writing)
    os.close(writing)

    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


# --- somebody else's driver ---------------------------------------------------------------------


class Listed(DictStore):
    def ids(self) -> list[str]:
        return list(self.data)


class AsyncListed(AsyncDictStore):
    async def ids(self) -> list[str]:
        return list(self.inner.data)


@pytest.mark.parametrize("driver", [Listed, AsyncListed])
def test_a_driver_that_lists_its_sessions_is_listed_shown_and_moved(
    driver: type[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = driver()
    serve(monkeypatch, lambda url: made)
    fill(in_files(tmp_path), 3)
    copied = run("sessions", "copy", in_files(tmp_path), "plain://there", "--json")
    run("sessions", "rm", "plain://there", "user:0", "--yes")
    back = run("sessions", "copy", "plain://there", f"file://{tmp_path / 'back'}", "--json")

    assert json.loads(copied.stdout)["copied"] == 3
    assert json.loads(back.stdout)["copied"] == 2
    assert json.loads(run("sessions", "show", "plain://there", "user:1", "--json").stdout)["n"] == 1


def test_a_driver_that_cannot_list_its_sessions_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, lambda url: DictStore())
    done = run("sessions", "ls", "plain://here")

    assert done.exit_code == 1
    assert "ids()" in done.stderr
